"""The contract with stock nnunetv2: plan, preprocess, train and predict, for both kinds of network."""

import json

import numpy as np
import pytest
import torch

from viewalign.formats import nnunet
from viewalign.transfer.segmentation import dataset as datasets
from viewalign.transfer.segmentation import planning, running, splits
from viewalign.transfer.segmentation.running import Machine, Model
from viewalign.transfer.segmentation.schedule import published
from viewalign.transfer.weights import read_source
from viewalign.volumes.itk import sitk

from .conftest import write_dataset, write_encoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MACHINE = Machine("cpu", 1, 1)


def tiny(family, **changes):
    schedule = published(family, 1).as_json() | {"iterations": 2, "validation_iterations": 1, "save_every": 1}
    return type(published(family)).from_plan(schedule | {"mirror_validation": False} | changes)


@pytest.fixture(scope="module")
def prepared(nnunet_home):
    """Two datasets, of one and of three channels, with nnU-Net's own plan and a split."""
    found = {}
    for number, channels in ((901, 1), (903, 3)):
        root = write_dataset(nnunet_home.raw / f"Dataset{number}_Balls", channels)
        one = datasets.find(str(number), nnunet_home.raw)
        datasets.check(one)
        base = planning.base_plan(one, nnunet_home, 1)
        names = [case.name for case in one.cases]
        split = splits.Split("tiny", tuple(names[:4]), tuple(names[4:5]))
        splits.add(nnunet_home.preprocessed / one.name, [split], [])
        found[channels] = (one, base, root)
    return found


def plan_for(prepared, home, path, channels, name, schedule, scratch=False, **choices):
    one, base, _ = prepared[channels]
    source = read_source(path)
    planned = planning.write_plan(
        one, home, base, source, nnunet.Choices(name, **choices), schedule, 0.9, from_scratch=scratch
    )
    planning.preprocess(one, planned, 1)
    return planned, Model(one.name, name, home)


def weights_of(model, fold=0):
    return torch.load(model.fold(fold) / "checkpoint_final.pth", weights_only=False)["network_weights"]


@pytest.mark.parametrize(
    ("network", "channels", "patch"),
    [
        ("resenc-xs", 1, (32, 32, 32)),
        ("resenc-xs", 3, (24, 32, 40)),
        ("primus-xs", 3, (32, 32, 32)),
        ("primus-xs", 1, (24, 32, 40)),
    ],
)
def test_train_and_predict(network, channels, patch, prepared, nnunet_home, tmp_path):
    path, _ = write_encoder(tmp_path, network)
    family = network.split("-")[0]
    name = f"viewalign_{family}_{channels}"
    planned, model = plan_for(prepared, nnunet_home, path, channels, name, tiny(family), patch=patch)
    assert planned.configuration["patch_size"] == list(patch)
    assert planned.configuration["spacing"] == [1.0, 1.0, 1.0]
    path.unlink()  # nothing but what lies beside the plan is needed from here on
    running.train(model, 0, MACHINE)
    report = json.loads((model.fold(0) / "transfer.json").read_text())
    assert report["encoder_share"] == 1.0
    assert report["counts"]["adapted"] == (channels != 1) + (network == "primus-xs" and patch != (32, 32, 32))
    case = planned.folder / "gt_segmentations" / "case_04.nii.gz"
    validation = sitk.ReadImage(str(model.fold(0) / "validation" / "case_04.nii.gz"))
    assert validation.GetSize() == sitk.ReadImage(str(case)).GetSize()
    for stored in (planned.folder / "viewalign_encoders").iterdir():
        stored.unlink()  # prediction needs no pretraining file
    out = tmp_path / "out"
    running.predict(model.folder, prepared[channels][2] / "imagesTs", out, [0], MACHINE, mirror=False)
    made = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "test_00.nii.gz")))
    assert made.shape == (32, 32, 32)
    assert set(np.unique(made)) <= {0, 1, 2}
