"""Conversion of a catalogue or folder and plain values to records and settings of a preparation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.data.catalogue import Collection, Dataset, Image, Record, read_catalogue
from viewalign.data.exclusions import ExclusionList
from viewalign.data.file_types import SUFFIXES
from viewalign.data.geometry import reorientation_to_lps
from viewalign.data.indexing import Index, index_sources, read_excluded
from viewalign.data.readers.headers import Triple, read_header
from viewalign.data.settings import PrepareOptions, PrepareSettings
from viewalign.data.sources import Exclusion, FindOptions
from viewalign.data.worker import place_of
from viewalign.errors import ExcludedImageError, UserError
from viewalign.utils.text import counted

_log = logging.getLogger(__name__)
Listener = Callable[[int, int], None]


@dataclass(frozen=True)
class Catalogue:
    """The images of a catalogue or a folder.

    Attributes:
        records: the images.
        excluded: files that cannot be used or that lists exclude.
        quality: scores by image id.
        left_out: images that lists exclude.
        left_out_frames: frames of `records` that lists exclude.
    """

    records: Sequence[Record]
    excluded: Sequence[Exclusion]
    quality: Mapping[str, float]
    left_out: Sequence[Record] = ()
    left_out_frames: Sequence[tuple[Record, int]] = ()


def catalogue_of(path: Path, frames: bool = False, on_file: Listener | None = None) -> Catalogue:
    """Read a catalogue, or index a folder, with 4-D files if `frames`.

    Raises:
        UserError: it contains no images.
    """
    if path.is_dir():
        options = FindOptions(None, False, on_file, frames)
        found = index_sources([str(path)], options, on_file=on_file)
        if found.images == 0 and not found.excluded:
            raise UserError(nothing_found([str(path)], found))
        collection, excluded = found.collection, found.excluded
    else:
        if path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path} is an image. Name the folder of images, or a catalogue of `viewalign index`.")
        collection, excluded = read_catalogue(path), read_excluded(path)
    records = collection.records(path.absolute().parent)
    if not records and not excluded:
        raise UserError(f"The catalogue {path} contains no images.")
    return Catalogue(records, excluded, quality_scores(collection))


def without(
    catalogue: Catalogue, exclude: ExclusionList, channels: Sequence[str] = (), frames: bool = False
) -> Catalogue:
    """Return a catalogue without the images that lists exclude, which are added to what was excluded.

    Args:
        catalogue: the images.
        exclude: the lists.
        channels: modalities that are stacked to one image, whose id a list may have.
        frames: whether frames are images, whose ids a list may have.
    """
    stacked = {modality.casefold() for modality in channels}

    def reason(record: Record) -> str | None:
        found = exclude.reason(record.path, record.image_id)
        if found is None and record.modality.casefold() in stacked:
            found = exclude.reason(record.path, replace(record, name="-".join(channels)).image_id)
        return found

    reasons = [reason(record) for record in catalogue.records]
    pairs = list(zip(catalogue.records, reasons, strict=True))
    kept, left_out = ([record for record, reason in pairs if (reason is None) is stays] for stays in (True, False))
    some = [(record, exclude.frames(record.image_id)) for record in kept] if frames else []
    if unmatched := exclude.unmatched():
        _log.warning("%s.", unmatched)
    listed = [(record, reason) for record, reason in pairs if reason is not None]
    listed += [(record, f"frame {number}: {why}") for record, found in some for number, why in found.items()]
    excluded = [Exclusion(str(record.path), reason, place_of(record)) for record, reason in listed]
    left_out_frames = [(record, number) for record, found in some for number in found]
    return Catalogue(kept, [*catalogue.excluded, *excluded], catalogue.quality, left_out, left_out_frames)


def stored_settings(
    wanted: PrepareOptions, records: Sequence[Record], report: Callable[[str, int, int], Any]
) -> PrepareSettings:
    """Return the settings of the stored voxels; `spacing=median` is computed from the headers of `records`.

    Raises:
        UserError: no header can be read.
    """
    if wanted.spacing == "median":
        frames = wanted.frames != "exclude"
        found = median_spacing(records, frames, lambda done: report("Reading voxel sizes", done, len(records)))
        return wanted.settings(found)
    return wanted.settings(wanted.spacing)


def nothing_found(sources: Sequence[str], found: Index) -> str:
    """Return why no images were found, and what to do."""
    store = next((one for one in sources if (Path(one) / "store.json").is_file()), None)
    if store is not None:
        return f"{store} is a store, whose images are prepared: `viewalign pretrain RECIPE {store} -o run` uses it."
    text = f"No volumes were found in {', '.join(sources)}."
    if found.excluded:
        first = found.excluded[0]
        text += f" {counted(len(found.excluded), 'file')} excluded; the first: {first.file}: {first.reason}."
    if found.label_files:
        named = counted(len(found.label_files), "file")
        text += f" Label maps by their names: {named} (labels=true includes them)."
    if not (found.excluded or found.label_files):
        text += f" Files that end in {', '.join(SUFFIXES)} are read, and DICOM."
        if found.other_files:
            text += f" Ignored: {ignored_types(found.other_files)}."
    return text


def ignored_types(counts: Mapping[str, int]) -> str:
    """Describe the number of files of unsupported types, by suffix."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in ordered[:_NAMED])
    return named + (f" and {sum(count for _, count in ordered[_NAMED:])} of other types" if ordered[_NAMED:] else "")


_NAMED = 8
_KEY = "image_quality_score"


def quality_scores(collection: Collection) -> dict[str, float]:
    """Return the score of each image that has one, by image id."""
    found: dict[str, float] = {}
    for dataset_key, dataset in collection.datasets.items():
        for subject_key, subject in dataset.subjects.items():
            for session_key, session in subject.sessions.items():
                for image in session.images:
                    score = _score(image, dataset)
                    if score is not None:
                        names = (collection.collection_name, dataset_key, subject_key, session_key, image.name)
                        found["__".join(names)] = score
    return found


def _score(image: Image, dataset: Dataset) -> float | None:
    own = _number((image.image_info or {}).get(_KEY))
    return own if own is not None else _of_kind(image, (dataset.dataset_info or {}).get(_KEY))


def _of_kind(image: Image, scores: Any) -> float | None:
    """Return the score of the image's modality and source; one without a source applies to the whole modality."""
    entries = [entry for entry in scores if isinstance(entry, Mapping)] if isinstance(scores, list) else []
    same = [entry for entry in entries if entry.get("modality") == image.modality]
    source = (image.image_info or {}).get("derived_from")
    exact = [entry for entry in same if entry.get("derived_from") == source]
    chosen = exact or [entry for entry in same if entry.get("derived_from") in (None, "")]
    return _number(chosen[0].get(_KEY)) if chosen else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def stored_spacing(record: Record, frames: bool) -> Triple | None:
    """Return an image's voxel size in mm along the stored axes (D, H, W), or None if its header is rejected."""
    try:
        header = read_header(record.path, frames=frames, source=record.series)
    except (ExcludedImageError, OSError):
        return None
    d, h, w = (header.spacing[axis] for axis in reorientation_to_lps(header.direction).axes)
    return d, h, w


def median_spacing(
    records: Iterable[Record], frames: bool = False, on_image: Callable[[int], None] | None = None
) -> Triple:
    """Return the median of each stored axis, rounded to a micrometre; of 4-D files too if `frames`.

    Raises:
        UserError: no header can be read.
    """
    found = []
    for number, record in enumerate(records):
        size = stored_spacing(record, frames)
        if size is not None:
            found.append(size)
        if on_image:
            on_image(number + 1)
    if not found:
        raise UserError("There is no median voxel size: no header of the catalogue can be read.")
    d, h, w = (round(float(size), 3) for size in np.median(np.array(found), axis=0))
    return d, h, w
