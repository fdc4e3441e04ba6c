"""The DICOM series of folders, with names that do not identify the patient.

A subject is `patient-` and a hash of the PatientID (of the study where there is none), a session `study-` and a hash of
the StudyInstanceUID: a patient has the same name in every source, and catalogue, store and report contain no
identifier. A subject stated in the path (`sub-01`, `subject_pattern`) has priority.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from viewalign.data.catalogue import SeriesSource
from viewalign.data.patients import identifies_nobody, patient_name, short_hash
from viewalign.data.readers.dcm2niix import converted
from viewalign.data.readers.dicom_folders import FolderScan, scan_folders
from viewalign.data.readers.dicom_slices import Series, is_phase
from viewalign.data.readers.dicom_stacks import Rejected, Stack
from viewalign.data.readers.headers import MAX_VOXELS, Header, header_at
from viewalign.data.readers.locating import Location, location_of
from viewalign.data.sources.naming import UNKNOWN, Names, modality_of, stated_names, units_named
from viewalign.data.sources.records import Exclusion, FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.walk import printable
from viewalign.data.worker_pool import default_workers
from viewalign.errors import ExcludedImageError
from viewalign.utils.text import counted

_MODALITIES = {"PT": "PET"}
_TIMES = ("TemporalPosition", "TriggerTime")
_PASS, _MOST_PASSES = "AcquisitionNumber", 4
"""Volumes that these traits tell apart are a time series; acquisitions only if there are more than phases of a CT."""


def add_stacks(
    folders: Iterable[Path], root: Path, dataset: str, options: FindOptions, contents: SourceContents
) -> None:
    """Add the series of these folders (not of those below them) to the contents, with excluded files."""
    scan = scan_folders(folders, options.on_file, options.workers)
    contents.other_files.update({"DICOM without images": scan.other} if scan.other else {})
    pointers = {each.file for each in contents.excluded}  # whose content was not downloaded
    found_now = [Exclusion(printable(path), reason) for path, reason in (*scan.damaged, *scan.no_slices)]
    contents.excluded.extend(each for each in found_now if each.file not in pointers)
    incomplete = Counter(path.parent for path in {*map(Path, pointers), *(path for path, _ in scan.damaged)})
    contents.notes.extend(_shared_identity(scan, options.subject_pattern))
    places = _places(scan)

    def record(found: Stack | Rejected, label: str, source: SeriesSource, header: Header | None = None) -> ImageRecord:
        names = _names(found, found.path.relative_to(root), options.subject_pattern)
        info = {"dicom_series": short_hash(found.series.uid), "slices": len(found.frames), **source.as_info(found.path)}
        if found.series.units and names.modality == "PET":
            info["units"] = units_named(found.series.units)
        name = "_".join(filter(None, (_title(found.series), label)))
        return ImageRecord(
            *(found.path, dataset, names.subject, names.session, name, names.modality),
            infos=Infos(image=info),
            stack=found if isinstance(found, Stack) else None,
            header=header,
            series=source,
        )

    series_of_volumes = {} if options.frames else _time_series(scan.stacks)
    for stacks in series_of_volumes.values():
        reason = (
            f"it is a time series of {len(stacks)} volumes ({stacks[0].label} to {stacks[-1].label}); frames=true of "
            f"index includes them as images [series {_title(stacks[0].series)}]"
        )
        contents.excluded.append(Exclusion(printable(stacks[0].path), reason))
    for stack in scan.stacks:
        if stack.series.key in series_of_volumes:
            continue
        source = SeriesSource(_further(places[stack.series.key], stack.path.parent))
        lost = sum(incomplete[folder] for folder in map(Path, {frame.folder for frame in stack.frames}))
        note = (
            f"{counted(lost, 'file')} in its folder could not be read: slices may be missing at its ends"
            if lost
            else ""
        )
        stack = replace(stack, note="; ".join(filter(None, (stack.note, note))))
        contents.found.append(record(stack, stack.label, source))
    for rejected, outputs in _conversions(scan.rejected, options.frames):
        source = SeriesSource(_further(places[rejected.series.key], rejected.path.parent))
        for key, header in outputs:
            if isinstance(header, Header):
                contents.found.append(record(rejected, key, replace(source, output=key), header))
            else:
                reason = f"{header} [series {_title(rejected.series)}]"
                contents.excluded.append(Exclusion(printable(rejected.path), reason))


def _time_series(stacks: Sequence[Stack]) -> dict[tuple[str, str, str], list[Stack]]:
    """Return the series that show one place at several times, with their volumes."""
    by_series: dict[tuple[str, str, str], list[Stack]] = defaultdict(list)
    for stack in stacks:
        if any(key in stack.label for key in (*_TIMES, _PASS)):
            by_series[stack.series.key].append(stack)
    return {
        key: found
        for key, found in by_series.items()
        if any(_values(found, time) > 1 for time in _TIMES) or _values(found, _PASS) > _MOST_PASSES
    }


def _values(stacks: Iterable[Stack], key: str) -> int:
    """Return how many values of a trait the labels of volumes have; other traits or folders may tell more apart."""
    return len({match[0] for stack in stacks if (match := re.search(rf"{key}\w*?-[^_]*", stack.label))})


def _shared_identity(scan: FolderScan, pattern: re.Pattern[str] | None) -> Iterator[str]:
    """Report patients that may be several: those without an own name, and one with all studies."""
    if pattern is not None and "subject" in pattern.groupindex:
        return
    patients: dict[str, list[Stack | Rejected]] = defaultdict(list)
    for found in scan.results:
        patients[found.series.patient].append(found)
    for patient, own in sorted(patients.items()):
        visits = {found.series.study if patient else found.path.parent for found in own}
        nameless = identifies_nobody(patient)
        if len(visits) > 1 and (nameless or len(patients) == 1):
            shown = "no PatientID" if not patient else f"the PatientID {patient}" if nameless else "one PatientID"
            yield (
                f"{len(own)} series have {shown} and count as one subject. If they show several people, say where "
                "their names are in the path, such as subject_pattern='(?P<subject>[^/]+)/'"
            )


def _conversions(
    rejected: Sequence[Rejected], frames: bool
) -> Iterator[tuple[Rejected, list[tuple[str, Header | str]]]]:
    """Yield dcm2niix's conversion of each series: key and header of its images, or the reason of its failure."""

    def convert(series: Rejected) -> list[tuple[str, Header | str]]:
        try:
            with converted(series, MAX_VOXELS) as outputs:
                return [(output.key, _header(location_of(series, output), frames)) for output in outputs]
        except ExcludedImageError as exclusion:
            return [("", str(exclusion))]

    with ThreadPoolExecutor(default_workers()) as pool:
        yield from zip(rejected, pool.map(convert, rejected), strict=True)


def _header(place: Location, frames: bool) -> Header | str:
    try:
        return header_at(place, frames=frames)
    except ExcludedImageError as exclusion:
        return f"{exclusion} [{place.note}]"


def _places(scan: FolderScan) -> dict[tuple[str, str, str], set[Path]]:
    """Return the folders with slices of each series."""
    folders: dict[tuple[str, str, str], set[Path]] = defaultdict(set)
    for found in scan.results:
        own = set(map(Path, {frame.folder for frame in found.frames}))
        for key in {frame.series.key for frame in found.frames}:
            folders[key] |= own
    return folders


def _further(folders: Iterable[Path], first: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder for folder in folders if folder != first))


def _names(found: Stack | Rejected, relative: Path, pattern: re.Pattern[str] | None) -> Names:
    series = found.series
    stated = stated_names(PurePosixPath(relative.as_posix()), pattern)
    modality = _MODALITIES.get(series.modality, series.modality) or UNKNOWN
    if modality in ("MR", UNKNOWN) and (guessed := modality_of(series.description)) != UNKNOWN:
        modality = guessed
    if series.modality == "MR" and is_phase(found.frames[0]):
        modality += "_phase"
    return Names(
        stated.get("subject") or patient_name(series.patient),
        stated.get("session") or f"study-{short_hash(series.study)}",
        stated.get("modality") or modality,
    )


def _title(series: Series) -> str:
    words = re.sub(r"[^A-Za-z0-9.+-]+", "_", series.description).strip("_")
    return "_".join(filter(None, ("" if series.number is None else f"{series.number:03d}", words))) or "series"
