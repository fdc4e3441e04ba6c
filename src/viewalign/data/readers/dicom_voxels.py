"""The voxels of a stack, read file by file, so that memory holds one volume and one file.

Uncompressed pixels are read by pydicom. Compressed ones (JPEG, JPEG-LS, JPEG 2000, RLE) are decoded by GDCM, which
gets a file with only the pixels: in a damaged file a wrong length can make it allocate
gigabytes. High-throughput JPEG 2000 is decoded by pydicom's plugins.
"""

from __future__ import annotations

import tempfile
import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from viewalign.data.readers.dicom_files import decoded_by_gdcm
from viewalign.data.readers.dicom_stacks import Stack
from viewalign.data.readers.itk import itk_messages, itk_reason, sitk
from viewalign.errors import ExcludedImageError

_FOR_DECODING = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)


def read_voxels(stack: Stack) -> NDArray[np.float32]:
    """Read all voxels as float32 (D, H, W); slope and intercept of each slice are applied.

    Raises:
        ExcludedImageError: a file is damaged; the reason names it.
    """
    array = np.empty(stack.shape, dtype=np.float32)
    for path, group in groupby(enumerate(stack.frames), key=lambda item: item[1].path):
        pixels = read_pixels(path)
        for place, frame in group:
            if pixels.shape[1:] != frame.size or frame.number >= len(pixels):
                raise ExcludedImageError(f"the slice {path.name} does not have the size in its header")
            slope, intercept = frame.scale
            array[place] = pixels[frame.number]
            if frame.scale != (1.0, 0.0):
                array[place] = pixels[frame.number] * slope + intercept  # float64, rounded once
    return array


def read_pixels(path: Path) -> NDArray[Any]:
    """Return the stored numbers of a file: (frames, rows, columns)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, force=True)
            _name_syntax(data)
            pixels = _decoded(data) if decoded_by_gdcm(data.file_meta.TransferSyntaxUID) else _plain(data)
    except RuntimeError as error:
        raise ExcludedImageError(f"the slice {path.name} is damaged: {itk_reason(error)}") from None
    except MemoryError:
        raise ExcludedImageError(f"there is not enough memory for the slice {path.name}") from None
    except Exception as error:  # pydicom raises many kinds for a damaged file
        raise ExcludedImageError(f"the slice {path.name} is damaged: {error}") from None
    return pixels.reshape(-1, *pixels.shape[-2:])


def _name_syntax(data: Any) -> None:
    """Add the detected encoding of a file without its group 2."""
    if data.file_meta.get("TransferSyntaxUID") is None:
        implicit, _ = data.original_encoding
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _plain(data: Any) -> NDArray[Any]:
    """Read pixels by pydicom, without overlays in the bits above `HighBit` or below the stored ones."""
    allocated = int(data.BitsAllocated)
    stored = int(data.get("BitsStored", allocated))
    spare = allocated - stored
    above = allocated - 1 - int(data.get("HighBit", stored - 1))
    if 0 <= above < spare:  # pydicom would keep the lowest bits
        data.BitsStored, data.HighBit = allocated, allocated - 1
    pixels: NDArray[Any] = data.pixel_array
    if spare > 0 and pixels.dtype.kind in "iu":
        pixels = np.left_shift(pixels, above if 0 <= above < spare else spare) >> spare  # keeps the sign
    return pixels


def _decoded(data: Any) -> NDArray[Any]:
    clean = Dataset()
    clean.file_meta = FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    for keyword in _FOR_DECODING:
        if keyword in data:
            clean[keyword] = data[keyword]
    clean.PhotometricInterpretation = "MONOCHROME2"  # ITK would invert MONOCHROME1, but not where it is not compressed
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        clean.save_as(file.name, enforce_file_format=True)
        with itk_messages():
            image = sitk.ReadImage(file.name)
    pixels: NDArray[Any] = sitk.GetArrayFromImage(image)
    return pixels
