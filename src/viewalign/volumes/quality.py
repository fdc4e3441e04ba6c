"""Quality scores of images, as a catalogue has them.

OpenMind keeps them by kind of image in a dataset's `dataset_info["image_quality_score"]`, a list of `{modality,
derived_from, image_quality_score}`; a lower score is better. An image may also carry its own
`image_info["image_quality_score"]`, which then counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from viewalign.volumes.catalogue import Collection, Dataset, Image

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
    """Return the score of the image's modality and source; one that names no source counts for all of the modality."""
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
