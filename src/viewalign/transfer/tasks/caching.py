"""Prepared cases on disk, so that a second fine-tuning or embedding reads them instead of preparing them again.

A case's key is a hash of the preprocessor's fingerprint and of every file's path, size and time of change. Arrays are
mapped, not read: a fine-tuning then holds no more of its cases in memory than it is using.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from viewalign.transfer.kept_arrays import kept
from viewalign.transfer.tasks.preparation import Preprocessor, Sample

Prepare = Callable[[Mapping[str, Path], Path | None], Sample]
_WHOLE_FILES = (".nii", ".nii.gz", ".mha", ".nrrd", ".b2nd")
"""Files that hold all of an image. A DICOM slice or a detached header says nothing of its neighbours."""


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
    told: list[list[str | int]] = [["preprocessing", preprocessor.fingerprint()]]
    for word, path in named:
        if not path.name.lower().endswith(_WHOLE_FILES) or not path.is_file():
            return None
        facts = path.stat()
        told.append([word, str(path.resolve()), facts.st_size, facts.st_mtime_ns])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
