"""Exports for SSL3D: both tracks at full size, and each failing check."""

import copy
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.compat import ssl3d
from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.networks.registry import build_backbone
from viewalign.weights import adaptation_plan as adaptation

pytestmark = pytest.mark.slow

FOLDER = "viewalign_cva__nnsslPlans__onemmiso"
MILLIMETRE = {"spacing": [1.0, 1.0, 1.0], "normalise": "zscore"}
SIZES = {"resenc-l": (128, 128, 128), "primus-m": (96, 96, 96)}


def root_of(network, preparation=MILLIMETRE, channels=1):
    size = SIZES.get(network, (32, 32, 32))
    with torch.device("meta"):
        backbone = build_backbone(network, size, channels, (16, 16, 16))
    state = {
        key.removeprefix("net."): torch.zeros(v.shape) for key, v in backbone.state_dict().items() if key[:4] == "net."
    }
    return adaptation.checkpoint(state, adaptation.plan_of(network, channels, size, "cva", preparation), 250)


@pytest.fixture(scope="module")
def roots():
    return {network: root_of(network) for network in ssl3d.TRACKS}


def changed(root):
    """Return a copy whose plan and table of names may be changed; tensors are shared."""
    return {
        **root,
        "network_weights": dict(root["network_weights"]),
        "nnssl_adaptation_plan": copy.deepcopy(root["nnssl_adaptation_plan"]),
    }


def wrong(root, folder=FOLDER):
    return " ".join(told for found in ssl3d.run_checks(root, folder).values() for told in found)


@pytest.mark.parametrize("network", ssl3d.TRACKS)
def test_both_tracks_pass_though_trained_at_another_size(roots, network):
    asked = ssl3d.run_checks(roots[network], FOLDER)
    assert not any(asked.values()), asked
    assert len(asked) == 7


def test_the_file_for_classification_of_a_primus_passes_and_reports_dropped_weights(roots):
    root = ssl3d.for_classification(roots["primus-m"])
    assert not any(ssl3d.run_checks(root, FOLDER.replace("viewalign_", "viewalign_hdw_")).values())
    assert root["nnssl_adaptation_plan"]["trainer_name"] == root["trainer_name"] == "viewalign_hdw_cva"
    assert len(ssl3d.dropped_by_classification(root)) == 64


@pytest.mark.parametrize("network", ssl3d.TRACKS)
def test_missing_and_unexpected_weights_are_named(roots, network):
    for part in ("key_to_stem", "key_to_encoder"):
        root = changed(roots[network])
        key = root["nnssl_adaptation_plan"][part]
        name = next(one for one in reversed(root["network_weights"]) if one.startswith(f"{key}."))
        root["network_weights"][name + "s"] = root["network_weights"].pop(name)
        told = wrong(root)
        assert f"{name} is missing" in told
        assert f"{name}s is unexpected" in told
        assert f"classification would not find {name}" in told


def test_names_with_the_prefix_of_the_encoder_are_unexpected(roots):
    root = changed(roots["primus-m"])
    root["network_weights"]["evaluator.weight"] = torch.zeros(1)
    assert "evaluator.weight is unexpected" in wrong(root)


def test_a_table_of_positions_for_another_patch_than_the_plan_s(roots):
    root = changed(roots["primus-m"])
    root["nnssl_adaptation_plan"]["pretrain_plan"]["configurations"]["onemmiso"]["patch_size"] = [160, 160, 160]
    assert "eva.pos_embed has the shape (1, 1728, 864) instead of (1, 8000, 864)" in wrong(root)


def test_a_weight_of_another_shape_and_one_that_is_not_finite(roots):
    root = changed(roots["resenc-l"])
    root["network_weights"]["encoder.stages.3.blocks.0.conv1.conv.weight"] = torch.zeros(256, 128, 1, 1, 1)
    assert "(256, 128, 1, 1, 1) instead of (256, 128, 3, 3, 3)" in wrong(root)
    root["network_weights"]["encoder.stem.convs.0.conv.weight"] = torch.full((32, 1, 3, 3, 3), float("nan"))
    assert wrong(root) == "encoder.stem.convs.0.conv.weight is not finite"


@pytest.mark.parametrize(
    ("preparation", "said"),
    [
        ({"spacing": [1.5, 1.5, 1.5], "normalise": "zscore"}, "the plan has fixed"),
        ({"spacing": None, "normalise": "zscore"}, "the plan has noresample"),
        ({"spacing": [1.0, 1.0, 1.0], "normalise": "window"}, "normalised by WindowNormalization"),
    ],
)
def test_other_images_than_the_challenge_s(roots, preparation, said):
    root = changed(roots["resenc-l"])
    root["nnssl_adaptation_plan"] = adaptation.plan_of("resenc-l", 1, (128, 128, 128), "cva", preparation)
    assert said in wrong(root)


def test_another_network_more_channels_another_folder_and_no_plan(roots):
    assert "the network is ResidualEncoderUNet" in wrong(root_of("resenc-xxs"))
    root = changed(roots["resenc-l"])
    root["nnssl_adaptation_plan"]["pretrain_num_input_channels"] = 2
    assert "2 image channels" in wrong(root)
    assert "the folder fixed" in wrong(roots["resenc-l"], "viewalign_cva__nnsslPlans__fixed")
    del root["nnssl_adaptation_plan"]["key_to_lpe"]
    assert wrong(root) == "key_to_lpe"
    assert wrong({"network_weights": {}}) == "nnssl_adaptation_plan"


def test_a_run_of_another_network_is_an_error_before_anything_is_written(tiny_run, tmp_path):
    with pytest.raises(UserError, match=r"resenc-l.*primus-m.*(resenc|primus)-xxs"):
        ssl3d.write_submission(tiny_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_run_of_the_track_from_command_line_to_checkpoint(tmp_path):
    (tmp_path / "scans").mkdir()
    for k in range(2):
        image = np.random.default_rng(k).normal(size=(68, 36, 36)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "scans" / f"p{k}.nii.gz"))
    viewalign.prepare(tmp_path / "scans", tmp_path / "store", workers=0)
    small = {
        "steps": 1,
        "batch": 1,
        "views": {"patch_size": (64, 32, 32)},
        "runtime": {"workers": 0},
        "validate": {"every": 0},
    }
    run = viewalign.pretrain("mae-resenc-l", tmp_path / "store", tmp_path / "run", **small).folder.root
    told = CliRunner().invoke(app, ["export", str(run), "format=ssl3d", "-o", str(tmp_path / "sent")])
    assert told.exit_code == 0, told.output
    place = tmp_path / "sent" / "Dataset745_OpenMind" / "viewalign_mae__nnsslPlans__onemmiso"
    assert {path.name for path in place.iterdir()} == {"adaptation_plan.json", "plans.json", "fold_all"}
    assert told.stdout.count("holds:") == 7
    assert str(place / "fold_all" / "checkpoint_final.pth") in told.stdout.replace("\n", "")
    root = torch.load(place / "fold_all" / "checkpoint_final.pth", weights_only=True)
    plan = json.loads((place / "adaptation_plan.json").read_text())
    assert plan["pretrain_plan"] == json.loads((place / "plans.json").read_text())
    assert root["nnssl_adaptation_plan"]["trainer_name"] == plan["trainer_name"] == "viewalign_mae"
    assert [path.name for path in (tmp_path / "sent").iterdir()] == ["Dataset745_OpenMind"]
    again = CliRunner().invoke(app, ["export", str(run), "format=ssl3d", "-o", str(tmp_path / "sent")])
    assert "is not written: it contains" in str(again.exception)
