"""Units of PET, phase images, and DICOM series that are time series."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_series

from viewalign.data.indexing import index_sources
from viewalign.data.sources import FindOptions
from viewalign.data.sources.naming import units_named, with_part

FRAMES = FindOptions(frames=True)


def volumes(folder: Path, count: int, key: str, **tags: object) -> None:
    """Write volumes at one place, of one series, that a tag distinguishes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        voxels = rng.integers(0, 900, (4, 8, 9)).astype(np.int16)
        paths = write_series(folder / "new", voxels, **{key: number + 1}, **tags)
        for path in paths:
            path.rename(folder / f"{number}-{path.name}")


@pytest.mark.parametrize(
    ("key", "count", "excluded"),
    [
        ("TemporalPositionIdentifier", 2, 1),
        ("TriggerTime", 3, 1),
        ("AcquisitionNumber", 6, 1),
        ("AcquisitionNumber", 3, 0),
        ("EchoTime", 3, 0),
    ],
)
def test_a_dicom_time_series_is_excluded_unless_frames_are_wanted(
    tmp_path: Path, key: str, count: int, excluded: int
) -> None:
    volumes(tmp_path, count, key)
    found = index_sources([str(tmp_path)])
    assert len(found.excluded) == excluded
    assert found.images == (0 if excluded else count)
    words = rf"it is a time series of {count} volumes \({key}-1\S* to {key}-{count}\S*\); frames=true of index"
    assert all(re.match(words, each.reason) for each in found.excluded)
    assert index_sources([str(tmp_path)], FRAMES).images == count


def test_passes_of_several_scans_with_one_uid_are_no_time_series(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in "abc":
        for number in (1, 2):
            voxels = rng.integers(0, 900, (4, 8, 9)).astype(np.int16)
            tags = {"SeriesInstanceUID": "1.2.3", "AcquisitionNumber": number}
            write_series(tmp_path / folder, voxels, prefix=f"{number}-", **tags)
    found = index_sources([str(tmp_path)])
    assert (found.images, found.excluded) == (6, [])


def test_pet_has_units_and_a_mixture_is_suspect(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, units in (("a", "BQML"), ("b", "BQML"), ("c", "GML")):
        voxels = rng.integers(0, 900, (20, 24, 22)).astype(np.int16)
        write_series(tmp_path / name, voxels, Modality="PT", Units=units, PatientID=name)
    index = index_sources([str(tmp_path)])
    assert [entry.units for entry in index.entries] == ["Bq/ml", "Bq/ml", "SUV"]
    assert [entry.modality for entry in index.entries] == ["PET"] * 3
    assert [entry.suspects.get("units") for entry in index.entries] == [
        None,
        None,
        "its voxels are in SUV, those of most others in Bq/ml",
    ]
    (image, *_) = (
        image
        for dataset in index.collection.datasets.values()
        for subject in dataset.subjects.values()
        for session in subject.sessions.values()
        for image in session.images
    )
    assert image.image_info is not None
    assert image.image_info["units"] == "Bq/ml"


def test_bids_states_units_and_keeps_phase_apart(tmp_path: Path, write_image, make_head) -> None:
    (tmp_path / "dataset_description.json").write_text("{}")
    names = ("pet/sub-1_pet", "anat/sub-1_part-mag_T2starw", "anat/sub-1_part-phase_T2starw", "anat/sub-1_T1w")
    for seed, name in enumerate(names):
        write_image(tmp_path / f"sub-1/{name}.nii.gz", make_head(seed))
    (tmp_path / "sub-1/pet/sub-1_pet.json").write_text(json.dumps({"Units": "Bq/mL"}))
    (tmp_path / "sub-1/anat/sub-1_T1w.json").write_text(json.dumps({"Units": "arbitrary"}))
    entries = {entry.name: entry for entry in index_sources([str(tmp_path)]).entries}
    assert {entry.modality for entry in entries.values()} == {"pet", "T2starw", "T2starw_phase", "T1w"}
    assert entries["sub-1_part-phase_T2starw"].modality == "T2starw_phase"
    assert entries["sub-1_part-mag_T2starw"].modality == "T2starw"
    assert entries["sub-1_pet"].units == "Bq/ml"
    assert entries["sub-1_T1w"].units == ""


def test_phase_of_dicom_is_a_modality_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, kind in (("m", "M"), ("p", "P")):
        voxels = rng.integers(0, 900, (4, 8, 9)).astype(np.int16)
        write_series(
            tmp_path / name, voxels, Modality="MR", ImageType=["ORIGINAL", "PRIMARY", kind, "ND"], SeriesDescription=""
        )
    assert sorted(entry.modality for entry in index_sources([str(tmp_path)]).entries) == ["MR", "MR_phase"]


def test_names_of_units_and_parts() -> None:
    assert [units_named(text) for text in ("BQML", "Bq/mL", "kBq/ml", "SUVbw", "g/ml", "mm")] == [
        "Bq/ml",
        "Bq/ml",
        "kBq/ml",
        "SUV",
        "SUV",
        "mm",
    ]
    assert with_part("T1w", "sub-1_part-real_T1w") == "T1w_real"
    assert with_part("T1w", "sub-1_partial-phase_T1w") == "T1w"
