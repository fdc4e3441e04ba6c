"""Files and folders that may not be read are named as such, and cost nothing else."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_series

import viewalign
from viewalign.data.indexing import index_sources
from viewalign.data.layout import done_properties
from viewalign.data.prepare import prepare_records
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store, store_from_arrays
from viewalign.errors import ExcludedImageError, UserError, os_reason
from viewalign.tasks.manifest import manifest_file
from viewalign.weights import checkpoints
from viewalign.weights.files import load_checkpoint, read_json
from viewalign.weights.reading import read_source

DENIED = "permission denied"
Deny = Callable[..., None]


@pytest.fixture
def deny(monkeypatch) -> Deny:
    """Return a function that makes a path unreadable as `chmod 000` does, also for root, or fail with another error."""
    denied: dict[Path, int] = {}

    def error_at(path, own: bool) -> OSError | None:
        if isinstance(path, int):
            return None
        place = Path(os.path.abspath(os.fspath(path)))  # noqa: PTH100
        for each, code in denied.items():
            if each in place.parents or (own and each == place):
                return OSError(code, os.strerror(code), str(place))
        return None

    def guarded(module, name: str, own: bool) -> None:
        real = getattr(module, name)

        def call(path=".", *args, **options):
            if (error := error_at(path, own)) is not None:
                raise error
            return real(path, *args, **options)

        monkeypatch.setattr(module, name, call)

    for module, name in ((os, "scandir"), (os, "listdir"), (io, "open"), (builtins, "open")):
        guarded(module, name, own=True)
    guarded(os, "stat", own=False)
    return lambda path, code=errno.EACCES: denied.update({path: code})


@pytest.fixture
def scans(tmp_path: Path, write_image, make_head) -> Path:
    for name in "abc":
        write_image(tmp_path / "scans" / name / f"{name}_T1.nii.gz", make_head(ord(name)))
    return tmp_path / "scans"


def reasons(excluded) -> list[tuple[str, str]]:
    return [(Path(each.file).name, each.reason) for each in excluded]


@pytest.mark.parametrize("name", ["a", "a/a_T1.nii.gz"])
def test_index_and_prepare_of_a_folder(tmp_path: Path, scans: Path, deny: Deny, name: str) -> None:
    records = index_sources([str(scans)]).collection.records()
    deny(scans / name)
    index = index_sources([str(scans)])
    assert index.images == 2
    ((file, reason),) = reasons(index.excluded)
    assert file == Path(name).name
    assert DENIED in reason
    assert "chmod" in reason
    report = prepare_records(records, tmp_path / "s", PrepareSettings(), 0)
    ((file, reason),) = reasons(report.excluded)
    assert (report.made, file) == (2, "a_T1.nii.gz")
    assert DENIED in reason
    assert "damaged" not in reason


def test_most_files_denied_stop_the_preparation(tmp_path: Path, scans: Path, deny: Deny) -> None:
    records = index_sources([str(scans)]).collection.records()
    deny(scans)
    with pytest.raises(UserError, match=r"3 of 3 files of the catalogue .*permission denied.*Nothing was changed"):
        prepare_records(records, tmp_path / "s", PrepareSettings(), 0)


def test_a_folder_whose_files_can_be_listed_but_not_opened(scans: Path, deny: Deny) -> None:
    """As with `chmod 444` on a folder."""
    deny(scans / "a" / "a_T1.nii.gz")
    (scans / "a" / "notes.xyz").touch()
    deny(scans / "a" / "notes.xyz")
    assert reasons(index_sources([str(scans)]).excluded)[0][0] == "a_T1.nii.gz"


@pytest.mark.parametrize(
    ("layout", "denied"),
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01"),
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat"),
        ("sub_1/ses_1/t1.nii.gz", "sub_1"),
        ("PT001_A/sub-01/ses-01/x_T1w.nii.gz", "PT001_A"),
        ("OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz", "OpenMind/ds000001/sub-01"),
    ],
)
def test_layouts_of_datasets(tmp_path: Path, write_image, make_head, deny: Deny, layout: str, denied: str) -> None:
    write_image(tmp_path / "data" / layout, make_head())
    write_image(tmp_path / "data" / layout.replace("1", "2"), make_head(1))
    deny(tmp_path / "data" / denied)
    index = index_sources([str(tmp_path / "data")])
    assert index.images == 1
    assert all(DENIED in each.reason for each in index.excluded)
    assert [Path(each.file) for each in index.excluded] == [tmp_path / "data" / denied]


def test_files_of_a_dataset_that_describe_it(tmp_path: Path, write_image, make_head, deny: Deny) -> None:
    write_image(tmp_path / "imagesTr" / "a_0000.nii.gz", make_head())
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}))
    deny(tmp_path / "dataset.json")
    with pytest.raises(UserError, match=DENIED):
        index_sources([str(tmp_path)])


def test_a_source_that_cannot_be_reached(scans: Path, deny: Deny, monkeypatch) -> None:
    deny(scans / "a")
    monkeypatch.setattr(os.path, "lexists", lambda path: "a_T1" not in str(path))
    monkeypatch.setattr(os, "lstat", lambda path: os.stat(path, follow_symlinks=False))  # noqa: PTH116
    with pytest.raises(UserError, match=DENIED):
        index_sources([str(scans / "a" / "a_T1.nii.gz")])


def test_one_slice_of_a_dicom_series(tmp_path: Path, deny: Deny) -> None:
    voxels = np.random.default_rng(0).integers(1, 4000, (6, 24, 24)).astype(np.uint16)
    first = min(write_series(tmp_path / "d", voxels))
    records = index_sources([str(tmp_path / "d")]).collection.records()
    deny(first)
    excluded = index_sources([str(tmp_path / "d")]).excluded
    assert DENIED in dict(reasons(excluded))[first.name]
    report = prepare_records(records, tmp_path / "s", PrepareSettings(labels=True), 0)
    assert DENIED in report.excluded[0].reason


def test_the_index_of_a_store_is_not_written_without_images_that_cannot_be_read(
    tmp_path: Path, scans: Path, deny: Deny
) -> None:
    records = index_sources([str(scans)]).collection.records()
    prepare_records(records, tmp_path / "s", PrepareSettings(), 0)
    before = (tmp_path / "s" / "index.json").read_bytes()
    deny(tmp_path / "s" / "volumes" / "scans")
    with pytest.raises((OSError, UserError), match=r"(?i)permission denied"):
        prepare_records(records[:0], tmp_path / "s", PrepareSettings(), 0)
    with pytest.raises(UserError, match="Permission denied"):
        viewalign.verify(tmp_path / "s")
    with pytest.raises(ExcludedImageError, match=DENIED):
        Store.open(tmp_path / "s").read(0)
    assert (tmp_path / "s" / "index.json").stat().st_size == len(before)


def test_an_image_whose_properties_may_not_be_read_is_not_taken_for_unfinished(tmp_path: Path, deny: Deny) -> None:
    """It would be prepared again and replaced."""
    store_from_arrays(tmp_path, {"a": np.random.default_rng(0).normal(size=(8, 8, 8))})
    properties = next((tmp_path / "volumes").rglob("*.json"))
    relative = properties.relative_to(tmp_path).with_suffix("").as_posix()
    assert done_properties(tmp_path, relative) is not None
    assert done_properties(tmp_path, f"{relative}x") is None
    deny(properties)
    with pytest.raises(PermissionError):
        done_properties(tmp_path, relative)


@pytest.mark.parametrize("name", ["store.json", "index.json"])
def test_files_of_a_store(tmp_path: Path, deny: Deny, name: str) -> None:
    store_from_arrays(tmp_path, {"a": np.random.default_rng(0).normal(size=(8, 8, 8))})
    deny(tmp_path / name)
    with pytest.raises(UserError, match=DENIED):
        Store.open(tmp_path)


def test_tables_and_weights(tmp_path: Path, deny: Deny) -> None:
    (tmp_path / "table.csv").write_text("path\na.nii.gz\n")
    (tmp_path / "w.pth").write_bytes(b"0")
    (tmp_path / "facts.json").write_text("{}")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "manifest.csv").write_text("case\n")
    for name in ("table.csv", "w.pth", "facts.json", "task"):
        deny(tmp_path / name)
    with pytest.raises(UserError, match=DENIED):
        index_sources([str(tmp_path / "table.csv")])
    with pytest.raises(UserError, match=DENIED):
        load_checkpoint(tmp_path / "w.pth")
    with pytest.raises(UserError, match=DENIED):
        read_json(tmp_path / "facts.json")
    (tmp_path / "run").mkdir()
    deny(tmp_path / "run")
    for read in (viewalign.load_encoder, read_source):
        with pytest.raises(UserError, match="cannot be used: Permission denied"):
            read(tmp_path / "run")
    with pytest.raises(UserError, match="no task"):
        manifest_file(tmp_path / "task" / "manifest.csv")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["checkpoint.json", "state.pt"])
def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_damaged(
    tmp_path: Path, deny: Deny, name: str, code: int
) -> None:
    """A lost network share must not make a run rename its newest checkpoint and resume from an older one."""
    for step in (2, 4):
        checkpoints.save(tmp_path, step, {"format": checkpoints.FORMAT, "step": step})
    newest = checkpoints.path_of(tmp_path, 4)
    deny(newest / name, code)
    with pytest.raises(UserError, match=f"{newest} cannot be read") as error:
        checkpoints.resume_newest(tmp_path)
    assert os_reason(OSError(code, "")) in str(error.value)
    assert checkpoints.steps(tmp_path) == [2, 4]
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.save(tmp_path, 4, {"format": checkpoints.FORMAT, "step": 4})
    assert checkpoints.steps(tmp_path) == [2, 4]
