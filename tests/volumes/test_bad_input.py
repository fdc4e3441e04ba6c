"""Every kind of bad file ends in the report with its reason; the good ones beside it go in."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from viewalign.errors import RefusedImageError
from viewalign.volumes.indexing import index_sources
from viewalign.volumes.itk import sitk
from viewalign.volumes.prepare import prepare_records
from viewalign.volumes.reading import read_volume
from viewalign.volumes.recipe import PrepareSettings

PIXDIM, DIM = 80, 42  # byte offsets of pixdim[1] and dim[1] in a NIfTI-1 header


def array() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 10, (12, 14, 16)).astype(np.float32)


def save(path: Path, voxels: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


def patched(path: Path, offset: int, layout: str, *values: float) -> None:
    save(path, array())
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + layout, content, offset, *values)
    path.write_bytes(content)


def cut(path: Path, keep: float) -> None:
    save(path, array())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def flipped(path: Path, compress: bool = False) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(array()), str(path), compress)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def with_voxel(path: Path, value: float) -> None:
    voxels = array()
    voxels[3, 4, 5] = value
    save(path, voxels)


def nifti_of(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    image = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    image.set_qform(None, 0)
    nib.save(image, path)


def sheared() -> np.ndarray:
    affine = np.eye(4)
    affine[0, 1] = 0.5
    return affine


def meta_with_spacing(path: Path, text: bytes) -> None:
    save(path, array())
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = " + text))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "flat.nii.gz": (lambda p: save(p, array()[0]), "2D"),
    "one_slice.nii.gz": (lambda p: save(p, array()[:1]), "one slice"),
    "one_voxel.nii.gz": (lambda p: save(p, array()[:1, :1, :1]), "one voxel"),
    "frames.nii.gz": (lambda p: nifti_of(p, np.stack([array()] * 3, -1)), "3 frames (4-D)"),
    "frames.nrrd": (
        lambda p: sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(array())] * 2), str(p)),
        "2 frames",
    ),
    "truncated.nii.gz": (lambda p: cut(p, 0.5), "damaged or truncated: the compressed stream ends too early"),
    "truncated_tail.nii.gz": (lambda p: cut(p, 0.999), "the compressed stream ends too early"),
    "truncated.nii": (lambda p: cut(p, 0.5), "too short"),
    "truncated.mha": (lambda p: cut(p, 0.5), "too short"),
    "truncated.nrrd": (lambda p: cut(p, 0.5), "too short"),
    "flipped.nii.gz": (flipped, "damaged"),
    "flipped.mha": (lambda p: flipped(p, compress=True), "damaged"),
    "flipped.nrrd": (lambda p: flipped(p, compress=True), "damaged"),
    "nan.nii.gz": (lambda p: with_voxel(p, np.nan), "1 of 2,688 voxels are NaN"),
    "infinite.nii.gz": (lambda p: with_voxel(p, np.inf), "1 of 2,688 voxels are infinite"),
    "constant.nii.gz": (lambda p: save(p, np.full((5, 6, 7), 3.0, np.float32)), "constant: all voxels are 3"),
    "zeros.nii.gz": (lambda p: save(p, np.zeros((5, 6, 7), np.float32)), "all voxels are zero"),
    "spacing_zero.nii": (lambda p: patched(p, PIXDIM, "f", 0.0), "zero along an axis (1×1×0 mm)"),
    "spacing_negative.nii": (lambda p: patched(p, PIXDIM, "f", -1.0), "negative along an axis (1×1×-1 mm)"),
    "spacing_nan.nii": (lambda p: patched(p, PIXDIM, "f", float("nan")), "voxel size is not a number"),
    "spacing_zero.mha": (lambda p: meta_with_spacing(p, b"0 1 1"), "zero along an axis"),
    "spacing_negative.mha": (lambda p: meta_with_spacing(p, b"-1 1 1"), "negative along an axis"),
    "lying.nii": (lambda p: patched(p, DIM, "3h", 900, 900, 900), "too short"),
    "enormous.nii": (lambda p: patched(p, DIM, "3h", 30000, 30000, 30000), "the limit is"),
    "negative_size.nii": (lambda p: patched(p, DIM, "h", -5), "claims a size of -5×14×12"),
    "complex.nii.gz": (lambda p: nifti_of(p, array().astype(np.complex64)), "complex"),
    "colour.nii.gz": (
        lambda p: nifti_of(p, np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "3 components",
    ),
    "sheared.nii.gz": (lambda p: nifti_of(p, array(), sheared()), "sheared"),
    "empty.nii.gz": (lambda p: p.write_bytes(b""), "empty (0 bytes)"),
    "text.nii": (lambda p: p.write_text("no image at all " * 100), "header cannot be read"),
    "text.nii.gz": (lambda p: p.write_text("no image at all " * 100), "header cannot be read"),
    "text.mha": (lambda p: p.write_text("no image at all " * 100), "header cannot be read"),
    "short.nii": (lambda p: p.write_bytes(b"\x5c\x01\x00\x00"), "only 4 of 348 bytes"),
    "folder.nii.gz": (lambda p: p.mkdir(), "a folder with the name of an image"),
    "broken_link.nii.gz": (lambda p: p.symlink_to(p.parent / "nowhere.nii.gz"), "the link is broken"),
}
GOOD = (
    "good.nii.gz",
    "good.nrrd",
    "good.mha",
    "good.nii",
    "good.mhd",
    "good.nhdr",
    "trailing_axis.nii.gz",
    "big_endian.nii",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("bad") / "scans"
    folder.mkdir()
    for name, (make, _) in BAD.items():
        make(folder / name)
    for name in GOOD[:6]:
        save(folder / name, array())
    nifti_of(folder / "trailing_axis.nii.gz", array().transpose(2, 1, 0)[..., None])
    big = nib.Nifti1Image(array().transpose(2, 1, 0), np.eye(4), nib.Nifti1Header(endianness=">"))
    nib.save(big, folder / "big_endian.nii")
    index = index_sources([str(folder)])
    store = folder.parent / "store"
    prepare_records(list(index.collection.records()), store, PrepareSettings(), workers=0, refused=index.refused)
    return json.loads((store / "report.json").read_text())


@pytest.mark.parametrize("name", BAD)
def test_the_reason_is_said(report: dict, name: str) -> None:
    reasons = [entry["reason"] for entry in report["refused"] if Path(entry["file"]).name == name]
    assert len(reasons) == 1
    assert BAD[name][1] in reasons[0]


def test_the_good_ones_go_in_and_the_report_has_its_form(report: dict) -> None:
    assert set(report) == {"prepared", "refused"}
    assert report["prepared"] == len(GOOD)
    assert {Path(entry["file"]).name for entry in report["refused"]} == set(BAD)
    assert all(set(entry) == {"file", "reason"} for entry in report["refused"])


def test_all_formats_read_the_same_voxels(tmp_path: Path) -> None:
    for name in GOOD[:6]:
        save(tmp_path / name, array())
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, array())


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f8"])
def test_every_number_type_of_nifti(tmp_path: Path, dtype: str) -> None:
    voxels = np.arange(60).reshape(3, 4, 5).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(voxels, np.eye(4), header), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(
        read_volume(tmp_path / "a.nii.gz").array, voxels.transpose(2, 1, 0).astype(np.float32)
    )


def test_factor_and_offset_are_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    save(path, np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    content = bytearray(path.read_bytes())
    struct.pack_into("<ff", content, 112, 2.0, -7.0)
    path.write_bytes(content)
    expected = np.arange(60).reshape(3, 4, 5) * 2.0 - 7.0
    np.testing.assert_array_equal(read_volume(path).array, expected)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), expected)


def test_non_finite_voxels_can_be_filled(tmp_path: Path) -> None:
    with_voxel(tmp_path / "a.nii.gz", np.nan)
    volume = read_volume(tmp_path / "a.nii.gz", fill_nonfinite=True)
    assert volume.filled == 1
    assert volume.array[3, 4, 5] == 0


def test_a_missing_file_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(RefusedImageError, match="does not exist"):
        read_volume(tmp_path / "none.nii.gz")


def test_a_link_to_a_good_file_is_read(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", array())
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").array, array())
