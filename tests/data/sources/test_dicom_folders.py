from __future__ import annotations

import json
import os
import re
import unicodedata
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_enhanced, write_report, write_series, write_slice

import viewalign
from viewalign.data.catalogue import read_catalogue, write_catalogue
from viewalign.data.indexing import index_sources
from viewalign.data.patients import patient_name
from viewalign.data.prepare import prepare_records
from viewalign.data.settings import PrepareSettings
from viewalign.data.sources import FindOptions
from viewalign.data.store import Store


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Make an export of two persons; the first has three series, one of them with a slice missing."""
    voxels = np.random.default_rng(0).integers(1, 4000, (6, 10, 12)).astype(np.uint16)
    root = tmp_path / "export"
    write_series(root / "A" / "1", voxels, SeriesInstanceUID="1.1")
    write_enhanced(root / "A" / "2" / "e.dcm", voxels, SeriesInstanceUID="1.2", SeriesDescription="T1 MPRAGE")
    write_series(root / "A" / "3", voxels, SeriesInstanceUID="1.3", SeriesNumber=9)[2].unlink()
    write_series(
        root / "B" / "1", voxels, SeriesInstanceUID="1.4", PatientID="P2", StudyInstanceUID="1.9", Modality="CT"
    )
    write_report(root / "A" / "report.dcm")
    return root


def test_series_are_found_and_grouped(export: Path) -> None:
    index = index_sources([str(export)])
    assert (index.images, index.subjects(), index.sessions(), index.other_files.total()) == (3, 2, 2, 1)
    assert sorted(entry.name for entry in index.entries) == ["003_T1_MPRAGE", "003_t2_tse_ax", "003_t2_tse_ax"]
    assert dict(index.modalities) == {"T2w": 1, "T1w": 1, "CT": 1}
    (exclusion,) = index.excluded
    assert "1 slice missing" in exclusion.reason
    assert "[series 009_t2_tse_ax]" in exclusion.reason


def test_neither_identifier_nor_name_of_a_patient_is_written(export: Path) -> None:
    index = index_sources([str(export)])
    text = json.dumps(asdict(index.collection))
    assert not re.search(r"P1|P2|Doe|Jane", text)
    assert re.search(r"patient-[0-9a-f]{8}", text)


def test_names_in_the_path_rule(export: Path) -> None:
    options = FindOptions(re.compile(r"(?P<subject>[AB])/(?P<session>\d)"))
    index = index_sources([str(export)], options)
    assert {(entry.subject, entry.session) for entry in index.entries} == {("A", "1"), ("A", "2"), ("B", "1")}
    (export / "A").rename(export / "sub-07")
    assert "sub-07" in {entry.subject for entry in index_sources([str(export)]).entries}


def test_a_catalogue_of_series_is_prepared_another_day(export: Path, tmp_path: Path) -> None:
    records = list(index_sources([str(export)]).collection.records())
    settings = PrepareSettings(spacing=None, normalise="none")
    report = prepare_records(records, tmp_path / "store", settings, workers=0)
    assert (report.made, report.excluded) == (3, [])
    voxels = np.random.default_rng(0).integers(1, 4000, (6, 10, 12))
    store = Store.open(tmp_path / "store")
    for k in range(3):
        np.testing.assert_array_equal(store.read(k)[0], voxels)
    assert prepare_records(records, tmp_path / "store", settings, workers=0).skipped == 3
    next(export.glob("B/1/*5.dcm")).unlink()
    again = prepare_records(records, tmp_path / "store", settings, workers=0)
    assert again.skipped == 2


@pytest.mark.slow
def test_real_series_and_volumes_go_into_one_store(shared_data: Path, tmp_path: Path) -> None:
    names = ("dicom_head_mr", "ms_raw/patient04_study1_T2W.nii.gz", "hippocampus/images/hippocampus_001.nii.gz")
    index = index_sources([str(shared_data / name) for name in names])
    report = prepare_records(list(index.collection.records()), tmp_path / "s", PrepareSettings(), workers=0)
    assert (report.prepared, report.excluded) == (3, [])


def test_slices_that_were_not_downloaded_are_excluded_by_name(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", np.random.default_rng(0).integers(1, 4000, (6, 10, 12)).astype(np.uint16))
    for number in (90, 91):
        (tmp_path / "scan" / f"{number}.dcm").symlink_to(f"../.git/annex/objects/{number}.dcm")
    index = index_sources([str(tmp_path)])
    assert "2 files in its folder could not be read: slices may be missing" in index.entries[0].suspects["header"]
    assert [Path(each.file).name for each in index.excluded] == ["90.dcm", "91.dcm"]
    assert all("datalad get" in each.reason for each in index.excluded)


@pytest.mark.parametrize("suffix", ["img", "mr", "ct", "dic", "MRDC"])
def test_slices_of_any_name_are_found_by_their_mark(tmp_path: Path, suffix: str) -> None:
    write_series(tmp_path / "scan", np.random.default_rng(0).integers(1, 4000, (6, 10, 12)).astype(np.uint16))
    for path in list((tmp_path / "scan").iterdir()):
        path.rename(path.with_suffix(f".{suffix}"))
    assert index_sources([str(tmp_path)]).images == 1


def spread(folder: Path, where, **tags) -> np.ndarray:
    """Write a series of six slices, slice k into the folder `where(k)`; return its voxels."""
    tags = {"SeriesInstanceUID": "1.7", **tags}
    voxels = np.random.default_rng(0).integers(1, 4000, (6, 10, 12)).astype(np.uint16)
    for k, plane in enumerate(voxels):
        write_slice(folder / where(k) / f"{k}.dcm", plane, (0, 0, 2 * k), **tags)
    return voxels


@pytest.mark.parametrize("where", ["AB[k // 3]", "AB[k % 2]", "str(k)"], ids=["halves", "alternating", "each"])
def test_a_series_spread_over_folders_is_one_volume(tmp_path: Path, where: str) -> None:
    voxels = spread(tmp_path / "scan", lambda k: eval(where, {"AB": "AB", "k": k, "str": str}))
    index = index_sources([str(tmp_path / "scan")])
    assert [(entry.shape, entry.spacing) for entry in index.entries] == [((6, 10, 12), (2.0, 0.8, 0.9))]
    write_catalogue(index.collection, tmp_path / "cat.json")
    records = list(read_catalogue(tmp_path / "cat.json").records(tmp_path))
    settings = PrepareSettings(spacing=None, normalise="none")
    assert prepare_records(records, tmp_path / "store", settings, workers=0).excluded == []
    np.testing.assert_array_equal(Store.open(tmp_path / "store").read(0)[0], voxels)
    assert prepare_records(records, tmp_path / "store", settings, workers=0).skipped == 1
    write_slice(max((tmp_path / "scan").rglob("*.dcm")).parent / "6.dcm", voxels[0], (0, 0, 12))
    assert prepare_records(records, tmp_path / "store", settings, workers=0).skipped == 0


def test_one_series_uid_of_two_patients_is_two_volumes(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(1, 4000, (6, 10, 12)).astype(np.uint16)
    for number, patient in enumerate(("P1", "P2")):
        heights = 2.0 * np.arange(6) + number
        write_series(tmp_path, voxels, heights, patient, PatientID=patient, StudyInstanceUID=f"1.{number + 1}")
    index = index_sources([str(tmp_path)])
    assert [entry.spacing[0] for entry in index.entries] == [2.0, 2.0]
    assert index.subjects() == 2


def test_slices_with_a_uid_of_their_own_are_one_series(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(1, 4000, (6, 10, 12)).astype(np.uint16)
    for k, plane in enumerate(voxels):
        write_slice(tmp_path / f"{k}.dcm", plane, (0, 0, 2 * k), SeriesInstanceUID=f"1.2.{k + 1}")
    assert [entry.shape for entry in index_sources([str(tmp_path)]).entries] == [(6, 10, 12)]


def test_equal_instance_uids_make_no_copies(tmp_path: Path) -> None:
    spread(tmp_path / "a", lambda k: "", SOPInstanceUID="1.2.3")
    spread(tmp_path / "b", lambda k: "", SOPInstanceUID="1.2.3", SeriesInstanceUID="1.5")
    for number, path in enumerate(sorted((tmp_path / "b").iterdir())):
        data = pydicom.dcmread(path)
        data.PixelData = (data.pixel_array + number + 1).astype("<u2").tobytes()
        data.save_as(path)
    index = index_sources([str(tmp_path)])
    assert [entry.shape for entry in index.entries] == [(6, 10, 12)] * 2
    assert index.duplicates == []


def test_passes_of_a_ct_are_split_by_acquisition(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(1, 4000, (6, 10, 12)).astype(np.uint16)
    for folder, start in (("overlap", 7.0), ("gap", 60.0)):
        write_series(tmp_path / folder, voxels, prefix="a", AcquisitionNumber=1)
        write_series(tmp_path / folder, voxels, start + 2.5 * np.arange(6), "b", AcquisitionNumber=2)
        entries = index_sources([str(tmp_path / folder)]).entries
        assert [(entry.shape[0], entry.spacing[0]) for entry in entries] == [(6, 2.5), (6, 2.5)]
    write_series(tmp_path / "bolus", voxels, AcquisitionNumber=2)
    write_slice(tmp_path / "bolus" / "tracker.dcm", voxels[0] + 9, (-10, -20, 5.0), AcquisitionNumber=1)
    index = index_sources([str(tmp_path / "bolus")])
    assert [entry.shape for entry in index.entries] == [(6, 10, 12)]
    assert [Path(each.file).name for each in index.excluded] == ["tracker.dcm"]


@pytest.mark.parametrize(("patient", "shown"), [("ANONYMOUS", "the PatientID ANONYMOUS"), ("", "no PatientID")])
def test_people_without_a_name_are_noted(tmp_path: Path, patient: str, shown: str) -> None:
    for number in range(3):
        study = f"1.{number + 1}" if patient else ""
        spread(
            tmp_path,
            lambda k, n=number: f"case{n}",
            PatientID=patient,
            StudyInstanceUID=study,
            SeriesInstanceUID=f"1.9.{number}",
        )
    index = index_sources([str(tmp_path)])
    assert (index.images, index.subjects()) == (3, 1)
    assert f"3 series have {shown} and count as one subject" in index.notes[0]
    assert "subject_pattern" in index.notes[0]
    options = FindOptions(re.compile(r"(?P<subject>[^/]+)/"))
    index = index_sources([str(tmp_path)], options)
    assert (index.subjects(), index.notes) == (3, [])


def test_a_series_in_a_folder_whose_name_is_no_utf_8_is_excluded(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 900, (12, 8, 8)).astype(np.int16)
    write_series(tmp_path / "x" / "good", volume)
    write_series(tmp_path / "x" / "other", volume + 1)
    (tmp_path / "x" / "other").rename(os.fsdecode(bytes(tmp_path / "x") + b"/M\xfcller"))
    index = viewalign.index(tmp_path / "x", tmp_path / "cat.json", workers=0)
    assert index.images == 1
    assert {exclusion.reason for exclusion in index.excluded} == {"its name is not valid UTF-8"}


def test_a_patient_of_two_sources_is_on_one_side_of_a_split(tmp_path: Path) -> None:
    """Also if the studies differ; people without a PatientID of their own are not joined."""
    rng = np.random.default_rng(0)
    for source in "ab":
        for patient in ("ANNA", "ANONYMOUS"):
            tags = {"PatientID": patient, "StudyInstanceUID": f"1.{ord(source)}.{len(patient)}"}
            write_series(tmp_path / source / patient, rng.integers(1, 4000, (20, 24, 24)).astype(np.uint16), **tags)
    records = list(index_sources([str(tmp_path / source) for source in "ab"]).collection.records())
    assert len({record.subject_id for record in records}) == 4
    prepare_records(records, tmp_path / "store", PrepareSettings(), workers=0)
    store = Store.open(tmp_path / "store")
    groups: dict[str, set[str]] = {}
    for subject, group in zip(store.subjects, store.groups, strict=True):
        groups.setdefault(subject.rsplit("__", 1)[-1], set()).add(group)
    assert {patient: len(found) for patient, found in groups.items()} == {
        patient_name("ANNA"): 1,
        patient_name("ANONYMOUS"): 2,
    }


def test_names_of_people_with_accents_are_whole(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(1, 4000, (6, 10, 12)).astype(np.uint16)
    for number in (1, 2):
        folder = tmp_path / unicodedata.normalize("NFD", f"sub-René{number}")
        write_series(folder, voxels, PatientID=f"R{number}", StudyInstanceUID=f"1.{number}")
    assert {entry.subject for entry in index_sources([str(tmp_path)]).entries} == {"sub-René1", "sub-René2"}
