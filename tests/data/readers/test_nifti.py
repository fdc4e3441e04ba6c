"""Voxels of NIfTI files against nibabel's, and the memory that reading takes."""

import tracemalloc

import nibabel
import numpy as np
import pytest

from viewalign.data.readers.nifti import read_header, read_voxels
from viewalign.errors import ExcludedImageError


def write(path, dtype, slope=1.0, inter=0.0, shape=(7, 6, 5)):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    values = (np.random.default_rng(0).normal(size=shape) * 100).round().astype(dtype)
    image = nibabel.Nifti1Image(values, np.eye(4), header)
    image.header.set_slope_inter(slope, inter)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (0.37, -12.5)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "uint16", "int32", "float32", ">f4", "float64"])
def test_voxels_are_nibabels(tmp_path, dtype, slope, inter, ending):
    path = write(tmp_path / f"image{ending}", np.dtype(dtype), slope, inter)
    expected = nibabel.load(path).get_fdata(dtype=np.float64).astype(np.float32).T
    voxels = read_voxels(path, read_header(path))
    assert voxels.dtype == np.float32
    assert np.allclose(voxels, expected, rtol=1e-6, atol=1e-5)
    if (slope, inter) == (1.0, 0.0):
        assert np.array_equal(voxels, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("int16", 6.5), ("float32", 4.5)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_reading_takes_the_file_s_bytes_and_the_result(tmp_path, dtype, most, ending):
    path = write(tmp_path / f"image{ending}", np.dtype(dtype), shape=(256, 256, 256))
    header = read_header(path)
    tracemalloc.start()
    try:
        voxels = read_voxels(path, header)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / voxels.size < most


def test_a_wrong_checksum_is_found_though_nibabel_accepts_it(tmp_path):
    path = write(tmp_path / "image.nii.gz", np.dtype("int16"), shape=(64, 64, 64))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    nibabel.load(path).get_fdata()
    with pytest.raises(ExcludedImageError, match="CRC"):
        read_voxels(path, read_header(path))
