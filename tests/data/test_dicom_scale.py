"""What is read of DICOM folders grows with the number of files only, not with that of images in a folder."""

from __future__ import annotations

import builtins
import gc
import io
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import deadly
import numpy as np
import pytest
from dicom_files import write_series

import viewalign
from viewalign.data.estimate import survey
from viewalign.data.fingerprint import folder_digest
from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.readers import dicom_headers
from viewalign.data.readers.dicom_folders import folder_state, scan_folders
from viewalign.data.readers.dicom_headers import read_files
from viewalign.data.readers.headers import source_bytes
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store

SLICES = 4


def many_series(folder: Path, count: int) -> Path:
    """Write series into one folder, each of another patient."""
    rng = np.random.default_rng(0)
    for number in range(count):
        voxels = rng.integers(1, 4000, (SLICES, 24, 24)).astype(np.uint16)
        tags = {"PatientID": f"P{number}", "StudyInstanceUID": f"1.{number}", "SeriesInstanceUID": f"2.{number}"}
        write_series(folder, voxels, prefix=f"{number}-", **tags)
    return folder


@pytest.fixture
def access(monkeypatch) -> Counter[str]:
    """Count how often DICOM files are opened or looked at, and how often a folder called `export` is listed."""
    counts: Counter[str] = Counter()

    def counted(module, name: str, kind: str) -> None:
        real = getattr(module, name)

        def call(path=".", *args, **options):
            if not isinstance(path, int) and Path(os.fspath(path)).name.endswith((".dcm", "export")):
                counts[kind] += 1
            return real(path, *args, **options)

        monkeypatch.setattr(module, name, call)

    counted(io, "open", "opened")
    counted(builtins, "open", "opened")
    counted(os, "stat", "status")
    counted(os, "scandir", "listed")
    return counts


def test_a_slice_takes_little_memory(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*"abcdefgh")
    write_series(folder, np.ones((200, 8, 8), np.uint16))
    scan_folders([folder])  # imports, and what is remembered
    tracemalloc.start()
    try:
        (stack,) = scan_folders([folder]).stacks
        gc.collect()
        assert len(stack.frames) == 200
        assert tracemalloc.get_traced_memory()[0] / 200 < 600
    finally:
        tracemalloc.stop()
    assert stack.frames[7].path.is_file()


def test_index_opens_each_file_once(tmp_path: Path, access: Counter[str]) -> None:
    rows = []
    for count in (2, 6):
        folder = many_series(tmp_path / str(count) / "export", count)
        access.clear()
        viewalign.index(folder, tmp_path / f"{count}.json", workers=0)
        rows.append(Counter(access))
    for count, counts in zip((2, 6), rows, strict=True):
        pictures = SLICES * min(count, 4)  # examples on the page, whose pixels are read
        assert counts["opened"] == SLICES * count + pictures
        assert counts["status"] <= 5 * SLICES * count + 20
    assert rows[0]["listed"] == rows[1]["listed"] <= 3


def test_prepare_reads_a_folder_once_for_all_its_images(tmp_path: Path, access: Counter[str]) -> None:
    listed = []
    for count in (2, 6):
        records = index_sources([str(many_series(tmp_path / str(count) / "export", count))]).collection.records()
        access.clear()
        report = prepare_records(records, tmp_path / f"s{count}", PrepareSettings(labels=True), 0)
        assert (report.made, report.excluded) == (count, [])
        assert access["opened"] == 3 * SLICES * count  # content for the digest, header, pixels
        assert access["status"] <= 10 * SLICES * count
        listed.append(access["listed"])
        access.clear()
        assert prepare_records(records, tmp_path / f"s{count}", PrepareSettings(labels=True), 0).skipped == count
        assert access["opened"] == SLICES * count
    assert listed[0] == listed[1] <= 3  # twice, and the folder of this name in the store


def test_files_that_are_no_slices_change_nothing(tmp_path: Path) -> None:
    folder = many_series(tmp_path / "export", 2)
    before, content = source_bytes(folder / "0-s000.dcm"), folder_digest(folder, folder_state(folder))
    records = index_sources([str(folder)]).collection.records()
    assert prepare_records(records, tmp_path / "s", PrepareSettings(labels=True), 0).made == 2
    (folder / "notes.txt").write_text("a patient who moved")
    for path in list(folder.glob("*.dcm")):  # as macOS writes them onto a USB stick
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(4000))
    index = index_sources([str(folder)])
    assert (index.images, index.excluded) == (2, [])
    assert not any("header" in entry.suspects for entry in index.entries)
    assert source_bytes(folder / "0-s000.dcm") == before
    assert folder_digest(folder, folder_state(folder)) == content
    assert prepare_records(records, tmp_path / "s", PrepareSettings(labels=True), 0).skipped == 2


def test_the_files_of_a_shared_folder_are_counted_once(tmp_path: Path) -> None:
    folder = many_series(tmp_path / "d", 4)
    size = sum(path.stat().st_size for path in folder.iterdir())
    records = index_sources([str(folder)]).collection.records()
    report = prepare_records(records, tmp_path / "s", PrepareSettings(labels=True), 0)
    assert sum(entry.bytes for entry in report.index.entries) == pytest.approx(size, abs=4)
    assert sum(each.bytes for each in survey(records, PrepareSettings()).sizes) == size


def test_a_store_of_a_shared_folder_is_that_of_separate_folders(tmp_path: Path) -> None:
    """Slices that are found for all images of a folder together are those that each finds by itself."""
    many_series(tmp_path / "export", 3)
    records = index_sources([str(tmp_path / "export")]).collection.records()
    prepare_records(records, tmp_path / "together", PrepareSettings(labels=True), 0)
    for record in records:  # the only image of its run, so that it shares no folder
        prepare_records([record], tmp_path / "alone", PrepareSettings(labels=True), 0)
    together, alone = Store.open(tmp_path / "together"), Store.open(tmp_path / "alone")
    assert list(together.ids) == list(alone.ids)
    for k in range(3):
        assert together.properties(k) == alone.properties(k)
        np.testing.assert_array_equal(together.read(k), alone.read(k))


def test_a_slice_that_changes_during_the_run_excludes_its_image(tmp_path: Path, monkeypatch) -> None:
    many_series(tmp_path / "export", 2)
    records = index_sources([str(tmp_path / "export")]).collection.records()
    from viewalign.data import worker

    real = worker.read_volume

    def changed_meanwhile(path: Path, *rest):
        volume = real(path, *rest)
        if path == records[0].path:
            os.utime(path, (1, 1))
        return volume

    monkeypatch.setattr(worker, "read_volume", changed_meanwhile)
    report = prepare_records(records, tmp_path / "s", PrepareSettings(labels=True), 0)
    assert [(each.file, each.reason) for each in report.excluded] == [
        (str(records[0].path), "its file changed while it was read")
    ]
    assert report.made == 1


@pytest.mark.slow
def test_headers_read_by_processes_are_the_same_and_a_crash_costs_one_file(tmp_path: Path, monkeypatch) -> None:
    folder = many_series(tmp_path / "export", 3)
    files = sorted(folder.iterdir())
    monkeypatch.setattr(dicom_headers, "_CHUNK", 5)
    expected = read_files(files)
    assert read_files(files, workers=2) == expected
    fatal = files[6].rename(folder / "2-deadly.dcm")
    files[6] = fatal
    monkeypatch.setattr(dicom_headers, "_read_chunk", deadly.read_chunk)
    found = read_files(files, workers=1)
    assert [path for path, _ in found.damaged] == [fatal]
    assert "the reader crashed on this file" in found.damaged[0][1]
    assert [frame.path for frame in found.frames] == [path for path in files if path != fatal]
