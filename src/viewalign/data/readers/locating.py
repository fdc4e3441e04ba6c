"""Location of an image's voxels: its own file, a stack of DICOM files, or dcm2niix's conversion of these."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from viewalign.data.catalogue import SeriesSource
from viewalign.data.file_types import suffix_of
from viewalign.data.readers.dcm2niix import Output, converted
from viewalign.data.readers.dicom_folders import series_of
from viewalign.data.readers.dicom_stacks import Rejected, Stack
from viewalign.data.readers.pointers import missing_content
from viewalign.errors import ExcludedImageError, os_reason


@dataclass(frozen=True)
class Location:
    """Where to read an image.

    Attributes:
        file: the file with header and voxels, for a stack its first.
        stack: the DICOM slices, if any.
        converted: the DICOM slices that another program converted to the file.
        note: on the conversion, as a sentence, or empty.
    """

    file: Path
    stack: Stack | None = None
    converted: Rejected | None = None
    note: str = ""


@contextmanager
def located(path: Path, source: SeriesSource | None, max_voxels: int) -> Iterator[Location]:
    """Yield where to read an image; a file that was converted for it is removed afterwards.

    Args:
        path: the file that names the image; files of no other type are treated as slices of a DICOM series.
        source: what the catalogue states about its series.
        max_voxels: bounds the memory of a conversion.

    Raises:
        ExcludedImageError: the file cannot be read, or its slices form no volume.
    """
    check_file(path)
    if suffix_of(path.name) is not None:
        yield Location(path)
        return
    found = source.slices if source and source.slices else series_of(path, source)
    if isinstance(found, Stack):
        yield Location(path, found)
        return
    with converted(found, max_voxels) as outputs:
        output = _chosen(outputs, source)
        yield location_of(found, output)


def location_of(series: Rejected, output: Output) -> Location:
    """Return the location of an image that dcm2niix converted from a series."""
    note = f"converted by dcm2niix {output.version}, because {series.reason}"
    return Location(output.path, converted=series, note=note)


def _chosen(outputs: Sequence[Output], source: SeriesSource | None) -> Output:
    if source is None or source.output is None:
        if len(outputs) == 1:
            return outputs[0]
        raise ExcludedImageError(f"dcm2niix makes {len(outputs)} images of it; use a catalogue of `viewalign index`")
    for output in outputs:
        if output.key == source.output:
            return output
    raise ExcludedImageError("dcm2niix does not create this image any more; index the folder again")


def check_file(path: Path) -> None:
    """Check that a file, or a folder of DICOM files, exists and can be read.

    Raises:
        ExcludedImageError: it cannot.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ExcludedImageError(missing_content(path) or "the file does not exist") from None
    except OSError as error:
        raise ExcludedImageError(f"the file cannot be reached: {os_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode) and suffix_of(path.name) is None:
        return  # of DICOM files
    if stat.S_ISDIR(status.st_mode):
        raise ExcludedImageError("it is a folder with the name of an image")
    if not stat.S_ISREG(status.st_mode):
        raise ExcludedImageError("it is not a regular file")
    if status.st_size == 0:
        raise ExcludedImageError("the file is empty (0 bytes)")
    if (reason := missing_content(path)) is not None:
        raise ExcludedImageError(reason)
    if not os.access(path, os.R_OK):
        raise ExcludedImageError(f"the file cannot be read: {os_reason(PermissionError(errno.EACCES, ''))}")
