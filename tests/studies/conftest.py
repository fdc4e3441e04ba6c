"""A study on tiny synthetic data."""

import numpy as np
import pytest

from viewalign.data.readers.itk import sitk
from viewalign.data.store import store_from_arrays
from viewalign.studies.cells import Grid
from viewalign.studies.loading import check

COMMON = {
    "network": {"name": "resenc-xxs"},
    "batch": 2,
    "views": {"patch_size": [16, 16, 16]},
    "heads": {"width": 16, "predictor_width": 8, "norm": "layer"},
    "validate": {"every": 0},
    "runtime": {"workers": 0},
    "log": {"tensorboard": False},
}


def write_data(folder):
    """Write a store of four volumes, and three images with labels."""
    rng = np.random.default_rng(0)
    arrays = {f"s{k}": rng.normal(size=(18, 18, 18)).astype(np.float32) for k in range(4)}
    store_from_arrays(folder / "store", arrays)
    for k in range(3):
        image = rng.normal(size=(18, 18, 18)).astype(np.float32) + 5
        for part, array in (("images", image), ("labels", (image > 5).astype(np.uint8))):
            (folder / part).mkdir(exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / part / f"c{k}.nii.gz"))


@pytest.fixture
def make(tmp_path):
    write_data(tmp_path)

    def build(**changes):
        arms = {
            "untrained": {"recipe": "mae-resenc-xs", "untrained": True},
            "mae": {"recipe": "mae-resenc-xs"},
            "cva": {"recipe": "cva-resenc-xs", "start": "mae"},
        }
        where = {"images": "images", "labels": "labels", "learn": ["c0"], "test": ["c1", "c2"]}
        tree = {
            "data": {"root": str(tmp_path), "store": "store", "labelled": where},
            "arms": arms,
            "evaluations": {
                "voxels": {"kind": "voxel_probe", "shots": 1, "per_class": 20, "test_voxels": 200},
                "places": {"kind": "retrieval", "cells": 3},
            },
            "seeds": 1,
            "steps": 2,
            "threads": 1,
            "common": COMMON,
            **changes,
        }
        return Grid(check(tree, "made"), tmp_path / "out")

    return build
