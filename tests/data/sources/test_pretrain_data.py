from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_series

from viewalign.data.catalogue import write_catalogue
from viewalign.data.indexing import index_sources


@pytest.fixture
def catalogue(tmp_path: Path, write_image, make_head, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("raw_root", str(tmp_path / "raw"))
    for name in ("raw/T1w.nii.gz", "raw/anon.nii.gz", "json/T2w.nii.gz"):
        write_image(tmp_path / name, make_head())
    images = [
        {
            "name": "T1w",
            "image_path": "$raw_root/T1w.nii.gz",
            "modality": "T1w",
            "image_info": {"echo_time": 0.003},
            "associated_masks": {"anonymization_mask": "$raw_root/anon.nii.gz", "anatomy_mask": None},
        },
        {"name": "T2w", "image_path": "T2w.nii.gz", "modality": "T2w", "image_info": None, "associated_masks": None},
    ]
    session = {"session_id": "ses-1", "session_info": {"day": 1}, "images": images}
    subject = {"subject_id": "sub-01", "subject_info": {"age": 31}, "sessions": {"ses-1": session}}
    dataset = {"dataset_index": "ds1", "name": None, "dataset_info": {"n": 1}, "subjects": {"sub-01": subject}}
    content = {"collection_index": 745, "collection_name": "Dataset745_OpenMind", "datasets": {"ds1": dataset}}
    path = tmp_path / "json" / "pretrain_data.json"
    path.write_text(json.dumps(content))
    return path


def test_infos_masks_names_and_variables_are_kept(catalogue: Path) -> None:
    index = index_sources([str(catalogue)])
    collection = index.collection
    assert (collection.collection_index, collection.collection_name) == (745, "Dataset745_OpenMind")
    dataset = collection.datasets["ds1"]
    subject = dataset.subjects["sub-01"]
    session = subject.sessions["ses-1"]
    assert (dataset.dataset_info, subject.subject_info, session.session_info) == ({"n": 1}, {"age": 31}, {"day": 1})
    first, second = session.images
    assert first.image_path == "$raw_root/T1w.nii.gz"
    assert first.associated_masks is not None
    assert first.associated_masks.anonymization_mask == "$raw_root/anon.nii.gz"
    assert first.image_info is not None
    assert first.image_info["echo_time"] == 0.003
    assert second.image_path == str(catalogue.parent / "T2w.nii.gz")


def test_an_image_without_its_mask_is_excluded(catalogue: Path) -> None:
    (catalogue.parent.parent / "raw" / "anon.nii.gz").unlink()
    index = index_sources([str(catalogue)])
    assert index.images == 1
    assert "its anonymisation mask $raw_root/anon.nii.gz does not exist" in index.excluded[0].reason


def test_beside_other_sources_it_joins_their_collection(catalogue: Path, write_image, make_head) -> None:
    write_image(catalogue.parent / "more" / "a.nii.gz", make_head())
    index = index_sources([str(catalogue), str(catalogue.parent / "more")])
    assert index.collection.collection_name == "viewalign"
    assert set(index.collection.datasets) == {"ds1", "more"}


def test_series_stay_composed_as_the_catalogue_says(tmp_path: Path) -> None:
    """Slices in two folders, and two images that dcm2niix makes of one series."""
    volume = np.arange(20 * 8 * 8, dtype=np.int16).reshape(20, 8, 8)
    for part in (0, 1):
        heights = [2.0 * k for k in range(part, 20, 2)]
        write_series(
            tmp_path / "x" / f"DIR{part}", volume[part::2], heights, prefix="ab"[part], SeriesInstanceUID="1.2.3"
        )
    first = index_sources([str(tmp_path / "x")])
    path = write_catalogue(first.collection, tmp_path / "cat.json") or tmp_path / "cat.json"
    again = index_sources([str(path)])
    assert [(entry.shape, entry.spacing) for entry in again.entries] == [
        (entry.shape, entry.spacing) for entry in first.entries
    ]
    content = json.loads(path.read_text())
    (dataset,) = content["datasets"].values()
    (subject,) = dataset["subjects"].values()
    (session,) = subject["sessions"].values()
    (image,) = session["images"]
    info = image["image_info"]
    session["images"] = [{**image, "name": n, "image_info": {**info, "dcm2niix_output": n}} for n in ("e1", "e2")]
    path.write_text(json.dumps(content))
    assert [entry.name for entry in index_sources([str(path)]).entries] == ["e1", "e2"]
