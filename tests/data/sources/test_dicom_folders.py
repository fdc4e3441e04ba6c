from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_enhanced, write_report, write_series

from viewalign.data.indexing import index_sources
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
    assert dict(index.modalities) == {"T2w": 2, "T1w": 1}
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
    assert index.images == 1
    assert [Path(each.file).name for each in index.excluded] == ["90.dcm", "91.dcm"]
    assert all("datalad get" in each.reason for each in index.excluded)


@pytest.mark.parametrize("suffix", ["img", "mr", "ct", "dic", "MRDC"])
def test_slices_of_any_name_are_found_by_their_mark(tmp_path: Path, suffix: str) -> None:
    write_series(tmp_path / "scan", np.random.default_rng(0).integers(1, 4000, (6, 10, 12)).astype(np.uint16))
    for path in list((tmp_path / "scan").iterdir()):
        path.rename(path.with_suffix(f".{suffix}"))
    assert index_sources([str(tmp_path)]).images == 1
