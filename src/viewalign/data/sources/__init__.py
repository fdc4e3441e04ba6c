"""Where images come from. Each kind of source is one file and one line in `KINDS`.

A kind offers `claims(text) -> bool`, whether a SOURCE of the command line is of its kind, and
`find(text, options) -> Findings`, the images in it. The first kind that claims a source has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from viewalign.data.sources import bids, folder, fomo, nnunet, openmind, pretrain_data, table
from viewalign.data.sources.records import Exclusion, FindOptions, ImageRecord, Infos, SourceContents
from viewalign.errors import UserError

__all__ = ["KINDS", "Exclusion", "FindOptions", "ImageRecord", "Infos", "Kind", "SourceContents", "find"]


class SourceType(Protocol):
    """What the file of a kind of source offers."""

    def claims(self, text: str) -> bool:
        """Say whether this SOURCE is of the kind."""

    def find(self, text: str, options: FindOptions) -> SourceContents:
        """List the images of this SOURCE, none of them opened."""


KINDS: Sequence[SourceType] = (
    table,
    pretrain_data,
    nnunet,
    openmind,
    bids,
    fomo,
    folder,  # and the DICOM stacks in it
)


def find(text: str, options: FindOptions) -> SourceContents:
    """List the images of one SOURCE.

    Raises:
        UserError: no kind of source knows it.
    """
    for kind in KINDS:
        if kind.claims(text):
            return kind.find(text, options)
    raise UserError(f"There is no folder or file {text}, and it is no pattern with * or ?.")
