"""DICOM files that few scanners write: right values, or excluded with the true reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import dicom_files
import numpy as np
import pydicom
import pytest
from dicom_files import write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from viewalign.data.indexing import index_sources
from viewalign.data.readers.dicom_files import read_frames
from viewalign.data.readers.files import read_volume
from viewalign.errors import ExcludedImageError

VOXELS = np.random.default_rng(0).integers(1, 4000, (6, 24, 20)).astype(np.uint16)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n"


def edited(folder: Path, edit: Callable[[Dataset], object]) -> Path:
    """Write a series and change each of its headers."""
    for path in write_series(folder, VOXELS):
        data = pydicom.dcmread(path)
        edit(data)
        data.save_as(path)
    return folder


def reasons(folder: Path) -> set[str]:
    index = index_sources([str(folder)])
    assert index.images == 0
    return {each.reason for each in index.excluded}


def test_a_lookup_table_of_values_is_not_ignored(tmp_path: Path) -> None:
    def add_table(data: Dataset) -> None:
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
        table.add_new(0x00283006, "US", [0, 1, 4, 9])
        data.ModalityLUTSequence = Sequence([table])

    assert reasons(edited(tmp_path / "d", add_table)) == {
        "a lookup table defines its values (Modality LUT Sequence), which is not supported"
    }


@pytest.mark.parametrize("signed", [0, 1])
def test_values_in_the_upper_bits(tmp_path: Path, signed: int) -> None:
    def shift(data: Dataset) -> None:
        values = np.frombuffer(data.PixelData, "<u2")
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 15, signed
        data.PixelData = (values << 4).astype("<u2").tobytes()

    folder = edited(tmp_path / "d", shift)
    volume = read_volume(index_sources([str(folder)]).collection.records()[0].path)
    expected = np.where(signed & (VOXELS >= 2048), VOXELS.astype(np.int32) - 4096, VOXELS)
    np.testing.assert_array_equal(volume.array, expected)


def test_packed_pixels(tmp_path: Path) -> None:
    def pack(data: Dataset) -> None:
        data.BitsAllocated = data.BitsStored = 12
        data.HighBit = 11

    assert reasons(edited(tmp_path / "d", pack)) == {"its pixels are packed into 12 bits each, which is not read"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_several_values_of_a_slope(tmp_path: Path) -> None:
    folder = edited(tmp_path / "two", lambda data: data.add_new(0x00281053, "DS", ["1", "2"]))
    assert reasons(folder) == {"its header states several values of RescaleSlope: 1, 2"}
    folder = edited(tmp_path / "same", lambda data: data.add_new(0x00281053, "DS", ["2", "2"]))
    volume = read_volume(index_sources([str(folder)]).collection.records()[0].path)
    np.testing.assert_array_equal(volume.array, 2.0 * VOXELS)


def test_two_volumes_of_different_pixels_in_one_file(tmp_path: Path) -> None:
    """A file names one image, so that the second would be lost without a word."""

    def spacing(k: int, frame: Dataset) -> None:
        measures = Dataset()
        measures.PixelSpacing = [0.8, 0.9] if k < 3 else [1.0, 1.1]
        frame.PixelMeasuresSequence = Sequence([measures])

    write_enhanced(tmp_path / "d" / "e.dcm", VOXELS, frame_tags=spacing)
    assert all("one file holds 2 volumes" in reason for reason in reasons(tmp_path / "d"))


def test_a_screenshot_among_slices_is_no_lost_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "d", VOXELS)
    path = tmp_path / "d" / "screen.dcm"
    screen = dicom_files.base("1.2.840.10008.5.1.4.1.1.7", str(path), Modality="OT", SeriesInstanceUID="9.9")
    dicom_files.put_pixels(screen, VOXELS[0])
    screen.save_as(path, enforce_file_format=True)
    index = index_sources([str(tmp_path / "d")])
    assert [each.reason for each in index.excluded] == [
        "it does not state the position of its slice (no position or orientation)"
    ]
    assert "header" not in index.entries[0].suspects


def test_what_a_bare_dataset_without_pixels_is_depends_on_its_class(tmp_path: Path) -> None:
    """Without a file meta header only the dataset itself states its class."""
    for name, kind in (("image.dcm", pydicom.uid.CTImageStorage), ("report.dcm", pydicom.uid.BasicTextSRStorage)):
        data = Dataset()
        data.SOPClassUID = kind
        pydicom.dcmwrite(tmp_path / name, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
    with pytest.raises(ExcludedImageError, match="its header ends before the size of its image"):
        read_frames(tmp_path / "image.dcm")
    assert read_frames(tmp_path / "report.dcm") == []


@pytest.mark.parametrize("end", [min, max])
def test_a_slice_cut_within_its_header_is_named(tmp_path: Path, end) -> None:
    """At the end of a series no gap shows that it is missing."""
    write_series(tmp_path / "d", VOXELS)
    path = end((tmp_path / "d").iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    path.write_bytes(path.read_bytes()[:500])
    index = index_sources([str(tmp_path / "d")])
    assert [each.reason for each in index.excluded] == [
        "the file is truncated: its header ends before the size of its image"
    ]
    assert "slices may be missing" in index.entries[0].suspects["header"]


def test_a_slice_that_was_not_downloaded_is_listed_once(tmp_path: Path) -> None:
    last = write_series(tmp_path / "d", VOXELS)[-1]
    last.write_text(LFS)
    index = index_sources([str(tmp_path / "d")])
    assert [(Path(each.file).name, "git lfs pull" in each.reason) for each in index.excluded] == [(last.name, True)]
    assert "1 file in its folder could not be read" in index.entries[0].suspects["header"]


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    write_series(tmp_path / "d", VOXELS)
    for name in ("a", "b.dcm", "c.nii.gz", "participants.tsv"):
        os.mkfifo(tmp_path / "d" / name)
    index = index_sources([str(tmp_path / "d")])
    assert (index.images, [each.reason for each in index.excluded]) == (1, ["it is not a regular file"])
