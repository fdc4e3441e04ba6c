"""Example data for the tutorials: small synthetic images with label maps and a table, made in a second."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.readers.itk import sitk
from viewalign.utils.rng import make_rng

_SIZE, _SPACING = (36, 40, 36), 2.0
DATASET = "Dataset901_Example"


def write_example(folder: str | Path, subjects: int = 30) -> Path:
    """Write images of synthetic heads, a segmentation dataset and a task.

    Each head is an ellipsoid with two dark ventricles and a bright nucleus, with noise and a random contrast. The
    ventricles are large in half of the subjects.

    Args:
        folder: created if necessary; gets `images/`, `Dataset901_Example/` in nnU-Net's raw layout, and `task/`.
        subjects: number of heads.

    Returns:
        The folder.
    """
    root = Path(folder)
    places = {name: root / name for name in ("images", f"{DATASET}/imagesTr", f"{DATASET}/labelsTr", "task")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    rows = []
    for subject in range(subjects):
        name, large = f"sub-{subject + 1:02d}", subject % 2
        image, labels = _head(subject, large)
        _save(image, root / "images" / f"{name}_T1w.nii.gz")
        _save(image, root / DATASET / "imagesTr" / f"{name}_0000.nii.gz")
        _save(labels, root / DATASET / "labelsTr" / f"{name}.nii.gz")
        path = f"../images/{name}_T1w.nii.gz"
        rows.append({"case": name, "subject": name, "image.t1": path, "target": ("normal", "large")[large]})
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "ventricle": 1, "nucleus": 2},
        "numTraining": subjects,
        "file_ending": ".nii.gz",
    }
    (root / DATASET / "dataset.json").write_text(json.dumps(description, indent=1))
    (root / "task" / "task.yaml").write_text(
        "name: ventricles\nkind: binary\nclasses: [normal, large]\nchannels:\n  - {name: t1}\n"
    )
    with (root / "task" / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def _head(subject: int, large: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return image (D, H, W) float32 and labels uint8 of one subject."""
    rng = make_rng(subject, "example head")
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in _SIZE), indexing="ij")
    shift, scale = rng.uniform(-0.08, 0.08, 3), rng.uniform(0.9, 1.05)
    d, h, w = (axis / scale - offset for axis, offset in zip((d, h, w), shift, strict=True))
    size = rng.uniform(0.22, 0.26) * (1.35 if large else 1.0)
    labels = np.zeros(_SIZE, np.uint8)
    for side in (-1, 1):
        labels[(d / 0.8) ** 2 + (h / 1.6) ** 2 + ((w - 0.3 * side) / 0.7) ** 2 < size**2] = 1
    labels[d**2 + (h - 0.45) ** 2 + w**2 < rng.uniform(0.12, 0.17) ** 2] = 2
    brain = (d / 0.85) ** 2 + (h / 0.9) ** 2 + (w / 0.75) ** 2 < 1
    levels = np.array([100.0, rng.uniform(25, 45), rng.uniform(130, 160)])
    image = brain * (levels[labels] + 12 * rng.standard_normal(_SIZE)) * (1 + 0.15 * h)
    return np.where(brain, image, 0).astype(np.float32), np.where(brain, labels, 0).astype(np.uint8)


def _save(array: NDArray[Any], path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((_SPACING,) * 3)
    sitk.WriteImage(image, str(path))
