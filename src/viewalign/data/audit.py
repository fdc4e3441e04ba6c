"""What should be checked before images are used: kinds of findings, how many images each has, and what changes it.

The list of findings is a table with the columns `file`, `kind` and `reason`. Edited, it is an exclusion list:
`exclude=FILE` of `index` and `prepare` leaves its files out (`exclusions`).
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from viewalign.data.indexing import Index
from viewalign.data.sources.naming import UNKNOWN
from viewalign.utils.io import write_text

KINDS = {
    "copies": "Copies of one image, or images much alike, which a split keeps together",
    "units": "Mixed units",
    "outliers": "Extreme values, which were clipped",
    "padding": "Padding, which is left out of statistics",
    "filled": "NaN or infinite voxels, which were replaced by 0",
    "empty_end": "Zeros at the end of the file, as of an incomplete copy",
    "header": "Headers with contradictions or conversions",
    "voxel_size": "Thick slices or extreme voxel sizes",
    "few_slices": "Few slices",
    "field_of_view": "Small fields of view",
    "orientation": "Odd orientations",
}
"""Titles of what an entry's `suspects` may hold, in the order of the audit."""
_LEFT_OUT = "included; exclude=FILE leaves out those that FILE lists"
_NAMED = "a subject_pattern with a group modality, or a table of images, names it"
_OPTION = re.compile(
    r"\b((?:labels|frames|fill_nonfinite)=true|frames=channels or frames=volumes|(?:spacing|max_voxels|time_limit)=)"
)
"""The option that a reason for exclusion names."""
_EXCLUDED = {
    "labels=true": "Excluded: label maps by their voxels",
    "frames=true": "Excluded: several frames (4-D)",
    "frames=channels or frames=volumes": "Excluded: several frames (4-D)",
    "fill_nonfinite=true": "Excluded: NaN or infinite voxels",
    "spacing=": "Excluded: too few slices at this voxel size",
    "max_voxels=": "Excluded: too large",
    "time_limit=": "Excluded: too slow",
}


@dataclass(frozen=True)
class AuditRow:
    """One kind of finding.

    Attributes:
        kind: its name in the list of findings.
        title: what it is.
        count: number of files.
        files: them, in the order of the catalogue.
        option: what includes or excludes them.
    """

    kind: str
    title: str
    count: int
    files: list[str]
    option: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def audit(index: Index) -> list[AuditRow]:
    """Return a row for each kind of finding that an index has."""
    suspects: dict[str, list[str]] = defaultdict(list)
    unknown, excluded = [], defaultdict(list)
    for entry in index.entries:
        for kind in entry.suspects:
            suspects[kind].append(entry.file)
        if entry.modality == UNKNOWN:
            unknown.append(entry.file)
    for exclusion in index.excluded:
        if option := _OPTION.search(exclusion.reason):
            excluded[option[1]].append(exclusion.file)
    suspects["copies"] = [file for group in index.duplicates for file in group]
    rows = [AuditRow(kind, KINDS[kind], len(suspects[kind]), suspects[kind], _LEFT_OUT) for kind in KINDS]
    rows.append(AuditRow("unknown_modality", "Unknown modality", len(unknown), unknown, _NAMED))
    rows += [
        AuditRow("excluded", title, len(excluded[option]), excluded[option], f"{option} includes them")
        for option, title in _EXCLUDED.items()
    ]
    maps = index.label_files
    rows.append(AuditRow("label_maps", "Ignored: label maps by name", len(maps), maps, "labels=true includes them"))
    return [row for row in rows if row.count]


COLUMNS = ("file", "kind", "reason")
"""Of the list of findings."""


def findings_path(catalogue: Path) -> Path:
    """Return where the findings on a catalogue are listed: `cat.json` → `cat.audit.tsv`."""
    return catalogue.with_name(catalogue.name.removesuffix(".json") + ".audit.tsv")


def write_findings(index: Index, path: Path) -> None:
    """Write the list of findings on images, a line each, sorted by kind and file.

    Of the copies of an image all but the first are listed, so that one stays if the list is given to `exclude`.
    """
    order = {kind: number for number, kind in enumerate(KINDS)}
    lines = sorted(_findings(index), key=lambda line: (order[line[1]], line[0]))
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows([COLUMNS, *lines])
    write_text(path, text.getvalue())


def _findings(index: Index) -> Iterator[tuple[str, str, str]]:
    first = {group[0] for group in index.duplicates}
    for entry in index.entries:
        for kind, reason in entry.suspects.items():
            if kind != "copies" or entry.file not in first:
                yield entry.file, kind, reason
