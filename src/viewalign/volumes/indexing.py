"""Make a catalogue from sources: find files, judge their headers, give every image a name of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viewalign.errors import RefusedImageError, UserError
from viewalign.volumes.catalogue import Collection, Dataset, Image, Session, Subject
from viewalign.volumes.headers import read_header
from viewalign.volumes.layout import read_json, write_json
from viewalign.volumes.sources import Findings, FindOptions, Found, Refusal, find


@dataclass
class Index:
    """A catalogue with what was set aside and the headers' geometry, in the order of the images.

    Attributes:
        shapes: voxels along (D, H, W) as in the file.
        spacings: mm along (D, H, W).
        other_files: files of types that are not read, `dicom_files` among them.
        label_files: label maps that were passed over.
    """

    collection: Collection
    refused: list[Refusal] = field(default_factory=list)
    modalities: Counter[str] = field(default_factory=Counter)
    shapes: list[tuple[int, int, int]] = field(default_factory=list)
    spacings: list[tuple[float, float, float]] = field(default_factory=list)
    other_files: int = 0
    dicom_files: int = 0
    label_files: int = 0

    @property
    def images(self) -> int:
        """Number of images taken in."""
        return len(self.shapes)

    def sessions(self) -> int:
        """Number of sessions over all subjects."""
        return sum(
            len(subject.sessions)
            for dataset in self.collection.datasets.values()
            for subject in dataset.subjects.values()
        )

    def subjects(self) -> int:
        """Number of subjects over all datasets."""
        return sum(len(dataset.subjects) for dataset in self.collection.datasets.values())


def index_sources(
    sources: Sequence[str],
    options: FindOptions | None = None,
    collection_name: str = "viewalign",
    on_file: Callable[[int, int], None] | None = None,
) -> Index:
    """Look for images in `sources` and read their headers.

    Args:
        sources: folders, files or patterns.
        options: how subjects are told; what counts as a label map.
        collection_name: first part of every image id.
        on_file: called with (files judged, files in all).

    Raises:
        UserError: a source does not exist.
    """
    findings = [find(source, options or FindOptions()) for source in sources]
    index = Index(Collection(0, collection_name))
    for each in findings:
        index.refused.extend(each.refused)
        index.other_files += each.other_files
        index.dicom_files += each.dicom_files
        index.label_files += each.label_files
    everything = _once(_distinct_datasets(findings))
    for number, found in enumerate(everything):
        _take_in(index, found)
        if on_file:
            on_file(number + 1, len(everything))
    index.refused.sort()
    return index


def refused_path(catalogue: Path) -> Path:
    """Return where the files set aside while indexing are listed: `cat.json` → `cat.refused.json`."""
    return catalogue.with_name(catalogue.name.removesuffix(".json") + ".refused.json")


def write_refused(catalogue: Path, refused: Sequence[Refusal]) -> Path:
    """Write the list of files set aside beside a catalogue and return its path."""
    path = refused_path(catalogue)
    write_json(path, [refusal.as_json() for refusal in refused])
    return path


def read_refused(catalogue: Path) -> list[Refusal]:
    """Read the list beside a catalogue; empty where there is none.

    Raises:
        UserError: the file is there but is no such list.
    """
    path = refused_path(catalogue)
    if not path.exists():
        return []
    try:
        return [Refusal(str(entry["file"]), str(entry["reason"])) for entry in read_json(path)]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no list of refused files. Run `viewalign index` again or remove it.") from None


def _distinct_datasets(findings: Sequence[Findings]) -> list[Found]:
    """Two sources of one name stay two datasets: the second is called `name_2`."""
    everything: list[Found] = []
    taken: Counter[str] = Counter()
    for each in findings:
        if not each.found:
            continue
        name = each.found[0].dataset
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}_{taken[name]}"
        everything.extend(Found(f.path, name, f.subject, f.session, f.name, f.modality) for f in each.found)
    return everything


def _once(everything: Sequence[Found]) -> list[Found]:
    """Drop what an earlier source already had."""
    return list({os.fspath(found.path): found for found in reversed(everything)}.values())[::-1]


def _take_in(index: Index, found: Found) -> None:
    try:
        header = read_header(found.path)
    except RefusedImageError as refusal:
        index.refused.append(Refusal(str(found.path), str(refusal)))
        return
    dataset = index.collection.datasets.setdefault(found.dataset, Dataset(found.dataset, found.dataset))
    subject = dataset.subjects.setdefault(found.subject, Subject(found.subject))
    session = subject.sessions.setdefault(found.session, Session(found.session))
    name = _free_name(found, {image.name for image in session.images})
    info: dict[str, Any] = {"shape": list(header.shape), "spacing": [round(size, 6) for size in header.spacing]}
    session.images.append(Image(name, os.fspath(found.path), found.modality, info))
    index.modalities[found.modality] += 1
    index.shapes.append(header.shape)
    index.spacings.append(header.spacing)


def _free_name(found: Found, taken: set[str]) -> str:
    """Name an image within its session: by its file, then with its folder, with its suffix, at last with a number."""
    candidates = [found.name, f"{found.path.parent.name}_{found.name}", found.path.name]
    free = next((name for name in candidates if name not in taken), None)
    return free or next(name for n in range(2, len(taken) + 3) if (name := f"{found.name}_{n}") not in taken)
