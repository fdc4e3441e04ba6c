from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

import viewalign
from viewalign.data import layout, worker
from viewalign.data import prepare as driver
from viewalign.data.catalogue import AssociatedMasks, Collection, Dataset, Image, Record, Session, Subject
from viewalign.data.indexing import index_sources
from viewalign.data.layout import ImageProgress
from viewalign.data.prepare import prepare_records
from viewalign.data.readers.itk import sitk
from viewalign.data.settings import PrepareSettings
from viewalign.data.shards import Shard
from viewalign.data.sources import Exclusion
from viewalign.data.store import Store
from viewalign.data.worker_pool import WorkerLost
from viewalign.errors import UserError
from viewalign.utils import locks

SMALL = PrepareSettings(spacing=(2.0, 2.0, 2.0))


@pytest.fixture
def records(tmp_path: Path, write_image, make_head) -> list[Record]:
    for n in range(4):
        write_image(tmp_path / "scans" / f"scan{n}.nii.gz", make_head(n), direction=np.diag([-1.0, -1.0, 1.0]))
    return list(index_sources([str(tmp_path / "scans")]).collection.records())


def contents(store: Path) -> dict[str, str]:
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_stores_are_the_same_bytes_for_any_number_of_workers(tmp_path: Path, records: list[Record]) -> None:
    for workers in (0, 1, 2):
        prepare_records(records, tmp_path / f"store{workers}", SMALL, workers)
    made = [contents(tmp_path / f"store{workers}") for workers in (0, 1, 2)]
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 4 + 2 * 4, "header, index, report, lock; two files per image"


def test_what_is_stored_is_normalised_and_reported(tmp_path: Path, records: list[Record]) -> None:
    report = prepare_records(records, tmp_path / "s", SMALL, workers=0)
    assert (report.prepared, report.made, report.skipped, report.excluded) == (4, 4, 0, [])
    assert json.loads((tmp_path / "s/report.json").read_text()) == {"prepared": 4, "excluded": []}
    assert json.loads((tmp_path / "s/store.json").read_text())["images"] == 4
    store = Store.open(tmp_path / "s")
    voxels = store.read(2)
    assert voxels.mean() == pytest.approx(0, abs=1e-4)
    assert voxels.std() == pytest.approx(1, abs=1e-4)
    p = store.properties(2)
    assert p["checksum"] == hashlib.sha256(voxels.tobytes()).hexdigest()
    assert p["original_orientation"] == "RAS"
    assert p["source_bytes"] == records[2].path.stat().st_size
    assert store.subjects[2] == "viewalign__scans__scan2"


def test_defaults_are_those_of_the_settings(tmp_path: Path, records: list[Record]) -> None:
    prepare_records(records[:1], tmp_path / "s", workers=0)
    recipe = json.loads((tmp_path / "s/store.json").read_text())["recipe"]
    assert recipe == PrepareSettings().model_dump(mode="json")


def test_a_second_run_does_only_what_is_missing(tmp_path: Path, records: list[Record], write_image, make_head) -> None:
    store = tmp_path / "s"
    prepare_records(records[:2], store, SMALL, workers=0)
    first = contents(store)
    next(store.rglob("*scan1.b2nd")).write_bytes(b"damaged")
    report = prepare_records(records, store, SMALL, workers=0)
    assert (report.prepared, report.made, report.skipped) == (4, 3, 1)
    again = contents(store)
    assert {name: again[name] for name in first if name.startswith("volumes")} == {
        name: digest for name, digest in first.items() if name.startswith("volumes")
    }
    write_image(records[0].path, make_head(9, (30, 31, 32)))
    report = prepare_records(records, store, SMALL, workers=0)
    assert (report.made, report.skipped) == (1, 3)
    assert Store.open(store).properties(0)["original_shape"] == [30, 31, 32]


def test_an_interrupted_run_leaves_a_store_and_resumes(tmp_path: Path, records: list[Record]) -> None:
    def interrupt(progress: ImageProgress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_records(records, tmp_path / "s", SMALL, workers=0, on_progress=interrupt)
    assert len(Store.open(tmp_path / "s")) == 2
    (tmp_path / "s/volumes/scans/.writing-1-left.b2nd").write_bytes(b"half")
    assert prepare_records(records, tmp_path / "s", SMALL, workers=0).made == 2
    prepare_records(records, tmp_path / "whole", SMALL, workers=0)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_another_recipe_is_rejected_with_both_named(tmp_path: Path, records: list[Record]) -> None:
    prepare_records(records[:1], tmp_path / "s", SMALL, workers=0)
    with pytest.raises(
        UserError,
        match=r"2×2×2 mm.*spacing \[2\.0, 2\.0, 2\.0\].*null.*normalise",
    ):
        prepare_records(records, tmp_path / "s", PrepareSettings(spacing=None, normalise="none"), workers=0)


def test_a_folder_with_other_things_is_rejected(tmp_path: Path, records: list[Record]) -> None:
    with pytest.raises(UserError, match="scans"):
        prepare_records(records, tmp_path / "scans", SMALL, workers=0)


def test_a_crash_is_blamed_on_its_file(tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    def crashing(work, jobs, workers, seconds, executor):
        for job in jobs:
            yield job, WorkerLost("the reader crashed on this file") if job.record.name == "scan1" else work(job)

    monkeypatch.setattr(driver, "run_jobs", crashing)
    report = prepare_records(records, tmp_path / "s", SMALL)
    assert report.prepared == 3
    assert [(Path(r.file).name, r.reason) for r in report.excluded] == [
        ("scan1.nii.gz", "the reader crashed on this file")
    ]


def test_an_unexpected_error_stops_nothing(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = worker.prepare_one

    def failing(job) -> int:
        if job.record.name == "scan2":
            raise ZeroDivisionError("oops")
        return whole(job)

    monkeypatch.setattr(worker, "prepare_one", failing)
    report = prepare_records(records, tmp_path / "s", SMALL, workers=0)
    assert report.prepared == 3
    assert report.excluded[0].reason == "unexpected ZeroDivisionError: oops"


def test_a_full_disk_is_a_sentence_and_nothing_is_lost(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = worker.write_entry

    def full_at_the_third(store, relative, *rest) -> None:
        if relative.endswith("scan2"):
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(store, relative, *rest)

    monkeypatch.setattr(worker, "write_entry", full_at_the_third)
    with pytest.raises(UserError, match=r"disk.*full"):
        prepare_records(records, tmp_path / "s", SMALL, workers=0)
    assert len(Store.open(tmp_path / "s")) == 2
    monkeypatch.setattr(worker, "write_entry", whole)
    assert prepare_records(records, tmp_path / "s", SMALL, workers=0).made == 2


def test_two_images_of_one_id(tmp_path: Path, records: list[Record]) -> None:
    report = prepare_records([records[0], records[0]], tmp_path / "s", SMALL, workers=0)
    assert report.prepared == 1
    assert "the same id" in report.excluded[0].reason


def test_a_file_that_became_bad_leaves_what_was_made_of_it(tmp_path: Path, records: list[Record]) -> None:
    prepare_records(records, tmp_path / "s", SMALL, workers=0)
    records[0].path.write_bytes(b"")
    report = prepare_records(records, tmp_path / "s", SMALL, workers=0)
    assert (report.prepared, report.skipped, report.kept) == (4, 3, 1)
    assert report.excluded[0].reason == "the file is empty (0 bytes); the image that was prepared before is kept"


@pytest.mark.parametrize("workers", [0, 1])
def test_sources_that_are_gone_take_nothing_with_them(tmp_path: Path, records: list[Record], workers: int) -> None:
    prepare_records(records, tmp_path / "s", SMALL, workers=0)
    before = contents(tmp_path / "s")
    records[0].path.unlink()
    report = prepare_records(records, tmp_path / "s", SMALL, workers)
    assert (report.prepared, report.skipped, report.kept) == (4, 3, 1)
    assert report.excluded[0].reason.startswith("the file does not exist; the image that was prepared before is kept")
    (tmp_path / "scans").rename(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"4 .* 4 files"):
        prepare_records(records, tmp_path / "s", SMALL, workers)
    after = contents(tmp_path / "s")
    assert {k: v for k, v in after.items() if k != "report.json"} == {
        k: v for k, v in before.items() if k != "report.json"
    }


def test_a_new_version_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, records: list[Record], write_image, make_head, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_records(records, tmp_path / "s", SMALL, workers=0)
    before = contents(tmp_path / "s")
    write_image(records[1].path, make_head(9, (30, 31, 32)))
    written = []
    whole = layout._write_beside

    def full_at_the_mark(path: Path, content: bytes) -> Path:
        written.append(path.name)
        if path.name == "scan1.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, content)

    monkeypatch.setattr(layout, "_write_beside", full_at_the_mark)
    with pytest.raises(UserError, match=r"disk.*full"):
        prepare_records(records, tmp_path / "s", SMALL, workers=0)
    assert "scan1.b2nd" in written
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha"])
def test_a_source_of_equal_size_and_time_is_seen_to_be_another(tmp_path: Path, write_image, suffix: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 1000, (40, 50, 60)).astype(np.float32)
    path = write_image(tmp_path / "scans" / f"a{suffix}", voxels)
    size, times = path.stat().st_size, (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    records = list(index_sources([str(tmp_path / "scans")]).collection.records())
    settings = PrepareSettings(spacing=None, normalise="none")
    prepare_records(records, tmp_path / "s", settings, workers=0)
    write_image(path, voxels[::-1].copy())
    content = path.read_bytes().ljust(size, b"\0")[:size]
    path.write_bytes(content if suffix != ".nii.gz" else path.read_bytes())
    os.utime(path, ns=times)
    assert prepare_records(records, tmp_path / "s", settings, workers=0).made == 1


def test_every_file_of_a_store_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[tuple[int, int]] = set()
    sync, replace = os.fsync, Path.replace

    def note(handle: int) -> None:
        flushed.add((os.fstat(handle).st_dev, os.fstat(handle).st_ino))
        sync(handle)

    def check(path: Path, target: Path) -> Path:
        assert (path.stat().st_dev, path.stat().st_ino) in flushed, target
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "replace", check)
    assert prepare_records(records[:1], tmp_path / "s", SMALL, workers=0).made == 1


def test_only_pruning_removes_what_left_the_catalogue(tmp_path: Path, records: list[Record], caplog) -> None:
    store = tmp_path / "s"
    prepare_records(records, store, SMALL, workers=0)
    report = prepare_records(records[1:], store, SMALL, workers=0)
    assert (report.prepared, report.others) == (4, 1)
    assert "scan0" in caplog.text
    assert "--prune" in caplog.text
    for number in (1, 2):
        report = prepare_records(records[1:], store, SMALL, workers=0, shard=Shard(number, 2))
    assert (report.prepared, report.others) == (4, 1)
    listed = []
    report = prepare_records(records[1:], store, SMALL, workers=0, prune=lambda places: listed.append(places))
    assert listed == [["volumes/scans/scan0/ses-DEFAULT/scan0"]]
    assert (report.pruned, report.prepared) == (0, 4)
    report = prepare_records(records[1:], store, SMALL, workers=0, prune=lambda _: True)
    assert (report.pruned, report.prepared, len(Store.open(store))) == (1, 3, 3)
    assert not [path for path in store.rglob("*") if "scan0" in str(path.relative_to(store))]
    assert "scan0" not in (store / "index.json").read_text()
    prepare_records(records[1:], store, SMALL, workers=0, prune=lambda _: pytest.fail("nothing left the catalogue"))


def test_pruning_keeps_the_files_of_images_that_lists_exclude(tmp_path: Path, records: list[Record]) -> None:
    store = tmp_path / "s"
    prepare_records(records, store, SMALL, workers=0)
    more = {"workers": 0, "left_out": records[:1]}
    report = prepare_records(records[1:], store, SMALL, prune=lambda _: pytest.fail("nothing left"), **more)
    assert (report.pruned, len(Store.open(store))) == (0, 3)
    assert prepare_records(records, store, SMALL, workers=0).made == 0


@pytest.mark.parametrize("catalogued", [False, True])
def test_pruning_keeps_the_image_of_a_damaged_file(tmp_path: Path, records, caplog, catalogued: bool) -> None:
    source, store = tmp_path / "scans", tmp_path / "s"
    viewalign.prepare(source, store, workers=0)
    (source / "scan1.nii.gz").write_bytes((source / "scan1.nii.gz").read_bytes()[:100])
    if catalogued:
        viewalign.index([source], tmp_path / "cat.json", workers=0)
        source = tmp_path / "cat.json"
    report = viewalign.prepare(source, store, workers=0, prune=lambda _: pytest.fail("nothing left the source"))
    assert (report.prepared, report.skipped, report.kept, report.others) == (4, 3, 1, 0)
    assert [Path(each.file).name for each in report.excluded] == ["scan1.nii.gz"]
    assert "--prune" not in caplog.text
    assert set(json.loads((store / "report.json").read_text())["excluded"][0]) == {"file", "reason"}


def test_a_damaged_file_leaves_its_name_to_no_other(tmp_path: Path, write_image, make_head) -> None:
    """Else the image of another folder would replace the one that is kept."""
    source, store = tmp_path / "sub-01", tmp_path / "s"
    for n, folder in enumerate("ab"):
        write_image(source / folder / "T1w.nii.gz", make_head(n))
    viewalign.prepare(source, store, workers=0)
    before = contents(store / "volumes")
    (source / "a" / "T1w.nii.gz").write_bytes(b"damaged")
    report = viewalign.prepare(source, store, workers=0)
    assert (report.skipped, report.kept, report.others) == (1, 1, 0)
    assert contents(store / "volumes") == before


def test_pruning_is_not_advised_if_the_image_of_an_excluded_file_is_unknown(tmp_path: Path, records, caplog) -> None:
    prepare_records(records, tmp_path / "s", SMALL, workers=0)
    unknown = Exclusion(str(tmp_path / "scans" / "scan0.nii.gz"), "permission denied")
    report = prepare_records(records[1:], tmp_path / "s", SMALL, workers=0, excluded=[unknown])
    assert report.others == 1
    assert "prepare it again with --prune" not in caplog.text
    assert "repair" in caplog.text


def with_masks(tmp_path: Path, write_image, make_head, mask: np.ndarray) -> list[Record]:
    write_image(tmp_path / "a.nii.gz", make_head())
    write_image(tmp_path / "face.nii.gz", mask)
    image = Image("a", "a.nii.gz", "T1w", None, AssociatedMasks("face.nii.gz", None))
    subject = Subject("p", None, {"s": Session("s", None, [image])})
    return list(Collection(1, "c", {"d": Dataset("d", "d", None, {"p": subject})}).records(tmp_path))


def test_the_anonymisation_mask_is_the_anonymisation_mask(tmp_path: Path, write_image, make_head) -> None:
    head = make_head()
    face = (np.arange(head.size).reshape(head.shape) % 3 == 0).astype(np.uint8)
    records = with_masks(tmp_path, write_image, make_head, face)
    prepare_records(records, tmp_path / "s", PrepareSettings(spacing=None), workers=0)
    store = Store.open(tmp_path / "s")
    box = tuple(slice(*pair) for pair in store.properties(0)["crop_box"])
    np.testing.assert_array_equal(store.read_mask(0, "anonymisation"), face[box] == 1)
    assert store.read_mask(0, "anatomy") is None


def test_a_mask_of_another_size_is_rejected(tmp_path: Path, write_image, make_head) -> None:
    records = with_masks(tmp_path, write_image, make_head, np.ones((4, 5, 6), np.uint8))
    report = prepare_records(records, tmp_path / "s", SMALL, workers=0)
    assert "different sizes (4×5×6 and 24×28×20)" in report.excluded[0].reason


@pytest.mark.parametrize(
    ("spacing", "shift", "difference"),
    [((1, 1, 1), 50, "shifted by 50.0 mm"), ((3, 3, 3), 0, "voxel size"), ((1.0001, 1, 1), 0.01, "")],
)
def test_a_mask_at_another_place_is_rejected(
    tmp_path: Path, write_image, make_head, spacing, shift: float, difference: str
) -> None:
    records = with_masks(tmp_path, write_image, make_head, np.ones(make_head().shape, np.uint8))
    write_image(tmp_path / "face.nii.gz", np.ones(make_head().shape, np.uint8), spacing, (0, 0, shift))
    report = prepare_records(records, tmp_path / "s", SMALL, workers=0)
    assert [difference in each.reason for each in report.excluded] == ([True] if difference else [])


def test_progress_reports_every_image(tmp_path: Path, records: list[Record]) -> None:
    told: list[ImageProgress] = []
    prepare_records(records, tmp_path / "s", SMALL, workers=0, on_progress=told.append)
    assert [(p.done, p.total) for p in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_copies_are_found_among_formats_and_stay_on_one_side_of_the_split(tmp_path: Path, write_image) -> None:
    rng = np.random.default_rng(0)
    scans = tmp_path / "scans"
    for name in ("anna", "ben", "cleo", "dora"):
        coarse = rng.uniform(0, 100, (6, 7, 6)).repeat(5, 0).repeat(5, 1).repeat(5, 2).astype(np.float32)
        path = write_image(scans / f"{name}.nii.gz", coarse, (4.0, 4.0, 4.0))
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat64), str(scans / "eve.nrrd"))
    finer = sitk.Resample(image, [45, 53, 45], sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), [2.7, 2.7, 2.7])
    finer.SetOrigin((50.0, 60.0, 70.0))
    sitk.WriteImage(sitk.Cast(finer * 7 + 3, sitk.sitkInt16), str(scans / "fred.mha"))
    records = list(index_sources([str(scans)]).collection.records())
    prepare_records(records, tmp_path / "store", PrepareSettings(spacing=None), workers=0)
    store = Store.open(tmp_path / "store")
    groups = [name.rpartition("__")[2] for name in store.groups]
    assert groups == ["anna", "ben", "cleo", "dora", "dora", "dora"]
    assert [name.rpartition("__")[2] for name in store.subjects] == ["anna", "ben", "cleo", "dora", "eve", "fred"]
    (found,) = json.loads((tmp_path / "store/report.json").read_text())["copies"]
    assert [name.rpartition("__")[2] for name in found] == ["dora", "eve", "fred"]
    lines = (tmp_path / "store/audit.tsv").read_text().splitlines()
    assert lines[0] == "file\tkind\treason"
    assert lines[1] == f"{found[1]}\tcopies\tthe same as {found[0]} and 1 more, or much like it"


def test_findings_of_voxels_are_listed(tmp_path: Path, write_image, make_head) -> None:
    head = make_head(3, (40, 44, 36))
    head[20, 20, 20] = 1e9
    write_image(tmp_path / "scans/hot.nii.gz", head)
    padded = make_head(4, (40, 44, 36)) * 4 - 1000
    padded[:, :4] = -3024
    write_image(tmp_path / "scans/padded.nii.gz", padded)
    cut = make_head(5, (40, 44, 36)) + 1
    cut[30:] = 0
    write_image(tmp_path / "scans/cut.nii.gz", cut)
    records = list(index_sources([str(tmp_path / "scans")]).collection.records())
    report = prepare_records(records, tmp_path / "store", PrepareSettings(), workers=0)
    assert report.index is not None
    assert [entry.suspects for entry in report.index.entries] == [
        {"empty_end": "its last 25% are 0, as in a file that was not copied completely"},
        {"outliers": "extreme values were clipped in 1 voxel"},
        {"padding": "padded with -3024"},
    ]
    prepare_records(records[:0], tmp_path / "store", PrepareSettings(), workers=0, prune=lambda _: True)
    assert not (tmp_path / "store/audit.tsv").exists()


def test_a_second_run_does_not_remove_what_the_first_is_writing(tmp_path: Path, records, monkeypatch) -> None:
    """The header is written under the lock; the sweep of a run that started first removed it half-written."""
    from viewalign.data import store_header

    seen = []
    real = store_header.write_header

    def write(store: Path, *rest) -> None:
        with pytest.raises(UserError, match="is writing into"), locks.lock_folder(store):
            pass
        seen.append(store)
        real(store, *rest)

    monkeypatch.setattr(locks, "_PATIENCE", 0.0)
    monkeypatch.setattr(store_header, "write_header", write)
    prepare_records(records, tmp_path / "s", PrepareSettings(), 0)
    assert seen == [tmp_path / "s"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"it contains notes\.txt and is no earlier store"):
        prepare_records(records, tmp_path / "other", PrepareSettings(), 0)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".run.lock").touch()  # of a run that was killed before it wrote anything
    assert prepare_records(records, tmp_path / "killed", PrepareSettings(), 0).made
