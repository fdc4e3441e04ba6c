"""A synthetic dataset in nnU-Net's layout, encoders that were hardly trained, and nnU-Net's folders for one test."""

import json
import os

import numpy as np
import pytest
import torch

from viewalign.formats import nnssl
from viewalign.networks.registry import build_backbone
from viewalign.volumes.itk import sitk


def write_dataset(root, channels=1, cases=6, size=(32, 32, 32), spacing=(1.0, 1.0, 1.0)):
    """Write balls of noise, labelled 1, with a core labelled 2."""
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"))
    for number in range(cases):
        centre = np.array(size) / 2 + rng.uniform(-3, 3, 3)
        away = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(0))
        labels = (away < 10).astype(np.uint8) + (away < 5)
        for channel in range(channels):
            image = labels * (channel + 1.0) + rng.normal(0, 0.3, size) + 2
            write(root / "imagesTr" / f"case_{number:02d}_{channel:04d}.nii.gz", image.astype(np.float32), spacing)
            if number == 0:
                write(root / "imagesTs" / f"test_00_{channel:04d}.nii.gz", image.astype(np.float32), spacing)
        write(root / "labelsTr" / f"case_{number:02d}.nii.gz", labels, spacing)
    description = {
        "channel_names": {str(k): f"MR{k}" for k in range(channels)},
        "labels": {"background": 0, "rind": 1, "core": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def write(path, array, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))


def write_encoder(folder, network, size=(32, 32, 32), channels=1):
    """Write a checkpoint of nnssl's layout; returns its path and the backbone whose weights it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    backbone = build_backbone(network, size, channels)
    state = {name.removeprefix("net."): value for name, value in backbone.state_dict().items() if "net." in name}
    plan = nnssl.adaptation_plan(network, channels, size, (1.0, 1.0, 1.0), False, "viewalign_cva")
    path = folder / f"{network}.pth"
    torch.save(nnssl.checkpoint(state, plan, 1), path)
    return path, backbone


@pytest.fixture(scope="module")
def nnunet_home(tmp_path_factory):
    """nnU-Net's three folders, in the environment for this module's tests alone."""
    from viewalign.transfer.segmentation.environment import Folders, enter

    before = dict(os.environ)
    root = tmp_path_factory.mktemp("nnunet")
    folders = Folders(root / "raw", root / "preprocessed", root / "results")
    folders.make()
    enter(folders, 1, "cpu")
    yield folders
    os.environ.clear()
    os.environ.update(before)
