"""Statistics of an index, shared by table, JSON and page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.data.audit import audit
from viewalign.data.entries import Entry
from viewalign.data.indexing import Index
from viewalign.data.layout import write_json

_EXAMPLES = 20
"""Largest number of ignored label maps in the list."""


def summarise(index: Index) -> dict[str, Any]:
    """Return counts, ranges, suspects, exclusions and one entry per image, as plain values."""
    entries = index.entries
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.dataset].append(entry)
    return {
        "collection": index.collection.collection_name,
        **_figures(entries),
        "orientations": dict(Counter(entry.orientation for entry in entries).most_common()),
        "shape": spread([entry.shape for entry in entries]),
        "spacing": spread([entry.spacing for entry in entries]),
        "datasets": [{"name": name, **_figures(of_it)} for name, of_it in groups.items()],
        "audit": [row.as_json() for row in audit(index)],
        "suspects": [
            {"file": entry.file, "reasons": list(entry.suspects.values())} for entry in entries if entry.suspects
        ],
        "duplicates": index.duplicates,
        "excluded": [exclusion.as_json() for exclusion in index.excluded],
        "passed_over": {
            "label_maps": len(index.label_files),
            "label_map_examples": index.label_files[:_EXAMPLES],
            "other_files": index.other_files.total(),
            "other_types": dict(index.other_files.most_common()),
            "notes": index.notes,
        },
        "entries": [entry.as_json() for entry in entries],
    }


def summary_path(catalogue: Path) -> Path:
    """Return the path of a catalogue's statistics: `cat.json` → `cat.index.json`."""
    return catalogue.with_name(catalogue.name.removesuffix(".json") + ".index.json")


def write_summary(summary: dict[str, Any], catalogue: Path) -> Path:
    """Write the statistics beside their catalogue and return the path."""
    path = summary_path(catalogue)
    write_json(path, summary)
    return path


def spread(rows: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    """Return smallest, median and largest value per axis; None without rows."""
    if not rows:
        return None
    array = np.array(rows, dtype=np.float64)
    middle = np.quantile(array, 0.5, axis=0, method="nearest")
    return {"smallest": array.min(axis=0).tolist(), "middle": middle.tolist(), "largest": array.max(axis=0).tolist()}


def _figures(entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        "subjects": len({(entry.dataset, entry.subject) for entry in entries}),
        "sessions": len({(entry.dataset, entry.subject, entry.session) for entry in entries}),
        "images": len(entries),
        "bytes": sum(entry.bytes for entry in entries),
        "modalities": dict(Counter(entry.modality for entry in entries).most_common()),
    }
