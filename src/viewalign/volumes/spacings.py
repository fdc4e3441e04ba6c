"""The median voxel size of a catalogue, from headers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from viewalign.errors import RefusedImageError, UserError
from viewalign.volumes.catalogue import Record
from viewalign.volumes.headers import Triple, read_header
from viewalign.volumes.orientation import reorientation_to_lps


def stored_spacing(record: Record) -> Triple | None:
    """Return an image's voxel size in mm along the stored axes (D, H, W), or None where its header is refused."""
    try:
        header = read_header(record.path)
    except RefusedImageError:
        return None
    d, h, w = (header.spacing[axis] for axis in reorientation_to_lps(header.direction).axes)
    return d, h, w


def median_spacing(records: Iterable[Record], on_image: Callable[[int], None] | None = None) -> Triple:
    """Return the median of each stored axis, rounded to a micrometre so that it can be typed.

    Raises:
        UserError: no header can be read.
    """
    found = []
    for number, record in enumerate(records):
        size = stored_spacing(record)
        if size is not None:
            found.append(size)
        if on_image:
            on_image(number + 1)
    if not found:
        raise UserError("There is no median voxel size: no header of the catalogue can be read.")
    d, h, w = (round(float(size), 3) for size in np.median(np.array(found), axis=0))
    return d, h, w
