"""Every kind of bad file ends in the report with its reason; the good ones beside it are stored, voxel by voxel.

The corpus is in `made/bad_files.py`. It is indexed and prepared in a separate process, whose peak memory
is measured.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_files import BAD, GOOD, SERIES, array, save, volume, with_voxel

from viewalign.data.catalogue import read_catalogue
from viewalign.data.readers.files import read_volume
from viewalign.data.readers.headers import read_header
from viewalign.data.readers.itk import sitk
from viewalign.data.store import Store
from viewalign.errors import ExcludedImageError

pytestmark = pytest.mark.slow

PEAK = 600e6
"""Bytes a process may take, beside six times the largest volume that was let in."""
RUN = """
import pathlib, sys
from viewalign.data.catalogue import write_catalogue
from viewalign.data.indexing import index_sources, write_excluded
from viewalign.data.prepare import prepare_catalogue
from viewalign.data.readers import dcm2niix
from viewalign.data.settings import PrepareSettings
dcm2niix.executable = lambda: None
scans, catalogue, store = map(pathlib.Path, sys.argv[1:])
index = index_sources([str(scans)])
write_catalogue(index.collection, catalogue)
write_excluded(catalogue, index.excluded)
prepare_catalogue(catalogue, store, PrepareSettings(spacing=None, normalise="none"), workers=0)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the report, the store, the catalogue and the peak memory in bytes of index and prepare over the corpus."""
    folder = tmp_path_factory.mktemp("bad")
    scans = folder / "scans"
    for name, (make, _) in {**BAD, **GOOD}.items():
        scans.mkdir(exist_ok=True)
        make(scans / name)
    for name, (make, _, _) in SERIES.items():
        make(scans / "dicom" / name)
    command = [sys.executable, "-c", RUN, str(scans), str(folder / "cat.json"), str(folder / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = list(read_catalogue(folder / "cat.json").records(folder))
    return {
        "report": json.loads((folder / "store" / "report.json").read_text()),
        "store": Store.open(folder / "store"),
        "ids": {record.path: record.image_id for record in records},
        "scans": scans,
        "peak": 1024 * int(done.stdout.split()[-1]),
    }


def reasons(outcome: dict[str, Any], path: Path) -> list[str]:
    return [entry["reason"] for entry in outcome["report"]["excluded"] if Path(entry["file"]) == path]


def stored(outcome: dict[str, Any], path: Path) -> np.ndarray | None:
    identity = outcome["ids"].get(path)
    store = outcome["store"]
    return store.read(list(store.ids).index(identity))[0] if identity in list(store.ids) else None


def test_the_corpus_is_large_enough() -> None:
    assert len(BAD) + len(SERIES) >= 60


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_excluded_with_its_reason(outcome: dict[str, Any], name: str) -> None:
    path = outcome["scans"] / name
    found = reasons(outcome, path)
    assert len(found) == 1
    assert BAD[name][1] in found[0]
    assert "unexpected" not in found[0]
    assert stored(outcome, path) is None


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_but_right_file_goes_in(outcome: dict[str, Any], name: str) -> None:
    path = outcome["scans"] / name
    assert reasons(outcome, path) == []
    expected = GOOD[name][1].astype(np.float32)
    found = stored(outcome, path)
    flipped = read_volume(path).direction.diagonal() < 0  # RAS files come out in LPS
    expected = np.flip(expected, [axis for axis, flip in enumerate(flipped[::-1]) if flip])
    nonzero = np.argwhere(expected)
    low, high = nonzero.min(0), nonzero.max(0) + 1
    np.testing.assert_array_equal(found, expected[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])


@pytest.mark.parametrize("name", SERIES)
def test_a_series_is_used_or_refused_with_its_reason(outcome: dict[str, Any], name: str) -> None:
    _, used, words = SERIES[name]
    folder = outcome["scans"] / "dicom" / name
    entries = [entry for entry in outcome["report"]["excluded"] if Path(entry["file"]).parent == folder]
    found = [stored(outcome, path) for path in outcome["ids"] if path.parent == folder]
    assert [array is not None for array in found].count(True) == used
    assert bool(entries) == (bool(words) or not used)
    if words:
        assert words in entries[0]["reason"]
    if used:
        np.testing.assert_array_equal(next(array for array in found if array is not None), volume())


def test_nothing_else_is_reported(outcome: dict[str, Any]) -> None:
    names = {Path(entry["file"]).name for entry in outcome["report"]["excluded"]}
    assert names - set(BAD) <= {path.name for path in (outcome["scans"] / "dicom").rglob("*.dcm")}
    assert all(set(entry) == {"file", "reason"} for entry in outcome["report"]["excluded"])


def test_memory_stays_bounded(outcome: dict[str, Any]) -> None:
    largest = max(int(np.prod(shape)) for shape in outcome["store"].shapes) * 4
    assert outcome["peak"] <= PEAK + 6 * largest


def test_forms_that_disagree_are_noted(outcome: dict[str, Any]) -> None:
    header = read_header(outcome["scans"] / "forms_disagree.nii.gz")
    assert header.note == "sform and qform disagree by 4 mm; the qform is used"
    assert header.origin[0] == -9
    image = sitk.ReadImage(str(outcome["scans"] / "forms_disagree.nii.gz"))
    assert image.GetOrigin() == header.origin


def test_two_images_of_one_id(tmp_path: Path) -> None:
    from viewalign.data.catalogue import Record
    from viewalign.data.prepare import prepare_records
    from viewalign.data.settings import PrepareSettings

    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii", array())
    records = [Record("c", "d", "s", "t", "same", tmp_path / f"{name}.nii", "MR") for name in ("a", "b")]
    report = prepare_records(records, tmp_path / "store", PrepareSettings(), workers=0)
    assert report.prepared == 1
    assert [(Path(each.file).name, "the same id c__d__s__t__same" in each.reason) for each in report.excluded] == [
        ("b.nii", True)
    ]


def test_a_file_without_permission_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii"
    save(path, array())
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything, so that only the answer of the system can be imitated
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ExcludedImageError, match="permission"):
        read_volume(path)


def test_all_formats_read_the_same_voxels(tmp_path: Path) -> None:
    for name in ("good.nii.gz", "good.nii", "good.mha", "good.nrrd", "good.mhd", "good.nhdr"):
        save(tmp_path / name, array())
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, array())


def test_factor_and_offset_are_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    save(path, np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    content = bytearray(path.read_bytes())
    struct.pack_into("<ff", content, 112, 2.0, -7.0)
    path.write_bytes(content)
    expected = np.arange(60).reshape(3, 4, 5) * 2.0 - 7.0
    np.testing.assert_array_equal(read_volume(path).array, expected)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_voxels_can_be_filled(tmp_path: Path, value: float) -> None:
    with_voxel(tmp_path / "a.nii.gz", value)
    with pytest.raises(ExcludedImageError, match=r"\b1 of [\d,]+ voxels are (NaN|infinite)"):
        read_volume(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz", fill_nonfinite=True)
    assert volume.filled == 1
    assert volume.array[3, 4, 5] == 0


def test_complex_voxels_of_other_formats_are_a_reason(tmp_path: Path) -> None:
    part = sitk.GetImageFromArray(array())
    sitk.WriteImage(sitk.RealAndImaginaryToComplex(part, part), str(tmp_path / "a.nrrd"))
    with pytest.raises(ExcludedImageError, match="complex numbers"):
        read_header(tmp_path / "a.nrrd")


def test_a_missing_file_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ExcludedImageError, match="does not exist"):
        read_volume(tmp_path / "none.nii.gz")


def test_a_link_to_a_good_file_is_read(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", array())
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").array, array())
