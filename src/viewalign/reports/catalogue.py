"""The page of a catalogue or a store: images, findings and exclusions. A single file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.data.catalogue import DEFAULT_SESSION, SeriesSource
from viewalign.data.store import Store
from viewalign.reports.page import leaf, render_template, save_page
from viewalign.reports.thumbnails import file_thumbnails, store_thumbnails
from viewalign.utils.text import counted, size_text

_MOST_ROWS = 1000
_MOST_DATASETS = 100
_MOST_BARS = 12
_EXAMPLES = 4
"""Files shown of each kind of finding."""
STORE_PAGE = "report.html"


def page_path(catalogue: Path) -> Path:
    """Return the path of a catalogue's page: `cat.json` → `cat.html`."""
    return catalogue.with_name(catalogue.name.removesuffix(".json") + ".html")


def write_index_page(
    summary: dict[str, Any], catalogue: Path, series: Mapping[str, SeriesSource], workers: int = 0
) -> Path:
    """Write the page of an index beside its catalogue and return the path.

    Args:
        summary: see `data.summary.summarise`.
        catalogue: the catalogue's file.
        series: sources of those files that name a DICOM series.
        workers: see `thumbnails.file_thumbnails`.
    """
    pictures = dict(file_thumbnails(_examples(summary), series, workers))
    return save_page(page_path(catalogue), render(summary, catalogue.name, pictures))


def write_store_page(summary: dict[str, Any], folder: Path) -> Path:
    """Write the page of a store into its folder and return the path."""
    pictures = dict(store_thumbnails(Store.open(folder), _examples(summary)))
    return save_page(folder / STORE_PAGE, render(summary, folder.resolve().name, pictures, "store"))


def _examples(summary: dict[str, Any]) -> list[str]:
    """Return the files whose pictures are on the page, each once."""
    return list(dict.fromkeys(file for row in summary["audit"] for file in row["files"][:_EXAMPLES]))


def render(
    summary: dict[str, Any], title: str, pictures: Mapping[str, str] | None = None, kind: str = "catalogue"
) -> str:
    """Return the page of `summarise`'s figures as HTML; every name and reason in it is escaped.

    Args:
        summary: the figures.
        title: of the page.
        pictures: data URLs of thumbnails by file.
        kind: of the page: catalogue or store.
    """
    entries = summary["entries"]
    return render_template(
        "catalogue.html",
        filters={"size": size_text},
        title=title,
        kind=kind,
        findings=title.removesuffix(".json") + ".audit.tsv" if kind == "catalogue" else f"{title}/audit.tsv",
        audit=[(row, row["files"][:_EXAMPLES]) for row in summary["audit"]],
        pictures=pictures or {},
        leaf=leaf,
        caption=caption,
        summary=summary,
        rows=entries[:_MOST_ROWS],
        datasets=summary["datasets"][:_MOST_DATASETS],
        suspects=summary["suspects"][:_MOST_ROWS],
        excluded=summary["excluded"][:_MOST_ROWS],
        times=lambda numbers: "×".join(f"{number:.4g}" for number in numbers),
        charts=[
            ("Modalities", _bars(summary["modalities"])),
            ("Orientations (x, y, z grow towards)", _bars(summary["orientations"])),
            ("Smallest edge of a voxel, mm", _histogram([min(entry["spacing"]) for entry in entries])),
            ("Largest edge of a voxel, mm", _histogram([max(entry["spacing"]) for entry in entries])),
            ("Fewest voxels along an axis", _histogram([min(entry["shape"]) for entry in entries])),
            ("Number of voxels, millions", _histogram([float(np.prod(entry["shape"])) / 1e6 for entry in entries])),
        ],
    )


def caption(file: str) -> str:
    """Return a file's name, or the subject, session and image of an id of a store."""
    words = leaf(file).split("__")
    named = [word for word in dict.fromkeys(words[2:]) if word != DEFAULT_SESSION]
    return " · ".join(named) if len(words) == 5 else leaf(file)


def _bars(counts: dict[str, int]) -> list[tuple[str, int, float]]:
    """Return (name, count, fraction of the largest) of the most frequent names, and of all others together."""
    named = list(counts.items())
    shown = named[:_MOST_BARS]
    if rest := sum(count for _, count in named[_MOST_BARS:]):
        shown.append((f"{counted(len(named) - _MOST_BARS, 'other')}", rest))
    most = max((count for _, count in shown), default=1)
    return [(name, count, count / most) for name, count in shown]


def _histogram(values: list[float]) -> list[tuple[str, int, float]]:
    """Return (range, count, fraction of the largest) of up to eight equal ranges."""
    if not values:
        return []
    low, high = min(values), max(values)
    if high - low < 1e-3 * max(abs(high), 1e-9):
        return [(f"{low:.3g}", len(values), 1.0)]
    counts, edges = np.histogram(values, bins=min(8, max(2, len(set(values)))))
    most = int(counts.max())
    return [
        (f"{edges[k]:.3g} – {edges[k + 1]:.3g}", int(count), int(count) / most)
        for k, count in enumerate(counts)
        if count
    ]
