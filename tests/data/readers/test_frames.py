"""4-D files: excluded, split into channels, or into volumes, by choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

import viewalign
from viewalign.data.audit import audit
from viewalign.data.estimate import survey
from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.readers.files import read_frames
from viewalign.data.settings import PrepareSettings
from viewalign.data.sources import FindOptions
from viewalign.data.store import Store


@pytest.fixture
def series(tmp_path: Path, make_head) -> np.ndarray:
    """Write three frames and a single volume; return the frames (T, D, H, W)."""
    frames = np.stack([make_head(seed) for seed in range(3)])
    (tmp_path / "scans").mkdir()
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(frames.transpose(3, 2, 1, 0), affine), tmp_path / "scans" / "bold.nii.gz")
    nibabel.save(nibabel.Nifti1Image(frames[0].T, affine), tmp_path / "scans" / "single.nii.gz")
    return frames


def found(tmp_path: Path, frames: bool = True):
    return index_sources([str(tmp_path / "scans")], FindOptions(frames=frames))


def test_frames_are_read_as_nibabel_reads_them(tmp_path: Path, series: np.ndarray) -> None:
    volumes = read_frames(tmp_path / "scans" / "bold.nii.gz")
    np.testing.assert_array_equal(np.stack([volume.array for volume in volumes]), series)
    assert volumes[0].spacing == (2.0, 2.0, 2.0)
    assert len(read_frames(tmp_path / "scans" / "single.nii.gz")) == 1


def test_they_are_excluded_unless_requested(tmp_path: Path, series: np.ndarray) -> None:
    index = found(tmp_path, frames=False)
    assert [exclusion.reason for exclusion in index.excluded] == [
        "it has 3 frames (4-D); frames=true of index takes in NIfTI of several"
    ]
    records = list(found(tmp_path).collection.records())
    report = prepare_records(records, tmp_path / "s", PrepareSettings(), 0)
    assert (report.prepared, len(report.excluded)) == (1, 1)
    assert "frames=channels or frames=volumes of prepare" in report.excluded[0].reason
    assert report.index is not None
    assert [row.option for row in audit(report.index) if "4-D" in row.title] == [
        "frames=channels or frames=volumes includes them"
    ]


def test_several_frames_of_other_types_are_not_said_to_be_readable(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    nibabel.save(nibabel.MGHImage(np.ones((8, 8, 8, 3), np.float32), np.eye(4)), tmp_path / "scans" / "bold.mgz")
    reasons = [exclusion.reason for exclusion in found(tmp_path).excluded]
    assert reasons == ["it has 3 frames (4-D), which are read only from .nii and .nii.gz"]


def test_into_channels(tmp_path: Path, series: np.ndarray) -> None:
    settings = PrepareSettings(frames="channels", spacing=None, normalise="none")
    prepare_records(list(found(tmp_path).collection.records()), tmp_path / "s", settings, 0)
    store = Store.open(tmp_path / "s")
    assert store.channels.tolist() == [3, 1]
    box = tuple(slice(*pair) for pair in store.properties(0)["crop_box"])
    np.testing.assert_array_equal(store.read(0), series[(slice(None), *box)])


def test_into_volumes_of_one_subject(tmp_path: Path, series: np.ndarray) -> None:
    settings = PrepareSettings(frames="volumes", spacing=None, normalise="none")
    records = list(found(tmp_path).collection.records())
    report = prepare_records(records, tmp_path / "s", settings, 0)
    assert (report.prepared, report.made) == (4, 4)
    store = Store.open(tmp_path / "s")
    assert [name[-9:] for name in store.ids][:3] == ["frame0000", "frame0001", "frame0002"]
    assert len(set(store.subjects)) == 2
    for k in range(3):
        box = tuple(slice(*pair) for pair in store.properties(k)["crop_box"])
        np.testing.assert_array_equal(store.read(k)[0], series[(k, *box)])

    def contents() -> dict[str, str]:
        files = sorted(path for path in (tmp_path / "s").rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = contents()
    assert prepare_records(records, tmp_path / "s", settings, 0).skipped == 4
    next((tmp_path / "s").rglob("*frame0001.json")).unlink()
    report = prepare_records(records, tmp_path / "s", settings, 0)
    assert (report.made, report.skipped) == (3, 1)
    assert contents() == before


def test_a_list_names_a_frame_by_its_id(tmp_path: Path, series: np.ndarray) -> None:
    def prepare(exclude: Sequence[Path], prune=None):
        listed = [str(path) for path in exclude]
        return viewalign.prepare(
            tmp_path / "scans", tmp_path / "s", workers=0, frames="volumes", exclude=listed, prune=prune
        )

    ids = [entry.file for entry in prepare([]).index.entries]
    frame = next(each for each in ids if each.endswith("bold-frame0001"))
    (tmp_path / "list.txt").write_text(f"{frame}\n")
    report = prepare([tmp_path / "list.txt"], lambda _: pytest.fail("nothing left the source"))
    assert [entry.file for entry in report.index.entries] == [each for each in ids if each != frame]
    assert "frame 1" in report.excluded[0].reason
    assert (report.made, report.prepared, len(Store.open(tmp_path / "s"))) == (0, 3, 3)
    report = prepare([])
    assert (report.made, report.prepared) == (0, 4)


def test_a_bad_frame_is_reported_and_the_stored_image_stays(tmp_path: Path, series: np.ndarray) -> None:
    series[2] = np.nan
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    records = list(found(tmp_path).collection.records())
    settings = PrepareSettings(frames="volumes")
    prepare_records(records, tmp_path / "s", settings, 0)
    nibabel.save(nibabel.Nifti1Image(series.transpose(3, 2, 1, 0), affine), tmp_path / "scans" / "bold.nii.gz")
    report = prepare_records(records, tmp_path / "s", settings, 0)
    assert (report.prepared, report.kept) == (4, 3)
    assert report.excluded[0].reason.startswith("frame 2: 13,440 of 13,440 voxels are NaN")
    assert "the image that was prepared before is kept" in report.excluded[0].reason


def test_a_frame_that_cannot_be_prepared_leaves_none_of_its_image(tmp_path: Path, series: np.ndarray) -> None:
    series[2] = 1.0
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    records = list(found(tmp_path).collection.records())
    nibabel.save(nibabel.Nifti1Image(series.transpose(3, 2, 1, 0), affine), tmp_path / "scans" / "bold.nii.gz")
    report = prepare_records(records, tmp_path / "s", PrepareSettings(frames="volumes"), 0)
    assert (report.prepared, report.kept, len(report.excluded)) == (1, 0, 1)


def test_fewer_frames_than_before(tmp_path: Path, series: np.ndarray) -> None:
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    records = list(found(tmp_path).collection.records())
    settings = PrepareSettings(frames="volumes")
    prepare_records(records, tmp_path / "s", settings, 0)
    nibabel.save(nibabel.Nifti1Image(series[:2].transpose(3, 2, 1, 0), affine), tmp_path / "scans" / "bold.nii.gz")
    assert prepare_records(records, tmp_path / "s", settings, 0).prepared == 3


def test_five_dimensions_stay_rejected(tmp_path: Path) -> None:
    path = tmp_path / "scans" / "five.nii"
    path.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6, 2, 3), np.float32), np.eye(4)), path)
    assert "3 components" in found(tmp_path).excluded[0].reason


@pytest.mark.usefixtures("series")
def test_an_estimate_counts_the_voxels_of_all_frames(tmp_path: Path) -> None:
    records = list(found(tmp_path).collection.records())
    sizes = {one.record.name: one.read for one in survey(records, PrepareSettings(frames="volumes")).sizes}
    assert sizes["bold"] == 3 * sizes["single"]
    (tmp_path / "scans" / "single.nii.gz").unlink()
    assert survey(records, PrepareSettings(frames="exclude")).excluded.total() == 2
