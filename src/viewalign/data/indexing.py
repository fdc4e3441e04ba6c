"""Make a catalogue: look for images in sources, read their headers, and note which files are the same."""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from viewalign.data.catalogue import Collection, Dataset, Image, SeriesSource, Session, Subject, resolve
from viewalign.data.duplicates import find_duplicates
from viewalign.data.entries import Entry, entry_of
from viewalign.data.exclusions import ExclusionList
from viewalign.data.layout import entry_path, read_json, write_json
from viewalign.data.readers.headers import Header, dicom_header, read_header
from viewalign.data.readers.pointers import NOT_DOWNLOADED
from viewalign.data.sources import Exclusion, FindOptions, ImageRecord, SourceContents, find
from viewalign.data.sources.walk import printable
from viewalign.data.worker_pool import MANY, default_workers, run_jobs
from viewalign.errors import ExcludedImageError, UserError, os_reason
from viewalign.utils.io import is_file
from viewalign.utils.text import counted

Taken = dict[tuple[str, str, str], set[str]]
"""Names of images by dataset, subject and session."""


@dataclass
class Index:
    """A catalogue with excluded files and facts from the headers, in the order of the images.

    Attributes:
        entries: one per included image.
        other_files: number of files of unsupported types, by suffix, and of DICOM without images.
        label_files: label maps, recognised by their names, that were ignored.
        duplicates: groups of files with the same content.
        notes: sentences of the sources about what was ignored on purpose.
        series: of the images that are DICOM, by path, with their slices, so that these need not be searched again.
    """

    collection: Collection
    excluded: list[Exclusion] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    label_files: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    series: dict[str, SeriesSource] = field(default_factory=dict, repr=False)

    @property
    def images(self) -> int:
        """Number of included images."""
        return len(self.entries)

    @property
    def modalities(self) -> Counter[str]:
        """Number of images by modality."""
        return Counter(entry.modality for entry in self.entries)

    def sessions(self) -> int:
        """Number of sessions over all subjects."""
        return len({(entry.dataset, entry.subject, entry.session) for entry in self.entries})

    def subjects(self) -> int:
        """Number of subjects over all datasets."""
        return len({(entry.dataset, entry.subject) for entry in self.entries})


def index_sources(
    sources: Sequence[str],
    options: FindOptions | None = None,
    collection_name: str = "viewalign",
    on_file: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    exclude: ExclusionList | None = None,
) -> Index:
    """Find images in `sources` and read their headers.

    Args:
        sources: folders, files, patterns, tables or catalogues.
        options: of the search.
        collection_name: first part of every image id; a single catalogue keeps its own.
        on_file: called with (headers read, total).
        workers: processes that read headers, protecting this one from crashes of the reader; default one per core
            for many files, none for few, 0 reads them in this process.
        exclude: images that are left out.

    Raises:
        UserError: a source does not exist.
    """
    options = replace(options or FindOptions(), workers=workers)
    findings = [find(source, options) for source in sources]
    number, name = (findings[0].collection if len(findings) == 1 else None) or (0, collection_name)
    index = Index(Collection(number, name))
    for each in findings:
        index.excluded.extend(each.excluded)
        index.notes.extend(each.notes)
        index.other_files.update(each.other_files)
        index.label_files.extend(printable(path) for path in each.label_files)
    everything = _not_listed(index, _once(_distinct_datasets(findings)), exclude or ExclusionList())
    headers = _read_headers(everything, options, workers, on_file)
    names: Taken = {}
    taken = {
        found.path: header
        for found, header in zip(everything, headers, strict=True)
        if _take_in(index, found, header, names) and isinstance(header, Header)
    }
    index.excluded.sort()
    for reason, count in Counter(each.reason for each in index.excluded if NOT_DOWNLOADED in each.reason).items():
        why = reason if count == 1 else reason.replace("its", "their", 1)
        index.notes.append(f"{counted(count, 'listed file')}: {why}")
    _note_duplicates(index, taken)
    _note_units(index)
    return index


def excluded_path(catalogue: Path) -> Path:
    """Return the path of the list of excluded files: `cat.json` → `cat.excluded.json`."""
    return catalogue.with_name(catalogue.name.removesuffix(".json") + ".excluded.json")


def write_excluded(catalogue: Path, excluded: Sequence[Exclusion]) -> Path:
    """Write the list of excluded files beside a catalogue and return its path."""
    path = excluded_path(catalogue)
    write_json(path, [{**each.as_json(), **({"image": each.image} if each.image else {})} for each in excluded])
    return path


def read_excluded(catalogue: Path) -> list[Exclusion]:
    """Read the list beside a catalogue; empty without one.

    Raises:
        UserError: the file is not such a list.
    """
    path = excluded_path(catalogue)
    if not path.exists():
        return []
    try:
        return [
            Exclusion(str(entry["file"]), str(entry["reason"]), str(entry.get("image", "")))
            for entry in read_json(path)
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a list of excluded files. Run `viewalign index` again or remove it.") from None


def _distinct_datasets(findings: Sequence[SourceContents]) -> list[ImageRecord]:
    """Keep datasets of the same name from two sources apart: the second is called `name_2` if no other one is."""
    everything: list[ImageRecord] = []
    given = [dict.fromkeys(found.dataset for found in each.found) for each in findings]
    unavailable, seen = set[str]().union(*given), set[str]()
    for each, own in zip(findings, given, strict=True):
        names = {}
        for name in own:
            free = (new for n in itertools.count(2) if (new := f"{name}_{n}") not in unavailable)
            names[name] = next(free) if name in seen else name
            unavailable.add(names[name])
        seen.update(own)
        everything.extend(
            found if names[found.dataset] == found.dataset else replace(found, dataset=names[found.dataset])
            for found in each.found
        )
    return everything


def _once(everything: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Drop images that an earlier source contains."""
    keyed = {(os.fspath(found.path), found.series and found.series.output): found for found in reversed(everything)}
    return list(keyed.values())[::-1]


def _not_listed(index: Index, everything: Sequence[ImageRecord], exclude: ExclusionList) -> list[ImageRecord]:
    """Return the images that no list excludes; add the others to what was excluded."""
    reasons = [exclude.reason(found.path) for found in everything]
    for found, reason in zip(everything, reasons, strict=True):
        if reason is not None:
            index.excluded.append(Exclusion(printable(found.path), reason))
    index.notes.extend(filter(None, [exclude.unmatched()]))
    return [found for found, reason in zip(everything, reasons, strict=True) if reason is None]


def _read_headers(
    everything: Sequence[ImageRecord],
    options: FindOptions,
    workers: int | None,
    on_file: Callable[[int, int], None] | None,
) -> list[Header | str]:
    """Return the header of each file, or the reason of its exclusion."""
    if workers is None:
        workers = default_workers() if len(everything) >= MANY else 0
    headers: list[Header | str] = [""] * len(everything)
    known: list[tuple[int, ImageRecord]] = []
    unread: list[tuple[int, ImageRecord]] = []
    for number, found in enumerate(everything):
        (known if found.header or found.stack else unread).append((number, found))  # known ones need no process
    read = partial(_read_one, options.frames, options.labels)
    jobs = itertools.chain(run_jobs(read, known, 0), run_jobs(read, unread, workers))
    for count, ((number, _), result) in enumerate(jobs):
        headers[number] = result if isinstance(result, Header | str) else "the reader crashed on its header"
        if on_file:
            on_file(count + 1, len(everything))
    return headers


def _read_one(frames: bool, labels: bool, numbered: tuple[int, ImageRecord]) -> Header | str:
    """Read one header; runs in a worker."""
    found = numbered[1]
    try:
        header = found.header or (
            dicom_header(found.stack) if found.stack else read_header(found.path, frames=frames, source=found.series)
        )
        if header.labels and not labels:
            return "its header says that it is a label map; labels=true includes it"
        _check_masks(found)
    except ExcludedImageError as exclusion:
        return str(exclusion)
    except OSError as error:
        return f"it cannot be read: {os_reason(error)}"
    return header


def _take_in(index: Index, found: ImageRecord, header: Header | str, taken: Taken) -> bool:
    """Add a file to the catalogue, or to the excluded files; `taken` has the names of images by session."""
    names = taken.setdefault((found.dataset, found.subject, found.session), set())
    name = _free_name(found, names)
    names.add(name)  # of an excluded file too: a store may have its image under this name
    place = entry_path(found.dataset, found.subject, found.session, name)
    if isinstance(header, str):
        index.excluded.append(Exclusion(printable(found.path), header, place))
        return False
    try:
        dataset = index.collection.datasets.setdefault(
            found.dataset, Dataset(found.dataset, found.dataset, found.infos.dataset)
        )
        subject = dataset.subjects.setdefault(found.subject, Subject(found.subject, found.infos.subject))
        session = subject.sessions.setdefault(found.session, Session(found.session, found.infos.session))
        entry = entry_of(found, name, header)
    except OSError as error:  # removed since its header was read
        index.excluded.append(Exclusion(printable(found.path), f"it cannot be read: {os_reason(error)}", place))
        return False
    info = {**(found.infos.image or {}), "shape": list(entry.shape), "spacing": list(entry.spacing)}
    if header.frames > 1:
        info["frames"] = header.frames
    if header.note:
        info["note"] = header.note
    written = found.written or os.fspath(found.path)
    session.images.append(Image(name, written, found.modality, info, found.masks))
    index.entries.append(entry)
    if found.series is not None:
        index.series[os.fspath(found.path)] = replace(found.series, slices=header.dicom)
    return True


def _check_masks(found: ImageRecord) -> None:
    masks = found.masks
    for kind, written in (
        ("anonymisation", masks and masks.anonymization_mask),
        ("anatomy", masks and masks.anatomy_mask),
    ):
        if written and not is_file(resolve(written, Path())):
            raise ExcludedImageError(f"its {kind} mask {written} does not exist")


def _note_duplicates(index: Index, taken: Mapping[Path, Header]) -> None:
    by_file = {entry.file: entry for entry in index.entries}
    slices = {path: header.dicom.frames for path, header in taken.items() if header.dicom is not None}
    for group in find_duplicates(list(taken), slices):
        files = [printable(path) for path in group]
        index.duplicates.append(files)
        for file in files:
            other = next(each for each in files if each != file)
            more = f" and {len(files) - 2} more" if len(files) > 2 else ""
            by_file[file].suspects["copies"] = f"same content as {other}{more}"


def _note_units(index: Index) -> None:
    """Mark the images of a dataset and modality that have other units than most of them."""
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in index.entries:
        if entry.units:
            groups[entry.dataset, entry.modality].append(entry)
    for entries in groups.values():
        usual = Counter(entry.units for entry in entries).most_common(1)[0][0]
        for entry in entries:
            if entry.units != usual:
                entry.suspects["units"] = f"its voxels are in {entry.units}, those of most others in {usual}"


def _free_name(found: ImageRecord, taken: set[str]) -> str:
    """Name an image within its session: by its file, then with its folder, with its suffix, finally with a number."""
    candidates = [found.name, f"{found.path.parent.name}_{found.name}", found.path.name]
    free = next((name for name in candidates if name not in taken), None)
    return free or next(name for n in range(2, len(taken) + 3) if (name := f"{found.name}_{n}") not in taken)
