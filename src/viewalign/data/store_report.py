"""What is written when a store is complete: its index, its header, its report and the list of findings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.data.audit import write_findings
from viewalign.data.catalogue import Collection
from viewalign.data.columns import Row, rows_on_disk, write_index
from viewalign.data.entries import Entry, geometry_suspicions
from viewalign.data.image_fingerprint import parse_fingerprint
from viewalign.data.indexing import Index
from viewalign.data.layout import image_of, write_json
from viewalign.data.near_copies import Copies, find_copies
from viewalign.data.settings import PrepareSettings
from viewalign.data.sources import Exclusion
from viewalign.data.store_header import write_header
from viewalign.utils.text import counted

FINDINGS = "audit.tsv"
Stored = Sequence[tuple[Row, dict[str, Any]]]


def write_report(
    store: Path, settings: PrepareSettings, excluded: Sequence[Exclusion], here: Set[str], left_out: Set[str]
) -> tuple[Index, list[tuple[str, str]]]:
    """Write `index.json`, `store.json`, `report.json` and the list of findings.

    Args:
        store: the folder.
        settings: of the preparation.
        excluded: files that could not be used or are left out.
        here: images of the catalogue, by their paths in the store.
        left_out: images and frames that lists exclude: they stay in the store, but not in its index.

    Returns:
        The images with findings, and the ids of those that are not of this catalogue, each with its path in the store.
    """
    listed = (
        each for each in rows_on_disk(store) if left_out.isdisjoint((each[0].path, image_of(each[0].path, each[1])))
    )
    found = sorted(listed, key=lambda each: each[0].id)
    images = [(row.id, image_of(row.path, properties)) for row, properties in found]
    others = [(name, path) for name, path in images if path not in here]
    rows = [row for row, _ in found]
    copies = find_copies(
        [row.subject for row in rows],
        [parse_fingerprint(str(properties.get("fingerprint", ""))) for _, properties in found],
        [properties.get("checksum") for _, properties in found],
    )
    write_index(store, [replace(row, group=copies.group_of.get(row.subject)) for row in rows])
    write_header(store, settings, len(rows))
    shares = _source_shares(found)
    index = Index(Collection(0, settings.describe()), list(excluded), [_entry(*each, shares) for each in found])
    _add_copies(index, copies)
    content: dict[str, Any] = {"prepared": len(rows), "excluded": [exclusion.as_json() for exclusion in excluded]}
    if index.duplicates:
        content["copies"] = index.duplicates
    if settings.dtype != "float32":
        content["storage"] = _storage(settings, found)
    write_json(store / "report.json", content)
    if any(entry.suspects for entry in index.entries):
        write_findings(index, store / FINDINGS)
    else:
        (store / FINDINGS).unlink(missing_ok=True)
    return index, others


def _source_shares(found: Stored) -> dict[str, int]:
    """Return how many images were made from each source, by its digest: series of a DICOM folder, frames of a file.

    A copy of a file has its digest too, but its images have the checksums of those of the file.
    """
    images: dict[str, set[str | None]] = defaultdict(set)
    for _, properties in found:
        images[properties["source_digest"]].add(properties.get("checksum"))
    return {digest: len(checksums) for digest, checksums in images.items()}


def _entry(row: Row, properties: dict[str, Any], shares: Mapping[str, int]) -> Entry:
    """Describe an image as it was before preparation, with what its voxels say about it.

    Args:
        row: of the index.
        properties: of the image.
        shares: images of each source, which its bytes are divided by, so that their sum is right.
    """
    _, dataset, subject, session, name = row.path.split("/")
    shape, spacing = properties["original_shape"], properties["original_spacing"]
    direction = np.array(properties["original_direction"])
    entry = Entry(
        *(dataset, subject, session, name, row.id, row.modality, shape, spacing),
        orientation=properties["original_orientation"],
        bytes=round(properties["source_bytes"] / shares[properties["source_digest"]]),
        suspects=geometry_suspicions(shape, spacing, direction),
    )
    if clipped := sum(properties.get("clipped_voxels", ())):
        entry.suspects["outliers"] = f"extreme values were clipped in {counted(clipped, 'voxel')}"
    padding = [value for value in properties.get("padding_value", ()) if value is not None]
    if padding:
        entry.suspects["padding"] = f"padded with {padding[0]:g}"
    if empty := properties.get("empty_end"):
        entry.suspects["empty_end"] = f"its last {empty:.0%} are 0, as in a file that was not copied completely"
    if filled := properties.get("filled_voxels"):
        entry.suspects["filled"] = f"{filled} NaN or infinite voxels were replaced by 0"
    return entry


def _add_copies(index: Index, copies: Copies) -> None:
    for group in copies.images:
        ids = [index.entries[k].file for k in group]
        index.duplicates.append(ids)
        for k in group:
            others = [name for name in ids if name != index.entries[k].file]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            index.entries[k].suspects["copies"] = f"the same as {others[0]}{more}, or much like it"
    if copies.too_alike:
        index.notes.append(
            f"The images of {copies.too_alike:,} of {counted(index.subjects(), 'subject')} are so alike that copies "
            "among them are not recognised, unless their voxels are equal"
        )


def _storage(settings: PrepareSettings, found: Stored) -> dict[str, Any]:
    """Say what the number type costs, over all images: measured when each was written, in the units of its values."""
    errors = [(properties["storage_error"], row.voxels) for row, properties in found if "storage_error" in properties]
    voxels = sum(size for _, size in errors)
    rms = math.sqrt(math.fsum(error["rms"] ** 2 * size for error, size in errors) / voxels) if voxels else 0.0
    largest = max((error["largest"] for error, _ in errors), default=0.0)
    return {"dtype": settings.dtype, "largest_error": float(f"{largest:.4g}"), "rms_error": float(f"{rms:.4g}")}
