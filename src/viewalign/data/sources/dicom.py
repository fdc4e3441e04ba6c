"""The DICOM stacks of folders, named without naming the patient.

A subject is `patient-` and a hash of the PatientID (of the study where there is none), a session `study-` and a hash of
the StudyInstanceUID: the same person gets the same name from every source, and neither catalogue nor store nor report
holds an identifier. A subject stated in the path (`sub-01`, `--subject-pattern`) rules over that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from viewalign.data.readers.dicom_folders import scan_folder
from viewalign.data.readers.dicom_stacks import Stack
from viewalign.data.sources.naming import UNKNOWN, Names, modality_of, stated_names
from viewalign.data.sources.records import Exclusion, FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.walk import printable

_MODALITIES = {"PT": "PET"}


def add_stacks(
    folders: Iterable[Path], root: Path, dataset: str, options: FindOptions, contents: SourceContents
) -> None:
    """Add the stacks of these folders (not of those below them) to the contents, with what was excluded."""
    ordered = sorted(set(folders))
    for count, folder in enumerate(ordered):
        if options.on_folder:
            options.on_folder(count, len(ordered))
        scan = scan_folder(folder)
        contents.other_files.update({"DICOM without images": scan.other} if scan.other else {})
        contents.excluded.extend(Exclusion(printable(path), reason) for path, reason in scan.damaged)
        for rejected in scan.rejected:
            series = rejected.frames[0].series
            reason = f"{rejected.reason} [series {_title(series.number, series.description)}]"
            contents.excluded.append(Exclusion(printable(rejected.path), reason))
        for stack in scan.stacks:
            names = _names(stack, stack.path.relative_to(root), options.subject_pattern)
            info = {"dicom_series": _hash(stack.series.uid), "slices": len(stack.frames)}
            contents.found.append(
                ImageRecord(
                    *(stack.path, dataset, names.subject, names.session, _image_name(stack), names.modality),
                    infos=Infos(image=info),
                    stack=stack,
                )
            )


def _names(stack: Stack, relative: Path, pattern: re.Pattern[str] | None) -> Names:
    series = stack.series
    stated = stated_names(PurePosixPath(relative.as_posix()), pattern)
    guessed = modality_of(series.description)
    modality = guessed if guessed != UNKNOWN else _MODALITIES.get(series.modality, series.modality) or UNKNOWN
    return Names(
        stated.get("subject") or f"patient-{_hash(series.patient)}",
        stated.get("session") or f"study-{_hash(series.study)}",
        stated.get("modality") or modality,
    )


def _image_name(stack: Stack) -> str:
    return "_".join(filter(None, (_title(stack.series.number, stack.series.description), stack.label)))


def _title(number: int | None, description: str) -> str:
    words = re.sub(r"[^A-Za-z0-9.+-]+", "_", description).strip("_")
    return "_".join(filter(None, ("" if number is None else f"{number:03d}", words))) or "series"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
