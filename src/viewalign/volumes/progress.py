"""What a long piece of work tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far preparation is.

    Attributes:
        done: images dealt with, in whatever way.
        total: images in all.
        skipped: of those done, already in the store.
        refused: of those done, set aside.
        reason: why the latest image was set aside, or None if it was not.
        file: the latest image.
    """

    done: int
    total: int
    skipped: int
    refused: int
    file: str
    reason: str | None = None


ProgressListener = Callable[[Progress], None]
