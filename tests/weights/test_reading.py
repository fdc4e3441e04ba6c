"""Weights of another network than those here are rejected, also if all that is needed is among them."""

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

import viewalign
from viewalign.errors import UserError
from viewalign.networks.registry import build_backbone, unet_arguments
from viewalign.weights.adaptation_plan import adaptation_plan
from viewalign.weights.reading import network_of
from viewalign.weights.sources import make_source

pytestmark = pytest.mark.slow

CLASSES = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}


def write(path, named=None, **changes):
    """Write a checkpoint of nnU-Net for resenc-xs with changes; `named`: the arguments in its plans, if it has any."""
    arguments = {**unet_arguments("resenc-xs"), **CLASSES, **changes}
    network = ResidualEncoderUNet(1, num_classes=2, **arguments)
    root = {"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer"}
    if named is not None:
        architecture = {"network_class_name": "x.ResidualEncoderUNet", "arch_kwargs": named, "_kw_requires_import": []}
        own = {"spacing": [1.0] * 3, "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False]}
        configuration = {**own, "patch_size": [32, 32, 32], "architecture": architecture}
        root["init_args"] = {"plans": {"configurations": {"3d_fullres": configuration}}, "configuration": "3d_fullres"}
    torch.save(root, path)
    return network.eval()


@pytest.mark.parametrize("planned", [False, True])
def test_nnunet_s_network_gives_the_same_features(tmp_path, planned):
    network = write(tmp_path / "x.pth", unet_arguments("resenc-xs") if planned else None)
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        own, wanted = viewalign.load_encoder(tmp_path / "x.pth")(image).maps, network.encoder(image)
    for a, b in zip(own, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_blocks_per_stage": [1, 2, 2, 4]},
        {
            "n_stages": 5,
            "features_per_stage": [16, 32, 64, 128, 128],
            "kernel_sizes": [[3] * 3] * 5,
            "strides": [[1] * 3] + [[2] * 3] * 4,
            "n_blocks_per_stage": [1, 2, 2, 2, 2],
            "n_conv_per_stage_decoder": [1] * 4,
        },
        {"norm_op": nn.BatchNorm3d},
        {"conv_bias": False},
    ],
    ids=["blocks", "stages", "norm", "bias"],
)
def test_other_parameters_are_another_network(tmp_path, changes):
    write(tmp_path / "x.pth", **changes)
    with pytest.raises(UserError, match="unsupported network"):
        viewalign.load_encoder(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("key", "value", "changes"),
    [
        ("strides", [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]], {}),
        ("strides", [1, 2, 2, [1, 2, 2]], {}),
        ("nonlin", "torch.nn.ReLU", {"nonlin": nn.ReLU}),
        ("norm_op", "torch.nn.GroupNorm", {}),
    ],
)
def test_what_weights_do_not_show_is_compared_with_the_plan(tmp_path, key, value, changes):
    named = {**copy.deepcopy(unet_arguments("resenc-xs")), key: value}
    write(tmp_path / "x.pth", named, **({"strides": value} if key == "strides" else changes))
    with pytest.raises(UserError, match=f"resenc-xs with {key}="):
        viewalign.load_encoder(tmp_path / "x.pth")


def test_the_attention_heads_of_a_primus_are_those_of_its_plan():
    state = {n.removeprefix("net."): p for n, p in build_backbone("primus-xxs", (16, 16, 16)).named_parameters()}
    plan = adaptation_plan("primus-xxs", 1, (16, 16, 16), None, False, "viewalign_mae")
    assert network_of(make_source(state, "x", (16, 16, 16), "viewalign_mae", None, plan)) == "primus-xxs"
    plan["architecture_plans"]["arch_kwargs"]["eva_numheads"] = 4
    with pytest.raises(UserError, match="primus-xxs with eva_numheads=4"):
        network_of(make_source(state, "x", (16, 16, 16), "viewalign_mae", None, plan))
