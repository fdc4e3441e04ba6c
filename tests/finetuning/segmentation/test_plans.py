"""Plans: voxel size, normalisation, patch and network of a pretraining in nnU-Net's format."""

import copy

import pytest
import torch

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import plans
from viewalign.networks import resenc
from viewalign.weights.adaptation_plan import adaptation_plan, plan_of

BASE = {
    "dataset_name": "Dataset001_X",
    "plans_name": "nnUNetPlans",
    "transpose_forward": [2, 0, 1],
    "transpose_backward": [1, 2, 0],
    "original_median_shape_after_transp": [30, 100, 200],
    "original_median_spacing_after_transp": [5.0, 1.0, 0.5],
    "image_reader_writer": "SimpleITKIO",
    "configurations": {
        "2d": {},
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [28, 96, 192],
            "median_image_size_in_voxels": [30, 100, 200],
            "spacing": [5.0, 1.0, 0.5],
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
            "next_stage": "3d_cascade_fullres",
        },
    },
}


def adaptation(network="resenc-xxs", size=(32, 32, 32), spacing=(1.0, 1.0, 1.0), foreground=False):
    return adaptation_plan(network, 1, size, spacing, foreground, "viewalign_mae")


def make(pretraining=None, base=BASE, channels=1, **choices):
    base = copy.deepcopy(base)
    before = copy.deepcopy(base)
    plan = plans.make_plan(base, pretraining or adaptation(), plans.Choices("mine", **choices), "x.pth", channels)
    assert base == before, "the base plan is not changed"
    return plan, plan["configurations"]["3d_fullres"]


def test_the_pretraining_s_voxel_size_undoes_the_transpose():
    plan, configuration = make()
    assert plan["transpose_forward"] == plan["transpose_backward"] == [0, 1, 2]
    # After transposing, axis k is the old axis forward[k]: the shape was (100, 200, 30) of (1, 0.5, 5) mm.
    assert plan["original_median_shape_after_transp"] == [100, 200, 30]
    assert plan["original_median_spacing_after_transp"] == [1.0, 0.5, 5.0]
    assert configuration["spacing"] == [1.0, 1.0, 1.0]
    assert configuration["median_image_size_in_voxels"] == [100.0, 100.0, 150.0]
    assert list(plan["configurations"]) == ["3d_fullres"]
    assert "next_stage" not in configuration


def test_the_dataset_s_own_voxel_size_and_a_given_one():
    plan, configuration = make(spacing="dataset")
    assert plan["transpose_forward"] == [2, 0, 1]
    assert configuration["spacing"] == [5.0, 1.0, 0.5]
    _, configuration = make(spacing=(2.0, 2.0, 3.0))
    assert configuration["spacing"] == [2.0, 2.0, 3.0]
    with pytest.raises(UserError, match="spacing"):
        make(adaptation(spacing=None))


def test_normalisation_follows_the_pretraining_or_the_dataset():
    _, configuration = make(adaptation(foreground=True), channels=3)
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"] * 3
    assert configuration["use_mask_for_norm"] == [True] * 3
    _, configuration = make(norm="dataset")
    assert configuration["normalization_schemes"] == ["CTNormalization"]
    none = prepared_by("none")
    assert make(none)[1]["normalization_schemes"] == ["NoNormalization"]
    for other in ("percentile", "window"):
        with pytest.raises(UserError, match=f"(?i){other}"):
            make(prepared_by(other))
        assert make(prepared_by(other), norm="dataset")[1]["normalization_schemes"] == ["CTNormalization"]


def prepared_by(normalise):
    return plan_of("resenc-xxs", 1, (32, 32, 32), "mae", {"spacing": [1, 1, 1], "normalise": normalise})


def test_patches():
    assert make()[1]["patch_size"] == [32, 32, 32]
    small = copy.deepcopy(BASE)
    small["original_median_shape_after_transp"] = [4, 20, 60]
    # The median image is 20 × 30 × 20 at 1 mm; no larger patch is of use.
    assert make(adaptation(size=(160, 160, 160)), base=small)[1]["patch_size"] == [24, 32, 24]
    assert make(patch=(64, 48, 40))[1]["patch_size"] == [64, 48, 40]
    with pytest.raises(UserError, match="8×8×8"):
        make(patch=(36, 32, 32))
    with pytest.raises(UserError, match="single voxel"):
        make(patch=(8, 8, 8))
    assert make(adaptation("primus-xxs"), patch=(36, 32, 32))[1]["patch_size"] == [36, 32, 32]


def test_presets_are_expanded_to_importable_classes():
    _, configuration = make(adaptation("resenc-l", (160, 160, 160)))
    architecture = configuration["architecture"]
    assert architecture["network_class_name"].endswith("architectures.unet.ResidualEncoderUNet")
    assert architecture["arch_kwargs"] == resenc.unet_arguments("resenc-l")
    _, configuration = make(adaptation("primus-m", (160, 160, 160)))
    assert plans.primus_preset(configuration["architecture"]) == "M"
    assert plans.primus_preset(make(adaptation("primus-xxs"))[1]["architecture"]) is None


@pytest.mark.parametrize("network", ["resenc-xxs", "primus-xxs"])
def test_a_plan_s_network_can_be_built(network):
    architecture = make(adaptation(network))[1]["architecture"]
    built = plans.build_network(architecture, 2, 4, (32, 32, 40))
    assert built(torch.zeros(1, 2, 32, 32, 40)).shape == (1, 4, 32, 32, 40)


def test_a_plan_makes_nothing_be_imported():
    architecture = copy.deepcopy(make()[1]["architecture"])
    architecture["arch_kwargs"]["conv_op"] = "os.system"
    with pytest.raises(UserError, match=r"os\.system"):
        plans.build_network(architecture, 1, 2, (32, 32, 32))
    with pytest.raises(UserError, match="Evil"):
        plans.build_network({**architecture, "network_class_name": "x.Evil"}, 1, 2, (32, 32, 32))


def test_equal_preprocessing_is_shared_and_other_is_not():
    names = {make(**choices)[1]["data_identifier"] for choices in ({}, {"patch": (64, 64, 64)}, {"batch": 4})}
    assert len(names) == 1
    assert names != {make(spacing=(2.0, 1.0, 1.0))[1]["data_identifier"]}
    assert names != {make(norm="dataset")[1]["data_identifier"]}
    assert "__" not in names.pop()


def test_what_is_rejected():
    with pytest.raises(UserError, match="a__b"):
        plans.make_plan(BASE, adaptation(), plans.Choices("a__b"), "x.pth", 1)
    with pytest.raises(UserError, match=r"x\.pth"):
        plans.make_plan(BASE, {}, plans.Choices("mine"), "x.pth", 1)
    odd = {"architecture_plans": {"arch_class_name": "NoSkipResEncL", "arch_kwargs": None}}
    with pytest.raises(UserError, match="NoSkipResEncL"):
        plans.architecture_of(odd, "x.pth")
    with pytest.raises(UserError, match="3d_fullres"):
        plans.make_plan({**BASE, "configurations": {"2d": {}}}, adaptation(), plans.Choices("mine"), "x.pth", 1)


def test_pretrain_info_has_the_fields_of_the_native_commands():
    info = plans.pretrain_info(adaptation("primus-m", (160, 160, 160)), "/somewhere/x.pth", "x")
    assert info["key_to_encoder"] == "eva"
    assert info["pt_used_patchsize"] == info["pt_recommended_downstream_patchsize"] == [160, 160, 160]
    assert set(info) == {
        "checkpoint_path",
        "checkpoint_name",
        "key_to_encoder",
        "key_to_stem",
        "keys_to_in_proj",
        "key_to_lpe",
        "pt_num_in_channels",
        "pt_used_patchsize",
        "pt_recommended_downstream_patchsize",
        "citations",
    }
