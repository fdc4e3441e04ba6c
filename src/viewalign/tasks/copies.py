"""Copies of one image among the cases of a task or dataset, which no split may divide between training and test.

Images are read from their files, the first channel of each case, and compared by their fingerprints
(`data.image_fingerprint`). Nothing is resampled, so that a file costs little more than reading it once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from viewalign.data.content import clean_values
from viewalign.data.image_fingerprint import Fingerprint, fingerprint_of, fingerprint_text, parse_fingerprint
from viewalign.data.near_copies import find_copies
from viewalign.data.preprocessing import content_box
from viewalign.data.readers.files import position_of, voxel_to_world
from viewalign.data.worker_pool import run_jobs
from viewalign.errors import UserError
from viewalign.tasks.cases import default_processes, file_stamps
from viewalign.tasks.preprocessing import read_image
from viewalign.utils.io import write_json

_log = logging.getLogger(__name__)

CACHE = "viewalign_fingerprints.json"
_SHOWN = 5
_SECONDS_PER_IMAGE = 600.0


@dataclass(frozen=True)
class CaseCopies:
    """Copies among cases.

    Attributes:
        groups: names of cases whose images are copies of each other.
        subject_of: the subject of each case; subjects that share copies have one name.
    """

    groups: tuple[tuple[str, ...], ...]
    subject_of: Mapping[str, str]


def copies_among(subject_of: Mapping[str, str], fingerprints: Mapping[str, Fingerprint]) -> CaseCopies:
    """Find copies among cases, report them, and give subjects that share copies one name.

    Args:
        subject_of: the subject of each case.
        fingerprints: of each case.
    """
    names = list(subject_of)
    prints = [fingerprints[name] for name in names]
    # Equal fingerprints are equal images, which count as copies however many subjects have them.
    equal = [each.tobytes().hex() if each[1:].any() else None for each in prints]
    found = find_copies(list(subject_of.values()), prints, equal)
    groups = tuple(tuple(names[k] for k in group) for group in found.images)
    if found.group_of:
        _log.warning("Copies of one image have several subjects, which count as one in splits: %s.", _listed(groups))
    return CaseCopies(groups, {name: found.group_of.get(each, each) for name, each in subject_of.items()})


def report_divided(copies: CaseCopies, train: Collection[str], held_out: Collection[str], held_out_name: str) -> None:
    """Log a warning for copies on both sides of a split that is not ours to change."""
    sides = set(train), set(held_out)
    divided = [group for group in copies.groups if all(side.intersection(group) for side in sides)]
    if divided:
        _log.warning("Training and %s cases contain copies: %s.", held_out_name, _listed(divided))


def _listed(groups: Sequence[Sequence[str]]) -> str:
    return "; ".join(map(", ".join, groups[:_SHOWN])) + ("; …" if len(groups) > _SHOWN else "")


def read_fingerprints(
    images: Mapping[str, Path],
    cache: Path | None = None,
    workers: int | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> dict[str, Fingerprint]:
    """Return the fingerprint of each image; an empty one, which is similar to no other, if it cannot be read.

    Args:
        images: file of each case.
        cache: JSON file in which fingerprints are kept, with size and time of change of their files.
        workers: processes that read; default as for the preparation of a task.
        on_image: called with (done, total).
    """
    keys = {name: json.dumps(file_stamps([path])) for name, path in images.items()}
    texts = _read_cache(cache)
    missing = [(keys[name], path) for name, path in images.items() if keys[name] not in texts]
    if workers is None:
        workers = default_processes(len(missing))
    fresh: dict[Path, str] = {}
    for count, ((key, path), result) in enumerate(run_jobs(_fingerprint, missing, workers, _SECONDS_PER_IMAGE), 1):
        fresh[path] = result if isinstance(result, str) else ""
        if key != _UNKNOWN:
            texts[key] = fresh[path]
        if on_image:
            on_image(count, len(missing))
    if missing and cache is not None:
        write_json(cache, {keys[name]: texts[keys[name]] for name in images if keys[name] in texts})
    return {name: parse_fingerprint(fresh.get(path) or texts.get(keys[name], "")) for name, path in images.items()}


_UNKNOWN = json.dumps(None)
"""Key of files whose change cannot be detected."""


def _read_cache(cache: Path | None) -> dict[str, str]:
    try:
        stored = json.loads(cache.read_text()) if cache is not None else {}
        return {str(key): str(text) for key, text in stored.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _fingerprint(job: tuple[str, Path]) -> str:
    """Return the text of an image's fingerprint, or "" if it cannot be read; runs in a worker."""
    try:
        volume = read_image(job[1], fill_nonfinite=True)
        box = content_box(volume.array)
    except UserError:
        return ""
    corner = position_of((low for low, _ in box), volume.spacing, volume.origin, volume.direction)
    place = voxel_to_world(volume.spacing, corner, volume.direction)
    content = np.ascontiguousarray(volume.array[tuple(slice(*pair) for pair in box)])
    return fingerprint_text(fingerprint_of(clean_values(content).array, place))
