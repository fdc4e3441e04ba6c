"""Fingerprint and plans, as nnssl writes and reads them."""

import json

import numpy as np
import pytest

from viewalign.compat.nnssl.plans import (
    Plans,
    measure,
    plan,
    read_fingerprint,
    read_plans,
    write_fingerprint,
    write_plans,
)
from viewalign.data.catalogue import read_catalogue
from viewalign.errors import UserError

SPACINGS = [(1.0, 2.0, 3.0), (1.2, 2.0, 6.0), (5.0, 2.5, 3.0)]
KEYS = {
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "configurations",
    "experiment_planner_used",
}
CONFIGURATION_KEYS = {
    "data_identifier",
    "preprocessor_name",
    "spacing_style",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_mask",
    "resampling_fn_mask_kwargs",
    "spacing",
    "patch_size",
}


def test_plans_have_nnssl_s_keys_and_no_others(tmp_path):
    written = json.loads(write_plans(tmp_path, plan("Dataset745_OpenMind", SPACINGS)).read_text())
    assert set(written) == KEYS
    assert list(written["configurations"]) == ["onemmiso", "median", "noresample"]
    for name, how in written["configurations"].items():
        assert set(how) == CONFIGURATION_KEYS
        assert (how["data_identifier"], how["spacing_style"], how["patch_size"]) == (f"nnsslPlans_{name}", name, None)
    median = written["configurations"]["median"]
    assert median["resampling_fn_data_kwargs"] == {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    assert median["resampling_fn_mask_kwargs"] == {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    assert read_plans(tmp_path, "nnsslPlans", "median") == plan("Dataset745_OpenMind", SPACINGS)


def test_axes_and_sizes_are_planned_from_the_medians():
    made = plan("Dataset745_OpenMind", SPACINGS)
    assert made.transpose_forward == (2, 0, 1)
    assert made.transpose_backward == (1, 2, 0)
    turned = np.arange(3)[list(made.transpose_forward)][list(made.transpose_backward)]
    assert turned.tolist() == [0, 1, 2]
    assert made.original_median_spacing_after_transp == (3.0, 1.2, 2.0)
    sizes = {name: how.spacing for name, how in made.configurations.items()}
    assert sizes == {"onemmiso": (1, 1, 1), "median": (3.0, 1.2, 2.0), "noresample": None}
    with pytest.raises(UserError, match="Dataset745_OpenMind"):
        plan("Dataset745_OpenMind", [])


def test_what_changes_voxels_changes_the_fingerprint_of_the_plans():
    made = plan("Dataset745_OpenMind", SPACINGS)
    other = plan("Dataset745_OpenMind", [(3.0, 1.0, 1.0)])
    assert made.fingerprint("onemmiso") != made.fingerprint("median")
    assert made.fingerprint("onemmiso") != other.fingerprint("onemmiso"), "the axes differ"
    renamed = made.model_copy(update={"dataset_name": "x"})
    assert made.fingerprint("median") == renamed.fingerprint("median")


def test_the_plans_of_an_adaptation_plan_have_one_configuration_and_its_size():
    single = plan("Dataset745_OpenMind", SPACINGS).single("onemmiso", (128, 128, 128))
    assert list(single["configurations"]) == ["onemmiso"]
    assert single["configurations"]["onemmiso"]["patch_size"] == [128, 128, 128]
    assert set(single) == KEYS


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"transpose_forward": [0, 0, 1]}, "transpose_forward"),
        ({"configurations": {"median": {"spacing": [1, 0, 1]}}}, r"configurations\.median\.spacing"),
        ({"configurations": {"median": {"normalization_schemes": ["RGBTo01Normalization"]}}}, "normalization_schemes"),
        ({"configurations": {"median": {"resampling_fn_data_kwargs": {"order_z": 1}}}}, "order_z"),
    ],
)
def test_unsupported_plans_are_errors(tmp_path, change, sentence):
    raw = {**plan("Dataset745_OpenMind", SPACINGS).model_dump(mode="json"), **change}
    (tmp_path / "nnsslPlans.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=sentence):
        read_plans(tmp_path, "nnsslPlans", "median")


def test_keys_of_others_are_kept():
    raw = {**plan("Dataset745_OpenMind", SPACINGS).model_dump(mode="json"), "note": "theirs"}
    assert Plans.model_validate(raw).model_dump(mode="json")["note"] == "theirs"


@pytest.mark.parametrize("processes", [0, 2])
def test_voxel_sizes_come_from_headers_alone(raw, processes):
    records = list(read_catalogue(raw / "pretrain_data.json").records(raw))
    cut = raw / "sub-0" / "t1.nii.gz"
    spacings, excluded = measure(records, processes)
    np.testing.assert_allclose(spacings, [(1.1, 0.9, 1.2), (4, 0.8, 0.9), (1, 1.3, 1), (2, 1, 1)], atol=1e-6)
    assert [one.file for one in excluded] == [str(raw / "sub-9" / "t1.nii.gz")]
    cut.write_bytes(cut.read_bytes()[:2000])  # voxels are gone, the header is there
    assert len(measure(records[:1], 0)[0]) == 1


def test_the_fingerprint_s_file(tmp_path):
    write_fingerprint(tmp_path, SPACINGS)
    assert json.loads((tmp_path / "dataset_fingerprint.json").read_text()) == {"spacings": [list(s) for s in SPACINGS]}
    assert read_fingerprint(tmp_path) == SPACINGS
    (tmp_path / "dataset_fingerprint.json").write_text('{"spacings": [[1, 2]]}')
    with pytest.raises(UserError, match="--clean"):
        read_fingerprint(tmp_path)
