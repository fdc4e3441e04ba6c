"""A small synthetic raw dataset in nnssl's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from viewalign.data.readers.itk import sitk

NAME = "Dataset745_OpenMind"
COLLECTION = "Dataset001_OpenMind"


def head(seed: int, shape) -> np.ndarray:
    """Return a bright, noisy ball in zeros (D, H, W)."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return (((grid**2).sum(0) < 0.7) * (100 + 20 * rng.normal(size=shape))).astype(np.float32)


def save(path: Path, array, spacing_zyx) -> None:
    image = sitk.GetImageFromArray(np.asarray(array))
    image.SetSpacing([float(size) for size in spacing_zyx[::-1]])
    image.SetOrigin((3.0, -4.0, 5.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def record(path: str, name: str = "t1", masks: dict[str, str | None] | None = None) -> dict:
    return {
        "name": name,
        "image_path": path,
        "modality": "T1w",
        "image_info": {"echo_time": 3},
        "associated_masks": masks,
    }


def catalogue(images: dict[str, list[dict]]) -> dict:
    """Return a catalogue with one session a subject."""
    subjects = {
        subject: {
            "subject_id": subject,
            "subject_info": {"age": 40},
            "sessions": {"ses-DEFAULT": {"session_id": "ses-DEFAULT", "session_info": None, "images": those}},
        }
        for subject, those in images.items()
    }
    dataset = {"dataset_index": "ds01", "name": "ours", "dataset_info": None, "subjects": subjects}
    return {"collection_index": 1, "collection_name": COLLECTION, "datasets": {"ds01": dataset}}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Four good images (isotropic, thick slices, with both masks, rotated axes) and one that is broken."""
    folder = tmp_path / "raw" / NAME
    spacings = {"sub-0": (1.1, 0.9, 1.2), "sub-1": (4.0, 0.8, 0.9), "sub-2": (1.0, 1.3, 1.0), "sub-3": (2.0, 1.0, 1.0)}
    images = {}
    for k, (subject, spacing) in enumerate(spacings.items()):
        shape = (12, 40, 36) if k == 1 else (30, 34, 32)
        save(folder / subject / "t1.nii.gz", head(k, shape), spacing)
        images[subject] = [record(f"$nnssl_raw/{NAME}/{subject}/t1.nii.gz")]
    anonymisation, anatomy = np.zeros((2, 30, 34, 32), dtype=np.uint8)
    anonymisation[:, :12] = 1
    anatomy[6:24, 8:30, 8:26] = 1
    save(folder / "sub-2" / "anon.nii.gz", anonymisation, spacings["sub-2"])
    save(folder / "sub-2" / "anat.nii.gz", anatomy, spacings["sub-2"])
    masks = {"anonymization_mask": f"$nnssl_raw/{NAME}/sub-2/anon.nii.gz", "anatomy_mask": "sub-2/anat.nii.gz"}
    images["sub-2"][0]["associated_masks"] = masks
    (folder / "sub-9").mkdir()
    (folder / "sub-9" / "t1.nii.gz").write_bytes(b"no image at all")
    images["sub-9"] = [record(f"$nnssl_raw/{NAME}/sub-9/t1.nii.gz")]
    (folder / "pretrain_data.json").write_text(json.dumps(catalogue(images)))
    monkeypatch.setenv("nnssl_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnssl_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnssl_results", str(tmp_path / "results"))
    for name in ("rocket_preprocessed", "nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
        monkeypatch.delenv(name, raising=False)
    return folder
