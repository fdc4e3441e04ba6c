"""Prepared cases on disk, so that a second fine-tuning or embedding reads them instead of preparing them again.

A case's key is a hash of the preprocessor's fingerprint and of every file's path, size and time of change. Arrays are
mapped, not read: a fine-tuning then holds no more of its cases in memory than it is using.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from viewalign.transfer.kept_arrays import kept, stamps
from viewalign.transfer.tasks.preparation import Preprocessor, Sample

Prepare = Callable[[Mapping[str, Path], Path | None], Sample]


def cached(preprocessor: Preprocessor, folder: Path | None) -> Prepare:
    """Return a preprocessor that keeps what it made in a folder; the preprocessor itself without a folder."""
    if folder is None:
        return preprocessor

    def prepare(images: Mapping[str, Path], mask: Path | None = None) -> Sample:
        name = key(preprocessor, images, mask)
        if name is None:
            return preprocessor(images, mask)
        return Sample(**kept(folder / name, lambda: vars(preprocessor(images, mask))))

    return prepare


def key(preprocessor: Preprocessor, images: Mapping[str, Path], mask: Path | None) -> str | None:
    """Return what a case is kept under; None where a change of its files could not be told."""
    named = [*sorted(images.items()), *([("mask", mask)] if mask is not None else [])]
    files = stamps(path for _, path in named)
    if files is None:
        return None
    told: list[list[str | int]] = [["preprocessing", preprocessor.fingerprint()]]
    told += [[word, *file] for (word, _), file in zip(named, files, strict=True)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
