"""Run folders made by code, as small as they can be."""

import json

import numpy as np
import pytest
import torch

from viewalign.config import Recipe
from viewalign.recipes import loading
from viewalign.views import affines, lattice

SIZE = (16, 16, 16)


def maps_of(*shifts, turned=False):
    """Affines of views that begin at `shifts` of a volume, in a frame that may be turned by 20 degrees."""
    c, s = (np.cos(0.35), np.sin(0.35)) if turned else (1.0, 0.0)
    frame = np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])
    return np.stack([np.column_stack([frame, shift]) for shift in shifts])


def pictures_of(shifts=((2, 2, 2), (6, 4, 2)), turned=False, padded=False, features=True, masked=True, seed=0):
    """Arrays as a run writes them, of two views of 16³ in a volume of 24³."""
    rng = np.random.default_rng(seed)
    maps = maps_of(*shifts, turned=turned)
    both = torch.from_numpy(maps)
    points = lattice.lattice_points(both[:1], both[1:], SIZE, (4, 4, 4), 2)[0]
    valid = np.ones((2, *SIZE), dtype=bool)
    if padded:
        valid[:, :, :, 12:] = False
    arrays = {
        "views": rng.normal(size=(2, *SIZE)).astype(np.float16),
        "targets": rng.normal(size=(2, *SIZE)).astype(np.float16),
        "valid": valid,
        "to_volume": maps,
        "points": torch.stack([affines.apply(affines.invert(one), points) for one in both]).numpy(),
        "crop": rng.normal(size=(24, 24, 24)).astype(np.float16),
        "start": np.zeros(3, dtype=np.int64),
    }
    if masked:
        arrays["reconstruction"] = rng.normal(size=(2, *SIZE)).astype(np.float16)
        arrays["mask"] = rng.random((2, *SIZE)) < 0.75
    if features:
        arrays["features"] = rng.random((2, 3, 4, 4, 4)).astype(np.float16)
    return arrays


def rows_of(steps=200, health=(0.8, 60.0), cosine=0.8, accuracy=0.9, wait=0.01, validation=True):
    """Rows of a healthy run, except for changes."""
    rows = [
        {"kind": "data", "step": 0, "volumes": 40, "subjects": 30, "train_volumes": 35, "validation_volumes": 5,
         "smaller_than_view": 4, "parameters": 1234567, "alignment_error": 1e-6},
        {"kind": "health", "step": 1, "feature_std": 0.9, "effective_rank": 80.0},
    ]  # fmt: skip
    for step in range(10, steps + 1, 10):
        loss = 1 + 4 / step
        rows.append(
            {"kind": "train", "step": step, "loss": loss, "reconstruction": loss / 8, "consistency": loss / 4,
             "contrastive": 2.0, "cosine": cosine, "contrast_accuracy": accuracy, "lr": 1e-3,
             "gradient_norm": 2.0, "samples_per_second": 4.0, "data_wait": wait}
        )  # fmt: skip
        if validation and step % 50 == 0:
            rows.append({"kind": "validation", "step": step, "loss": loss + 0.1, "consistency": 1.0})
    rows.append({"kind": "health", "step": steps, "feature_std": health[0], "effective_rank": health[1]})
    return rows


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run's folder."""

    def make(name="a-run", rows=None, arrays=None, steps=200, **extra):
        root = tmp_path / name
        root.mkdir(parents=True)
        recipe = Recipe(steps=steps, data=str(tmp_path / "the-store"), out=str(root))
        (root / "config.yaml").write_text(loading.to_yaml(recipe))
        rows = rows_of(steps) if rows is None else rows
        (root / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if arrays is not None:
            np.savez_compressed(root / "pictures.npz", **arrays)
        for file, text in extra.items():
            path = root / file.replace("__", ".")
            path.write_text(text if isinstance(text, str) else json.dumps(text))
        return root

    return make


@pytest.fixture
def report_pictures():
    """The function that makes a run's picture arrays."""
    return pictures_of


@pytest.fixture
def report_rows():
    """The function that makes a run's rows."""
    return rows_of
