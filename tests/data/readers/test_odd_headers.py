"""Headers that few programs write: read as the standard says, or excluded with the true reason."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from viewalign.data.catalogue import Record
from viewalign.data.fingerprint import record_digest
from viewalign.data.indexing import index_sources
from viewalign.data.readers.files import read_volume
from viewalign.data.readers.headers import read_header, source_bytes
from viewalign.data.sources import FindOptions
from viewalign.errors import ExcludedImageError

DIMENSIONS, INTENT, DATA_TYPE, PIXDIM, VOX_OFFSET, QFORM_CODE, SFORM_CODE, SFORM = 40, 68, 70, 76, 108, 252, 254, 280
"""Bytes of a NIfTI-1 header."""
VOXELS = np.random.default_rng(0).integers(-500, 3000, (20, 18, 16)).astype("<i2")
NRRD = (
    "NRRD0004\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 16 18 20\n"
    "space directions: (0.8,0,0) (0,0.9,0) (0,0,2)\nendian: little\nencoding: raw\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = 16 18 20\n"
    "ElementSpacing = 0.8 0.9 2\nElementType = MET_SHORT\n"
)


def nifti(path: Path, voxels: np.ndarray = VOXELS, **fields) -> Path:
    """Write voxels (…, D, H, W) with some fields, `offset=(format, values…)` by their names above, replaced."""
    nibabel.save(nibabel.Nifti1Image(voxels.T, np.diag([0.8, 0.9, 2.0, 1.0])), path)
    content = bytearray(path.read_bytes())
    for name, (form, *values) in fields.items():
        struct.pack_into("<" + form, content, globals()[name], *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("offset", "flag"), [(0, True), (0, False), (348, True), (348, False), (352, True)])
def test_voxels_whose_first_byte_is_stated_inside_the_header(
    tmp_path: Path, offset: int, flag: bool, packed: bool
) -> None:
    """Neither nibabel nor ITK finds these; the flag of extensions, four bytes, is often left out."""
    path = nifti(tmp_path / "a.nii", VOX_OFFSET=("f", float(offset)))
    content = path.read_bytes()
    content = content if flag else content[:348] + content[352:]
    if packed:
        path = path.with_name("a.nii.gz")
    path.write_bytes(gzip.compress(content) if packed else content)
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)
    assert ("its header says that voxels begin at byte" in read_header(path).note) == (offset < 352)


def test_a_quaternion_whose_sign_is_zero_is_valid(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", PIXDIM=("f", 0.0), QFORM_CODE=("h", 1), SFORM_CODE=("h", 0))
    assert read_header(path).note == ""


def test_a_sform_that_is_not_a_number_is_replaced_by_the_qform(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", SFORM=("f", float("nan")), QFORM_CODE=("h", 1))
    header = read_header(path)
    np.testing.assert_allclose(header.spacing, (2, 0.9, 0.8), rtol=1e-6)
    np.testing.assert_allclose(header.direction, np.diag([-1, -1, 1]), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "intent"), [((3, 1, 20, 18, 16), 0), ((3, 1, 20, 18, 16), 1007), ((6, 20, 18, 16), 1005)]
)
def test_vectors_are_not_frames(tmp_path: Path, shape: tuple[int, ...], intent: int) -> None:
    path = nifti(tmp_path / "a.nii", np.zeros(shape, np.float32), INTENT=("h", intent))
    for frames in (False, True):
        with pytest.raises(ExcludedImageError, match=f"{shape[0]} components"):
            read_header(path, frames=frames)


def test_frames_of_a_time_series_stay_frames(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", np.zeros((6, 20, 18, 16), np.float32))
    assert read_header(path, frames=True).frames == 6


def test_voxels_of_one_bit(tmp_path: Path) -> None:
    with pytest.raises(ExcludedImageError, match="1 bit per voxel"):
        read_header(nifti(tmp_path / "a.nii", DATA_TYPE=("h", 1)))


def test_a_label_map_by_its_header(tmp_path: Path) -> None:
    """More labels than the look at the voxels takes for a mask."""
    nifti(tmp_path / "atlas.nii", INTENT=("h", 1002))
    index = index_sources([str(tmp_path)])
    assert [each.reason for each in index.excluded] == [
        "its header says that it is a label map; labels=true includes it"
    ]
    assert index_sources([str(tmp_path)], FindOptions(labels=True)).images == 1


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.nrrd", NRRD.replace("space directions", "space origin: (0,0,0)\n#")),
        (
            "a.nrrd",
            NRRD.replace("space: left-posterior-superior\n", "").replace(
                "space directions:", "spacings: nan nan nan\n#"
            ),
        ),
        ("a.mha", META.replace("ElementSpacing = 0.8 0.9 2\n", "") + "ElementDataFile = LOCAL\n"),
    ],
)
def test_a_header_without_voxel_size(tmp_path: Path, name: str, head: str) -> None:
    path = tmp_path / name
    path.write_bytes(head.encode() + (b"\n" if name.endswith("nrrd") else b"") + VOXELS.tobytes())
    header = read_header(path)
    assert header.spacing == (1, 1, 1)
    assert "does not state the size of its voxels" in header.note


@pytest.mark.parametrize(("slope", "offset", "noted"), [("2", "-1024", True), ("1.0", "0", False), ("x", "0", True)])
def test_a_scaling_that_itk_ignores_is_noted(tmp_path: Path, slope: str, offset: str, noted: bool) -> None:
    path = tmp_path / "a.mha"
    keys = f"ElementToIntensityFunctionSlope = {slope}\nElementToIntensityFunctionOffset = {offset}\n"
    path.write_bytes((META + keys + "ElementDataFile = LOCAL\n").encode() + VOXELS.tobytes())
    assert (f"ElementToIntensityFunctionSlope = {slope}" in read_header(path).note) == noted
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.nhdr", NRRD + "data file: LIST\n" + "\n".join(f"s{k:02d}.raw" for k in range(20)) + "\n"),
        ("a.nhdr", NRRD + "data file: s%02d.raw 0 19 1 2\n"),
        ("a.mhd", META + "ElementDataFile = LIST\n" + "\n".join(f"s{k:02d}.raw" for k in range(20)) + "\n"),
        ("a.mhd", META + "ElementDataFile = s%02d.raw 0 19 1\n"),
    ],
)
def test_slices_in_files_of_their_own(tmp_path: Path, name: str, head: str) -> None:
    path = tmp_path / name
    path.write_text(head)
    for k, plane in enumerate(VOXELS):
        (tmp_path / f"s{k:02d}.raw").write_bytes(plane.tobytes())
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, VOXELS)
    np.testing.assert_allclose(volume.spacing, (2, 0.9, 0.8))
    assert source_bytes(path) == len(head) + VOXELS.nbytes
    record = Record("c", "d", "s", "e", "n", path, "MR")
    before = record_digest(record)
    (tmp_path / "s07.raw").write_bytes(VOXELS[8].tobytes())
    assert record_digest(record) != before
    (tmp_path / "s07.raw").unlink()
    with pytest.raises(ExcludedImageError, match=r"the file s07\.raw with its voxels does not exist"):
        read_header(path)
