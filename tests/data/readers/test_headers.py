"""Headers that other readers accept too: what is read, and what is noted."""

from __future__ import annotations

import bz2
import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.readers.files import read_volume
from viewalign.data.readers.headers import read_header
from viewalign.data.readers.itk import sitk
from viewalign.data.settings import PrepareSettings
from viewalign.errors import ExcludedImageError

PIXDIM, UNITS = 80, 123
"""Bytes of a NIfTI header."""


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).normal(500, 90, (9, 8, 7)).astype(np.float32)


def nifti(path: Path, voxels: np.ndarray, affine=(0.8, 0.9, 2.0), qform: int = 1, sform: int = 1) -> Path:
    """Write a NIfTI file of voxels (D, H, W) whose affine has this diagonal."""
    matrix = np.diag([*affine, 1.0])
    matrix[:3, 3] = np.multiply(affine, (3, -4, 5))
    image = nibabel.Nifti1Image(voxels.T, matrix)
    image.set_sform(matrix, sform)
    image.set_qform(matrix, qform)
    nibabel.save(image, path)
    return path


def patch(path: Path, offset: int, form: str, *values: float) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + form, content, offset, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("pixdim", "note"),
    [
        ((1, 1, 1), "its header has voxels of 1×1×1 mm and its sform of 2×0.9×0.8 mm; the sform is used"),
        ((-0.8, 0.9, 2), "its voxel size is negative along an axis (2×0.9×-0.8 mm); that of the sform is used"),
        ((0, 0.9, 2), "its voxel size is zero along an axis (2×0.9×0 mm); that of the sform is used"),
    ],
)
def test_the_sform_stands_in_for_wrong_voxel_sizes(tmp_path: Path, voxels: np.ndarray, pixdim, note: str) -> None:
    path = patch(nifti(tmp_path / "a.nii", voxels, qform=0), PIXDIM, "3f", *pixdim)
    header = read_header(path)
    np.testing.assert_allclose(header.spacing, (2, 0.9, 0.8), rtol=1e-6)
    np.testing.assert_allclose(header.origin, (-2.4, 3.6, 10), rtol=1e-6)
    np.testing.assert_array_equal(header.direction, np.diag([-1, -1, 1]))
    assert header.note == note


def test_wrong_voxel_sizes_without_an_sform_are_a_reason(tmp_path: Path, voxels: np.ndarray) -> None:
    path = patch(nifti(tmp_path / "a.nii", voxels, sform=0), PIXDIM, "3f", 0, 0.9, 2)
    with pytest.raises(ExcludedImageError, match="voxel size is zero"):
        read_header(path)


@pytest.mark.parametrize(("code", "unit"), [(1, 1000.0), (3, 1e-3)])
def test_metres_and_micrometres_become_millimetres(tmp_path: Path, voxels: np.ndarray, code: int, unit: float) -> None:
    path = patch(nifti(tmp_path / "a.nii", voxels, np.array([0.8, 0.9, 2]) / unit), UNITS, "B", code)
    header = read_header(path)
    np.testing.assert_allclose(header.spacing, (2, 0.9, 0.8), rtol=1e-6)
    np.testing.assert_allclose(header.origin, (-2.4, 3.6, 10), rtol=1e-6)
    assert header.note == f"its lengths are in units of {unit:g} mm"


def test_no_orientation_is_noted(tmp_path: Path, voxels: np.ndarray) -> None:
    path = nifti(tmp_path / "a.nii", voxels, qform=0, sform=0)
    assert read_header(path).note == "neither sform nor qform is set: which side is left is a guess"


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_content_decides_whether_a_file_is_packed(tmp_path: Path, voxels: np.ndarray, ending: str) -> None:
    plain = nifti(tmp_path / "x.nii", voxels).read_bytes()
    (tmp_path / "x.nii").unlink()
    path = tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(plain) if ending == "nii" else plain)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.origin, (-2.4, 3.6, 10), rtol=1e-6)


def test_what_follows_a_gzip_stream_is_left_alone(tmp_path: Path, voxels: np.ndarray) -> None:
    path = nifti(tmp_path / "a.nii.gz", voxels)
    path.write_bytes(path.read_bytes() + b"garbage" * 9)
    np.testing.assert_array_equal(read_volume(path).array, voxels)


def test_numbers_beyond_float32_are_not_infinite(tmp_path: Path, voxels: np.ndarray) -> None:
    large = voxels.astype(np.float64)
    large[1, 2, 3] = 1e300
    path = nifti(tmp_path / "scans.nii", large)
    assert read_volume(path).array.max() == np.finfo(np.float32).max
    records = list(index_sources([str(path)]).collection.records())
    assert prepare_records(records, tmp_path / "store", PrepareSettings(), workers=0).excluded == []


def test_units_of_nrrd(tmp_path: Path, voxels: np.ndarray) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((800, 900, 2000))
    image.SetOrigin((1000, 2000, -3000))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    head, _, data = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    (tmp_path / "a.nrrd").write_bytes(head + b'\nspace units: "um" "um" "um"\n\n' + data)
    volume = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_allclose((*volume.spacing, *volume.origin), (2, 0.9, 0.8, 1, 2, -3))
    assert read_header(tmp_path / "a.nrrd").note == "its lengths are in units of 0.001 mm"


def test_bzip2_is_named(tmp_path: Path, voxels: np.ndarray) -> None:
    head = b"NRRD0004\ntype: float\ndimension: 3\nsizes: 7 8 9\nendian: little\nencoding: bzip2\n\n"
    (tmp_path / "a.nrrd").write_bytes(head + bz2.compress(voxels.tobytes()))
    with pytest.raises(ExcludedImageError, match="packed with bzip2, which is not read"):
        read_header(tmp_path / "a.nrrd")


def test_a_metaimage_may_end_without_a_newline(tmp_path: Path, voxels: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.mhd"))
    (tmp_path / "a.mhd").write_text((tmp_path / "a.mhd").read_text().rstrip("\n"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mhd").array, voxels)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n", "git lfs pull"),
        ("/annex/objects/MD5E-s123--ab.nii.gz\n", "datalad get"),
        ("../.git/annex/objects/Xx/Yy/MD5E-s1--a.nii.gz/MD5E-s1--a.nii.gz", "datalad get"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.dcm", "IM0001"])
def test_pointers_name_the_command_that_fetches_them(tmp_path: Path, name: str, text: str, command: str) -> None:
    (tmp_path / name).write_text(text)
    if name == "IM0001":  # a slice without suffix is recognised by its content only
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("../.git/annex/objects/a")
        command = "datalad get"
    index = index_sources([str(tmp_path)])
    assert command in index.excluded[0].reason
    assert index.notes == [f"1 listed file: {index.excluded[0].reason}"]


def test_a_voxel_size_that_is_too_small_names_the_setting(tmp_path: Path, voxels: np.ndarray) -> None:
    path = nifti(tmp_path / "a.nii", voxels, (0.02, 0.02, 0.02))
    records = list(index_sources([str(path)]).collection.records())
    report = prepare_records(records, tmp_path / "store", PrepareSettings(), workers=0)
    assert "nothing but one slice would be left" in report.excluded[0].reason
    assert "set a smaller spacing=" in report.excluded[0].reason


@pytest.mark.parametrize("name", ["pair.hdr", "analyze.hdr", "a.mgz", "a.mgh"])
def test_types_of_nibabel_are_read(tmp_path: Path, voxels: np.ndarray, name: str) -> None:
    affine = np.array([[-0.8, 0, 0, 3], [0, 0.9, 0, -4], [0, 0, 2.0, 5], [0, 0, 0, 1]])
    kinds = {"pair.hdr": nibabel.Nifti1Pair, "analyze.hdr": nibabel.AnalyzeImage}
    nibabel.save(kinds.get(name, nibabel.MGHImage)(voxels.T, affine), tmp_path / name)
    index = index_sources([str(tmp_path)])
    assert (index.images, index.excluded, dict(index.other_files)) == (1, [], {})
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.spacing, (2, 0.9, 0.8), rtol=1e-6)
    if name == "analyze.hdr":
        assert "Analyze files have no orientation" in read_header(tmp_path / name).note
    else:
        np.testing.assert_allclose(volume.direction, np.diag([1, -1, 1]), atol=1e-6)
        np.testing.assert_allclose(volume.origin, (-3, 4, 5), rtol=1e-6)
    records = list(index.collection.records())
    assert prepare_records(records, tmp_path / "store", PrepareSettings(), workers=0).excluded == []
    assert prepare_records(records, tmp_path / "store", PrepareSettings(), workers=0).skipped == 1


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_pairs_have_unit_intent_and_notes_of_nifti(tmp_path: Path, voxels: np.ndarray, kind) -> None:
    image = kind(voxels.T, np.diag([50, 60, 70, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "fine.hdr")
    header = read_header(tmp_path / "fine.hdr")
    np.testing.assert_allclose(header.spacing, (0.07, 0.06, 0.05), rtol=1e-6)
    assert header.note == "its lengths are in units of 0.001 mm"
    image = kind(voxels.T, np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    image.header.set_intent("label")
    nibabel.save(image, tmp_path / "atlas.hdr")
    assert "which side is left is a guess" in read_header(tmp_path / "atlas.hdr").note
    index = index_sources([str(tmp_path)])
    assert (index.images, [Path(each.file).name for each in index.excluded]) == (1, ["atlas.hdr"])
    image = kind(voxels.T, np.eye(4))
    image.set_qform(np.eye(4) + np.diag([5.0, 5, 5], 1), 1)
    nibabel.save(image, tmp_path / "both.hdr")
    assert "sform and qform disagree" in read_header(tmp_path / "both.hdr").note


def test_damaged_files_of_nibabel_are_reasons(tmp_path: Path, voxels: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Pair(voxels.T, np.eye(4)), tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    nibabel.save(nibabel.MGHImage(voxels.T, np.eye(4)), tmp_path / "b.mgz")
    content = (tmp_path / "b.mgz").read_bytes()
    (tmp_path / "b.mgz").write_bytes(content[: len(content) // 2])
    (tmp_path / "c.mnc").write_bytes(b"no image at all")
    with pytest.raises(ExcludedImageError, match=r"the file a\.img with its voxels does not exist"):
        read_volume(tmp_path / "a.hdr")
    for name in ("b.mgz", "c.mnc"):
        with pytest.raises(ExcludedImageError, match=r"damaged or truncated|cannot be read"):
            read_volume(tmp_path / name)
