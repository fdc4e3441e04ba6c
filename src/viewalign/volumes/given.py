"""From what a person gave, a catalogue or a folder and plain values, to records and settings of a preparation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from viewalign.errors import UserError
from viewalign.given import misfits, nearest
from viewalign.volumes.catalogue import Record, read_catalogue
from viewalign.volumes.indexing import Index, index_sources, read_refused
from viewalign.volumes.quality import quality_scores
from viewalign.volumes.recipe import PrepareSettings
from viewalign.volumes.sources import FindOptions, Refusal

Listener = Callable[[int, int], None]


@dataclass(frozen=True)
class Catalogue:
    """The images of a catalogue or a folder, what was refused while it was made, and quality scores by image id."""

    records: Sequence[Record]
    refused: Sequence[Refusal]
    quality: Mapping[str, float]


def catalogue_of(path: Path, frames: bool = False, on_file: Listener | None = None) -> Catalogue:
    """Read a catalogue, or index a folder, with 4-D files if `frames`.

    Raises:
        UserError: it holds no images.
    """
    if path.is_dir():
        options = FindOptions(None, False, on_file, frames)
        found = index_sources([str(path)], options, on_file=on_file)
        if found.images == 0 and not found.refused:
            raise UserError(nothing_found([str(path)], found))
        collection, refused = found.collection, found.refused
    else:
        collection, refused = read_catalogue(path), read_refused(path)
    records = list(collection.records(path.absolute().parent))
    if not records and not refused:
        raise UserError(f"The catalogue {path} holds no images.")
    return Catalogue(records, refused, quality_scores(collection))


def settings_from(values: Mapping[str, Any], sign: str = "") -> PrepareSettings:
    """Check plain values; `sign` stands before a setting's name in a message, as `--` on a command line.

    Raises:
        UserError: an unknown setting (the nearest right one is named), or a value that does not fit.
    """
    try:
        return PrepareSettings.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"{misfits(error, partial(nearest, known=PrepareSettings.model_fields), sign)}.") from None


def nothing_found(sources: Sequence[str], found: Index) -> str:
    """Say why there is nothing to work with, and what would help."""
    text = f"No volumes were found in {', '.join(sources)}."
    if found.refused:
        first = found.refused[0]
        text += f" {len(found.refused)} files were set aside; the first: {first.file}: {first.reason}."
    if found.label_files:
        text += f" {found.label_files} files look like label maps by their names (--labels takes them in)."
    if not (found.refused or found.label_files):
        text += " Files that end in .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd are read, and DICOM."
    return text
