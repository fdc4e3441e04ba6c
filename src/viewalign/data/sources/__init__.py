"""Sources of images: a table, a catalogue, a folder, a file or a pattern. Each type is one module.

A module provides `can_read(text) -> bool` and `find(text, options) -> SourceContents`; the first that can read a source
does. Layouts of folders (BIDS, nnU-Net, …) are recognised in `folder`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from viewalign.data.sources import folder, pretrain_data, table
from viewalign.data.sources.records import Exclusion, FindOptions, ImageRecord, Infos, SourceContents
from viewalign.errors import UserError, is_access_error, os_reason

__all__ = ["Exclusion", "FindOptions", "ImageRecord", "Infos", "SourceContents", "SourceType", "find"]


class SourceType(Protocol):
    """Interface of the module of a source type."""

    def can_read(self, text: str) -> bool:
        """Return whether this source is of the type."""

    def find(self, text: str, options: FindOptions) -> SourceContents:
        """List the images of this source without opening them."""


SOURCE_TYPES: Sequence[SourceType] = (table, pretrain_data, folder)


def find(text: str, options: FindOptions) -> SourceContents:
    """List the images of one source.

    Raises:
        UserError: it does not exist.
    """
    for source_type in SOURCE_TYPES:
        if source_type.can_read(text):
            return source_type.find(text, options)
    try:
        os.lstat(text)
    except OSError as error:
        if is_access_error(error):
            raise UserError(f"{text} cannot be read: {os_reason(error)}.") from None
    raise UserError(f"{text} is neither a folder nor a file, nor a pattern with * or ?.")
