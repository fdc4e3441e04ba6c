"""Headers of DICOM files: their slices, without pixels.

Headers are read with pydicom, not through SimpleITK: it does not expose sequences, in which enhanced
multi-frame files store the position of every frame.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import Tag
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes, RLELossless

from viewalign.data.file_types import suffix_of
from viewalign.data.readers.dicom_slices import Frame, NoSliceError, Series
from viewalign.data.readers.pointers import missing_content
from viewalign.errors import ExcludedImageError, os_reason

_BY_NAME = (".dcm", ".dicom", ".ima")
_OTHER_TYPE = re.compile(
    r"\.(json|txt|csv|tsv|xml|html|pdf|md|log|ya?ml|py|m|mat|np[yz]|pkl|pth?|h5|zip|tar|gz|bz2|png|jpe?g|tiff?|gif|bmp|svg"
    r"|bval|bvec|z?raw|b2nd|xlsx|docx|db)"
)
"""Types that are not DICOM; a file of any other is opened for the mark at byte 128."""
_TRAITS = (
    "TemporalPositionIdentifier",
    "EchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "ImageType",
    "InversionTime",
    "TriggerTime",
    "AcquisitionNumber",
)
_TAGS = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID SeriesNumber SeriesDescription PatientID Modality
    InstanceNumber Units
    Rows Columns SamplesPerPixel BitsAllocated ModalityLUTSequence NumberOfFrames PixelSpacing ImagePositionPatient
    ImageOrientationPatient RescaleSlope RescaleIntercept PhotometricInterpretation
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""
_WANTED = [Tag(keyword) for keyword in (*_TAGS.split(), *_TRAITS)]
_NO_IMAGES = ("SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTRECORD", "RTDOSE", "REG", "SEG", "DOC", "ECG", "AU", "PLAN")


def may_be_dicom(path: Path) -> bool:
    """Return whether to open a file: by its name, or, unless the name is of another type, by its bytes 128–131."""
    by_name = is_dicom_name(path.name)
    if by_name is not None:
        return by_name
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return _has_mark(file)
    except OSError:
        return missing_content(path) is not None  # a slice of an export may have no suffix


def is_dicom_name(name: str) -> bool | None:
    """Return whether a file is DICOM by its name, hidden ones (`._im1.dcm` of macOS) never; None: content decides."""
    suffix = Path(name).suffix.lower()
    if name.startswith("."):
        return False
    if suffix in _BY_NAME:
        return True
    return False if suffix_of(name) or _OTHER_TYPE.fullmatch(suffix) else None


def _has_mark(file: BinaryIO) -> bool:
    return file.read(132)[128:] == b"DICM"


def read_if_dicom(path: Path) -> list[Frame] | None:
    """Read the slices in a file as `read_frames`, opened once; None if `may_be_dicom` rejects it.

    Raises:
        ExcludedImageError: damaged, colour, truncated, without positions, or not downloaded.
    """
    by_name = is_dicom_name(path.name)
    if by_name is False:
        return None
    try:
        return _read_guarded(path, by_name is None)
    except NoSliceError:
        raise
    except ExcludedImageError as exclusion:
        raise ExcludedImageError(missing_content(path) or str(exclusion)) from None


def read_frames(path: Path) -> list[Frame]:
    """Read the slices in a file; none if it is DICOM without an image (reports, contours, DICOMDIR).

    Raises:
        ExcludedImageError: damaged, colour, truncated, or without positions.
    """
    return _read_guarded(path, need_mark=False) or []


def _read_guarded(path: Path, need_mark: bool) -> list[Frame] | None:
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # pydicom warns of every value that is not quite to the standard
            if need_mark and not _has_mark(file):
                return None
            file.seek(0)
            return _read(path, file)
    except ExcludedImageError:
        raise
    except (InvalidDicomError, EOFError):
        raise ExcludedImageError("it is not a DICOM file, despite its name") from None
    except OSError as error:
        raise ExcludedImageError(f"the file cannot be read: {os_reason(error)}") from None
    except Exception as error:  # pydicom raises many kinds for a damaged header
        raise ExcludedImageError(f"its DICOM header is damaged: {type(error).__name__}: {error}") from None


@lru_cache(maxsize=4096)
def _shared(value: Any, kind: str = "") -> Any:  # noqa: ARG001 - (1, 1) equals (1.0, 1.0)
    """Return the first value of a kind that equals this one, so that the slices of a series share one object."""
    return value


def pixel_digest(path: Path) -> bytes:
    """Return a digest of the pixels of a file as they are stored; of its path if they cannot be read."""
    return _pixel_digest(os.fspath(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _pixel_digest(path: str, _changed: int) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = bytes(pydicom.dcmread(path, force=True).PixelData)
    except Exception:  # errors are reported when it is read
        content = os.fsencode(path)
    return hashlib.sha256(content).digest()


def _read(path: Path, file: BinaryIO) -> list[Frame]:
    data = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_WANTED)
    if "SOPClassUID" not in data and "MediaStorageSOPClassUID" not in data.file_meta:
        raise ExcludedImageError("it is not a DICOM file, despite its name")
    if str(data.get("Modality", "")) in _NO_IMAGES:
        return []
    if "Rows" not in data:
        if "Image Storage" in _sop_class(data).name:
            raise ExcludedImageError("the file is truncated: its header ends before the size of its image")
        return []
    _check(data, os.fstat(file.fileno()).st_size)
    return list(_frames(path, data))


def _check(data: Any, present: int) -> None:
    """Check that pixels are of a supported kind, and that a file of `present` bytes can hold them."""
    if int(data.get("SamplesPerPixel", 1)) != 1:
        raise NoSliceError(f"its pixels have {data.SamplesPerPixel} components (colour)")
    if "PALETTE" in str(data.get("PhotometricInterpretation", "")):
        raise NoSliceError("its pixels are numbers of a palette (colour)")
    if data.get("ModalityLUTSequence"):
        raise NoSliceError("a lookup table defines its values (Modality LUT Sequence), which is not supported")
    if (bits := int(data.get("BitsAllocated", 16))) % 8 and bits != 1:
        raise NoSliceError(f"its pixels are packed into {bits} bits each, which is not read")
    if min(int(data.Rows), int(data.Columns)) < 1:
        raise ExcludedImageError(f"its header claims {data.Rows} rows and {data.Columns} columns")
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated:
        _check_decoder(syntax)
    elif syntax is None or not syntax.is_deflated:
        needed = int(data.Rows) * int(data.Columns) * _count(data) * int(data.get("BitsAllocated", 16)) // 8
        if present < needed:
            raise ExcludedImageError(f"the file is truncated: its pixels need {needed:,} bytes, it holds {present:,}")


def decoded_by_gdcm(syntax: UID) -> bool:
    """Return whether GDCM decodes a compressed transfer syntax: JPEG, JPEG-LS, JPEG 2000 or RLE, but not HTJ2K."""
    return syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes, RLELossless) and (
        "High-Throughput" not in syntax.name
    )


def _check_decoder(syntax: UID) -> None:
    try:
        decoded = decoded_by_gdcm(syntax) or get_decoder(syntax).is_available
    except NotImplementedError:
        decoded = False
    if not decoded:
        raise ExcludedImageError(
            f"its encoding ({syntax.name}) is not decoded; 'pip install pylibjpeg pylibjpeg-openjpeg' may help"
        )


def _frames(path: Path, data: Any) -> Iterator[Frame]:
    series, folder = _series(data), _shared(str(path.parent))
    count = _count(data)
    each = list(data.get("PerFrameFunctionalGroupsSequence") or [])
    if each and len(each) != count:
        raise ExcludedImageError(f"it claims {count} frames but describes {len(each)}")
    if not each and count > 1:
        raise NoSliceError(f"its {count} frames have no positions (a film or a scan of a screen, no volume)")
    shared = (list(data.get("SharedFunctionalGroupsSequence") or []) or [None])[0]
    for number, own in enumerate(each or [None]):
        groups = [group for group in (own, shared) if group is not None]
        position = _numbers(_value(groups, "PlanePositionSequence", "ImagePositionPatient", data), 3)
        orientation = _numbers(_value(groups, "PlaneOrientationSequence", "ImageOrientationPatient", data), 6)
        pixel = _numbers(_value(groups, "PixelMeasuresSequence", "PixelSpacing", data), 2)
        if position is None or orientation is None:
            raise NoSliceError("it does not state the position of its slice (no position or orientation)")
        if pixel is None:
            raise ExcludedImageError("it does not state the size of its pixels (no PixelSpacing)")
        yield Frame(
            series,
            folder,
            path.name,
            number,
            count,
            str(data.get("SOPInstanceUID", path.name)),
            position,
            _unit(orientation),
            _shared((pixel[0], pixel[1]), "pixel"),
            _shared((int(data.Rows), int(data.Columns)), "size"),
            _shared(_traits(data, own)),
            _shared(_scale(groups, data), "scale"),
            _integer(data.get("InstanceNumber")),
        )


def _series(data: Any) -> Series:
    study = str(data.get("StudyInstanceUID", ""))
    series: Series = _shared(
        Series(
            uid=str(data.get("SeriesInstanceUID", "")),
            study=study,
            patient=str(data.get("PatientID") or "") or study,
            number=_integer(data.get("SeriesNumber")),
            description=str(data.get("SeriesDescription") or ""),
            modality=str(data.get("Modality") or ""),
            units=str(data.get("Units") or ""),
        )
    )
    return series


def _traits(data: Any, own: Any) -> tuple[tuple[str, str], ...]:
    found = {key: str(data[key].value) for key in _TRAITS if key in data}
    if own is not None:
        inner = (
            ("FrameContentSequence", "TemporalPositionIndex"),
            ("MREchoSequence", "EffectiveEchoTime"),
            ("MRDiffusionSequence", "DiffusionBValue"),
            ("MRImageFrameTypeSequence", "FrameType"),
            ("FrameContentSequence", "StackID"),
        )
        for sequence, key in inner:
            if (value := _value([own], sequence, key, None)) is not None:
                found[key] = str(value)
    return tuple(found.items())


def _scale(groups: list[Any], data: Any) -> tuple[float, float]:
    slope = _value(groups, "PixelValueTransformationSequence", "RescaleSlope", data)
    intercept = _value(groups, "PixelValueTransformationSequence", "RescaleIntercept", data)
    scale = _one_number("RescaleSlope", slope, 1.0), _one_number("RescaleIntercept", intercept, 0.0)
    if not np.isfinite(scale).all() or scale[0] == 0:
        raise ExcludedImageError(f"its rescale slope {scale[0]:g} and intercept {scale[1]:g} make no values")
    return scale


def _one_number(key: str, value: Any, default: float) -> float:
    values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if len({*values}) > 1:
        raise ExcludedImageError(f"its header states several values of {key}: {', '.join(map(str, values))}")
    return default if not values or values[0] in (None, "") else float(values[0])


def _sop_class(data: Any) -> UID:
    return UID(str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or ""))


def _value(groups: list[Any], sequence: str, key: str, data: Any) -> Any:
    """Return a value from the first functional group that has it, else from the file itself."""
    for group in groups:
        for item in group.get(sequence) or []:
            if item.get(key) is not None:
                return item.get(key)
    return data.get(key) if data is not None else None


def _integer(value: Any) -> int | None:
    return None if value in (None, "") else int(value)


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    if values is None or len(values) != count:
        return None
    numbers = tuple(float(value) for value in values)
    if not np.isfinite(numbers).all():
        raise ExcludedImageError("its position, direction or pixel size is not a number")
    return numbers


@lru_cache(maxsize=1024)
def _unit(orientation: tuple[float, ...]) -> tuple[float, ...]:
    vectors = np.array(orientation).reshape(2, 3)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if lengths.min() < 1e-6 or np.linalg.norm(np.cross(*(vectors / lengths))) < 1e-3:
        raise ExcludedImageError("its direction matrix is singular")
    return tuple(float(value) for value in (vectors / lengths).ravel())


def _count(data: Any) -> int:
    return max(1, int(data.get("NumberOfFrames") or 1))
