"""DICOM files → stacks → volumes, against what was written and against GDCM's own series reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_enhanced, write_report, write_series, write_slice
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from viewalign.data.readers.dicom_folders import scan_folders, stack_of
from viewalign.data.readers.dicom_stacks import Stack
from viewalign.data.readers.dicom_voxels import read_pixels
from viewalign.data.readers.files import read_volume
from viewalign.data.readers.headers import read_header, source_bytes
from viewalign.data.readers.itk import sitk
from viewalign.errors import ExcludedImageError


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, (6, 10, 12)).astype(np.uint16)


def only_reason(folder: Path) -> str:
    scan = scan_folders([folder])
    assert not scan.stacks
    reasons = [*(found.reason for found in scan.rejected), *(reason for _, reason in (*scan.damaged, *scan.no_slices))]
    assert len(reasons) == 1
    return reasons[0]


def test_a_series_comes_back_in_the_order_of_its_places(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path, voxels)
    volume = read_volume(paths[3])
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.9))
    np.testing.assert_allclose(volume.origin, (-10, -20, 0))
    np.testing.assert_array_equal(volume.direction, np.eye(3))
    assert read_header(paths[0]).note == ""


def test_an_oblique_series_agrees_with_gdcm(tmp_path: Path, voxels: np.ndarray) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn[:, 2] = np.cross(turn[:, 0], turn[:, 1])
    for k, plane in enumerate(voxels):
        write_slice(tmp_path / f"{k}.dcm", plane, 3.0 * k * turn[:, 2], [*turn[:, 0], *turn[:, 1]])
    ours = read_volume(tmp_path / "0.dcm")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs = reader.Execute()
    np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(theirs))
    np.testing.assert_allclose(ours.spacing[::-1], theirs.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(ours.origin, theirs.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(ours.direction.ravel(), theirs.GetDirection(), atol=1e-6)


@pytest.mark.long
def test_the_real_series_agrees_with_gdcm_and_its_unevenness_is_noted(shared_data: Path) -> None:
    folder = shared_data / "dicom_head_mr"
    ours = read_volume(folder / "brain_001.dcm")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(theirs))
    np.testing.assert_allclose(ours.spacing[::-1], theirs.GetSpacing(), rtol=1e-6)
    assert "slightly unequally spaced (6.958 to 7.071 mm)" in read_header(folder / "brain_001.dcm").note


def test_slope_and_intercept_of_each_slice_are_applied(tmp_path: Path, voxels: np.ndarray) -> None:
    for k, plane in enumerate(voxels):
        tags = {"RescaleSlope": 0.5 + k, "RescaleIntercept": -7.0, "Modality": "PT"}
        write_slice(tmp_path / f"{k}.dcm", plane, (0, 0, 2 * k), **tags)
    expected = voxels * (0.5 + np.arange(6))[:, None, None] - 7
    np.testing.assert_allclose(read_volume(tmp_path / "0.dcm").array, expected, rtol=1e-6)


def test_series_of_one_folder_stay_apart(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path, voxels, prefix="a", SeriesInstanceUID="1.2.3")
    write_series(tmp_path, voxels[:, :8] + 1, prefix="b", SeriesInstanceUID="1.2.4")
    write_report(tmp_path / "report.dcm")
    scan = scan_folders([tmp_path])
    assert sorted(stack.shape for stack in scan.stacks) == [(6, 8, 12), (6, 10, 12)]
    assert scan.other == 1
    np.testing.assert_array_equal(read_volume(tmp_path / "b000.dcm").array, voxels[:, :8] + 1)


def test_echoes_of_one_series_are_parted(tmp_path: Path, voxels: np.ndarray) -> None:
    for k, echo in enumerate((4.9, 9.8)):
        write_series(tmp_path, voxels + k, prefix=f"e{k}_", EchoTime=echo)
    labels = {stack.label: stack for stack in scan_folders([tmp_path]).stacks}
    assert set(labels) == {"EchoTime-4.9", "EchoTime-9.8"}
    np.testing.assert_array_equal(read_volume(labels["EchoTime-9.8"].path).array, voxels + 1)


def alternating(folder: Path, voxels: np.ndarray, key: str, values) -> list[Stack]:
    """Write a series whose slices have these values in turn; return its volumes, the lowest first."""
    for k, plane in enumerate(np.concatenate([voxels, voxels])):
        tags = {"EchoTime": 10.0, "ImageType": ["ORIGINAL", "PRIMARY"], key: values[k % len(values)]}
        write_slice(folder / f"{k}.dcm", plane, (0, 0, 2.0 * k), **tags)
    scan = scan_folders([folder])
    assert not scan.rejected
    return sorted(scan.stacks, key=lambda stack: stack.frames[0].position[2])


@pytest.mark.parametrize(("key", "values"), [("EchoTime", (10, 90)), ("InversionTime", (700, 2500, 4000))])
def test_volumes_whose_slices_alternate_are_parted(tmp_path: Path, voxels: np.ndarray, key: str, values) -> None:
    stacks = alternating(tmp_path, voxels, key, values)
    assert [float(stack.label.removeprefix(f"{key}-")) for stack in stacks] == list(values)
    assert [stack.spacing[0] for stack in stacks] == pytest.approx([2.0 * len(values)] * len(values))
    whole = np.concatenate([voxels, voxels])
    for number, stack in enumerate(stacks):
        np.testing.assert_array_equal(read_volume(stack.path).array, whole[number :: len(values)])


def test_a_contrast_that_alternates_irregularly_is_noted(tmp_path: Path, voxels: np.ndarray) -> None:
    (stack,) = alternating(tmp_path / "echoes", voxels, "EchoTime", (10, 90, 90, 10, 10, 90))
    assert "EchoTime changes" in stack.note
    (stack,) = alternating(tmp_path / "types", voxels, "ImageType", (["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"]))
    assert "ImageType changes" in stack.note


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("EchoTime", (2.46, 2.461)),
        ("EchoTime", range(10, 34, 2)),
        ("AcquisitionNumber", (1, 2)),
        ("EchoTime", (10,) * 6 + (90,) * 6),
        ("ImageType", (*[["ORIGINAL", "PRIMARY"]] * 11, ["DERIVED", "PRIMARY"])),
    ],
)
def test_ordinary_attributes_of_slices_are_not_parted(tmp_path: Path, voxels: np.ndarray, key: str, values) -> None:
    (stack,) = alternating(tmp_path, voxels, key, values)
    assert (stack.shape[0], stack.note) == (12, "")


def test_localizers_in_a_series_are_rejected_and_the_rest_is_used(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path, voxels)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_slice(tmp_path / "scout1.dcm", voxels[0], (0, 0, 0), (0, 1, 0, 0, 0, -1), **scout)
    write_slice(tmp_path / "scout2.dcm", voxels[0], (0, 0, 0), (1, 0, 0, 0, 0, -1), **scout)
    scan = scan_folders([tmp_path])
    assert [stack.shape for stack in scan.stacks] == [(6, 10, 12)]
    (rejected,) = scan.rejected
    assert rejected.reason == "2 slices of 8 in planes or sizes of their own: localizers"
    with pytest.raises(ExcludedImageError, match="localizers"):
        read_volume(tmp_path / "scout2.dcm")


def test_a_localizer_of_several_slices_is_no_volume(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path, voxels, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert "localizer" in only_reason(tmp_path)


def test_missing_slices_are_named(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path, voxels)
    paths[3].unlink()
    reason = only_reason(tmp_path)
    assert reason == f"1 slice missing (1 between {paths[2].name} and {paths[4].name})"
    with pytest.raises(ExcludedImageError, match="missing"):
        read_volume(paths[0])


def test_unequal_spacing_is_rejected_and_small_unevenness_noted(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path / "bad", voxels, [0, 2, 4, 7, 9, 11])
    assert "unequally spaced: 2 to 3 mm" in only_reason(tmp_path / "bad")
    paths = write_series(tmp_path / "fine", voxels, [0, 2, 4.05, 6.02, 8, 10])
    header = read_header(paths[0])
    assert "no slice is off by more than 0.05 mm" in header.note
    assert header.spacing[0] == pytest.approx(2.0)


def test_copies_are_left_out_and_contradictions_rejected(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path / "copies", voxels)
    (tmp_path / "copies" / "again.dcm").write_bytes(paths[2].read_bytes())
    write_slice(tmp_path / "copies" / "resent.dcm", voxels[4], (-10.0, -20.0, 10.0))
    volume = read_volume(paths[0])
    np.testing.assert_array_equal(volume.array, voxels)
    assert "copies of 2 slices were dropped" in read_header(paths[0]).note
    paths = write_series(tmp_path / "twice", voxels)
    write_slice(tmp_path / "twice" / "z.dcm", voxels[0] + 5, (-10.0, -20.0, 5.0))
    assert f"nothing in their headers tells them apart ({paths[2].name} and z.dcm)" in only_reason(tmp_path / "twice")


def test_an_enhanced_file_is_read_in_the_order_of_its_places(tmp_path: Path, voxels: np.ndarray) -> None:
    shuffled = [3, 0, 5, 1, 4, 2]
    path = write_enhanced(tmp_path / "e.dcm", voxels[shuffled], 2.5 * np.array(shuffled))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose((*volume.spacing, *volume.origin), (2.5, 0.8, 0.9, -10, -20, 0))


def test_what_an_enhanced_file_cannot_give_is_rejected(tmp_path: Path, voxels: np.ndarray) -> None:
    write_enhanced(tmp_path / "gap" / "e.dcm", voxels, [0, 2, 4, 8, 10, 12])
    assert "1 slice missing" in only_reason(tmp_path / "gap")

    def echo(k: int, frame: Dataset) -> None:
        item = Dataset()
        item.EffectiveEchoTime = float(k // 3)
        frame.MREchoSequence = Sequence([item])

    write_enhanced(tmp_path / "two" / "e.dcm", voxels, [0, 2, 4, 0, 2, 4], echo)
    assert "one file holds 2 volumes" in only_reason(tmp_path / "two")


def test_each_frame_of_an_enhanced_file_may_have_its_own_slope(tmp_path: Path, voxels: np.ndarray) -> None:
    def slope(k: int, frame: Dataset) -> None:
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = 1.0 + k, -2.0, "US"
        frame.PixelValueTransformationSequence = Sequence([item])

    path = write_enhanced(tmp_path / "e.dcm", voxels, None, slope)
    expected = voxels * (1.0 + np.arange(6))[:, None, None] - 2
    np.testing.assert_array_equal(read_volume(path).array, expected.astype(np.float32))


def test_shifted_slices_and_a_tilted_gantry_are_rejected(tmp_path: Path, voxels: np.ndarray) -> None:
    for k, plane in enumerate(voxels):
        write_slice(tmp_path / "shift" / f"{k}.dcm", plane, (9.0 * (k == 2), 0, 2 * k))
        write_slice(tmp_path / "tilt" / f"{k}.dcm", plane, (0, 0.8 * k, 2 * k))
    assert "shifted sideways against each other, by up to 9 mm" in only_reason(tmp_path / "shift")
    assert "its slices are tilted by 21.8° against their axis" in only_reason(tmp_path / "tilt")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: delattr(d, "ImagePositionPatient"), "does not state the position of its slice"),
        (lambda d: delattr(d, "PixelSpacing"), "does not state the size of its pixels"),
        (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "direction matrix is singular"),
        (lambda d: setattr(d, "Rows", 0), "claims 0 rows"),
        (lambda d: setattr(d, "SamplesPerPixel", 3), "3 components (colour)"),
        (lambda d: setattr(d, "Rows", 4000), "truncated: its pixels need"),
        (lambda d: setattr(d, "NumberOfFrames", 2), "2 frames have no positions"),
    ],
)
def test_a_header_that_cannot_be_used_is_rejected(tmp_path: Path, voxels: np.ndarray, change, reason: str) -> None:
    path = write_slice(tmp_path / "a.dcm", voxels[0], (0, 0, 0))
    data = pydicom.dcmread(path)
    change(data)
    data.save_as(path)
    assert reason in only_reason(tmp_path)


def test_damaged_files_are_named(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path, voxels)
    (tmp_path / "text.dcm").write_text("no image at all " * 100)
    content = paths[-1].read_bytes()
    paths[-1].write_bytes(content[:-100])
    scan = scan_folders([tmp_path])
    assert [path.name for path, _ in scan.damaged] == ["text.dcm"]
    with pytest.raises(ExcludedImageError, match=f"{paths[-1].name}|truncated"):
        read_volume(paths[0])


def test_a_slice_that_comes_or_goes_is_noticed(tmp_path: Path, voxels: np.ndarray) -> None:
    paths = write_series(tmp_path, voxels)
    before = source_bytes(paths[0])
    assert stack_of(paths[0]).shape == (6, 10, 12)
    write_slice(tmp_path / "more.dcm", voxels[0], (-10, -20, 15.0))
    assert stack_of(paths[0]).shape == (7, 10, 12)
    assert source_bytes(paths[0]) > before


def examples() -> list[Path]:
    """Return the MR and CT slices that pydicom brings along: every plain and most compressed transfer syntaxes."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return [
        path for pattern in ("MR_small*.dcm", "CT_small.dcm", "J*.dcm", "693*.dcm") for path in folder.glob(pattern)
    ]


@pytest.mark.parametrize("path", examples(), ids=lambda path: path.stem)
def test_pixels_of_every_transfer_syntax_agree_with_gdcm(path: Path) -> None:
    data = pydicom.dcmread(path, stop_before_pixels=True)
    if data.SamplesPerPixel != 1:
        pytest.skip("colour")
    try:
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat64))
    except RuntimeError:
        with pytest.raises(ExcludedImageError, match="damaged"):
            read_pixels(path)
        return
    ours = read_pixels(path) * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    np.testing.assert_array_equal(ours.squeeze(), theirs.squeeze())


def test_files_without_a_suffix_are_recognised_by_their_content(tmp_path: Path, voxels: np.ndarray) -> None:
    for path in write_series(tmp_path, voxels):
        path.rename(path.with_suffix(""))
    (tmp_path / "README").write_text("nothing")
    assert [stack.shape for stack in scan_folders([tmp_path]).stacks] == [(6, 10, 12)]


def test_a_folder_stands_for_its_only_series(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path / "one", voxels)
    np.testing.assert_array_equal(read_volume(tmp_path / "one").array, voxels)
    write_series(tmp_path / "two", voxels)
    write_series(tmp_path / "two", voxels, prefix="b", SeriesInstanceUID="1.2")
    with pytest.raises(ExcludedImageError, match="contains 2 DICOM series; use the path of a file of one"):
        read_volume(tmp_path / "two")
    (tmp_path / "none").mkdir()
    with pytest.raises(ExcludedImageError, match="no DICOM image"):
        read_volume(tmp_path / "none")


def test_deflated_files_are_read(tmp_path: Path, voxels: np.ndarray) -> None:
    for path in write_series(tmp_path, voxels // 100 * 100):
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        data.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path / "s000.dcm").array, voxels // 100 * 100)


def test_monochrome1_is_the_same_compressed_and_not(tmp_path: Path, voxels: np.ndarray) -> None:
    for path in write_series(tmp_path / "rle", voxels, PhotometricInterpretation="MONOCHROME1"):
        data = pydicom.dcmread(path)
        data.PhotometricInterpretation = "MONOCHROME1"
        data.save_as(tmp_path / path.name)
        data.compress(RLELossless)
        data.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path / "s000.dcm").array, voxels)
    np.testing.assert_array_equal(read_volume(tmp_path / "rle" / "s000.dcm").array, voxels)


def test_an_encoding_that_is_not_decoded_is_named(tmp_path: Path, voxels: np.ndarray) -> None:
    for path in write_series(tmp_path, voxels):
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.100")
        data.PixelData = encapsulate([b"\x00\x00\x01\xb3" + bytes(200)])
        data["PixelData"].VR = "OB"
        data.save_as(path)
    scan = scan_folders([tmp_path])
    assert scan.damaged[0][1].startswith("its encoding (MPEG2 Main Profile / Main Level) is not decoded")
