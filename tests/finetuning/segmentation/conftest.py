"""A synthetic dataset in nnU-Net's layout, encoders that were hardly trained, and nnU-Net's folders for one test."""

import json
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from viewalign.data.readers.itk import sitk
from viewalign.finetuning.segmentation import dataset as datasets
from viewalign.finetuning.segmentation import planning, plans, splits
from viewalign.finetuning.segmentation.environment import Folders, variables
from viewalign.finetuning.segmentation.nnunet import Model
from viewalign.finetuning.segmentation.schedule import published
from viewalign.networks.registry import build_backbone
from viewalign.weights import adaptation_plan
from viewalign.weights.reading import read_source


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
    plan = adaptation_plan.adaptation_plan(network, channels, size, (1.0, 1.0, 1.0), False, "viewalign_cva")
    path = folder / f"{network}.pth"
    torch.save(adaptation_plan.checkpoint(state, plan, 1), path)
    return path, backbone


def set_environment(folders, patch):
    for name, value in variables(folders).items():
        patch.setenv(name, value)
    patch.setenv("nnUNet_def_n_proc", "1")
    patch.setenv("nnUNet_n_proc_DA", "1")


@contextmanager
def planning_in_threads():
    """Let nnU-Net plan and preprocess in threads: a process of its own would import torch for half a second of work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.get_context", lambda *_: SimpleNamespace(Pool=ThreadPool))
        yield patch


@pytest.fixture(scope="session")
def nnunet_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("nnunet")
    folders = Folders(root / "raw", root / "preprocessed", root / "results")
    folders.make()
    return folders


@pytest.fixture
def nnunet_home(nnunet_folders, monkeypatch):
    """nnU-Net's three folders, in the environment for one test alone."""
    set_environment(nnunet_folders, monkeypatch)
    return nnunet_folders


class Prepared(dict):
    """By number of channels: (dataset, nnU-Net's own plan, folder) with a split of five cases; made at first use."""

    def __init__(self, folders):
        self.folders = folders

    def __missing__(self, channels):
        with planning_in_threads() as patch:
            set_environment(self.folders, patch)
            number = 900 + channels
            root = write_dataset(self.folders.raw / f"Dataset{number}_Balls", channels)
            dataset = datasets.find(str(number), self.folders.raw)
            base = planning.base_plan(dataset, self.folders, 1)
            names = [case.name for case in dataset.cases]
            split = splits.Split("tiny", tuple(names[:4]), tuple(names[4:5]))
            splits.add(self.folders.preprocessed / dataset.name, [split], [])
        self[channels] = dataset, base, root
        return self[channels]


@pytest.fixture(scope="session")
def prepared(nnunet_folders):
    return Prepared(nnunet_folders)


@pytest.fixture
def plan_for(prepared, nnunet_home):
    """Write a plan for one of the datasets, preprocess it, and return it with its model."""

    def write_one(path, name, schedule, channels=1, scratch=False, **choices):
        one, base, _ = prepared[channels]
        planned = planning.write_plan(
            one, nnunet_home, base, read_source(path), plans.Choices(name, **choices), schedule, 0.9, scratch
        )
        with planning_in_threads():
            planning.preprocess(one, planned, 1)
        return planned, Model(one.name, name, nnunet_home)

    return write_one


def tiny(family, **changes):
    """A schedule of one epoch of two steps."""
    steps = {"epochs": 1, "warmup_epochs": 0, "iterations": 2, "validation_iterations": 1, "save_every": 1}
    return replace(published(family, 1), **(steps | {"tta": False} | changes))
