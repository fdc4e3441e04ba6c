"""FOMO300K: `PT001_Name/sub-01/ses-01/anat/sub-01_ses-01_T1w.nii.gz`, `PT030_OpenNeuro/ds000001/sub-01/…`.

Numbers of subjects start again in every source, and for OpenNeuro in every `ds…`, so that each of these is a dataset.
The modality is the suffix of the name: diffusion is divided into `dwi_b0`, `dwi` and `dwi_trace` (the published trace
is an ADC), with its b-value as information; `scan` is unknown. Of the tables, `participants.tsv` has age, sex and
handedness by session, and `mri_info.tsv` the acquisition of each image. Diagnoses (`group`) are not read.

Sessions are published as archives, `ses-01.zip`, which are not read but counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from viewalign.data.catalogue import DEFAULT_SESSION
from viewalign.data.sources.naming import UNKNOWN, stated_names
from viewalign.data.sources.records import FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.table import read_table
from viewalign.data.sources.walk import image_files
from viewalign.errors import UserError
from viewalign.utils.io import is_file
from viewalign.utils.text import counted

_SOURCE = re.compile(r"PT\d{3}_\w+")
_OPENNEURO = re.compile(r"ds\d{6}")
_SUFFIX = re.compile(r"(?:^|.*_)(?:ses-[A-Za-z0-9]+|run-\d+)_(.+)")
_DIFFUSION = re.compile(r"dwi_bval(\d+)(_trace)?")
_NO_DIFFUSION = 5
"""Largest b-value in s/mm² that counts as none."""
_OF_SESSION = ("age", "sex", "handedness")
_OF_IMAGE = (
    "Modality",
    "MagneticFieldStrength",
    "Manufacturer",
    "ManufacturersModelName",
    "MRAcquisitionType",
    "SeriesDescription",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "FlipAngle",
    "SliceThickness",
)

Key = tuple[str, ...]
Facts = dict[str, Any]


def is_root(folder: Path, files: Collection[str], folders: Collection[str]) -> bool:  # noqa: ARG001 - folders suffice
    """Accept a folder of sources (`PT001_Name`, with `sub-…` or `ds…` in them), or one of these."""
    return any(map(_is_source, (folder, *(folder / name for name in sorted(folders)))))


def _is_source(folder: Path) -> bool:
    inside = folder.glob("*") if _SOURCE.fullmatch(folder.name) else ()
    return any(path.name.startswith("sub-") or _OPENNEURO.fullmatch(path.name) for path in inside)


def find(root: Path, dataset: str, options: FindOptions) -> SourceContents:  # noqa: ARG001 - it names its datasets
    """List the images of a tree of sources, or of one source."""
    contents, stray = SourceContents(), 0
    base = root.parent if _SOURCE.fullmatch(root.name) else root
    people = _table(base, root, "participants.tsv", _OF_SESSION, contents.notes)
    scans = _table(base, root, "mri_info.tsv", _OF_IMAGE, contents.notes)
    for path, stem in image_files(root, contents):
        relative = PurePosixPath(path.relative_to(base).as_posix())
        above = [part for part in relative.parts[:2] if _SOURCE.fullmatch(part) or _OPENNEURO.fullmatch(part)]
        stated = stated_names(relative, options.subject_pattern)
        if not above or "subject" not in stated:
            stray += 1
            continue
        subject, session = stated["subject"], stated.get("session", DEFAULT_SESSION)
        modality, facts = modality_of(stem)
        key = ("/".join(above), subject, session)
        infos = Infos(session=people.get(key), image={**facts, **scans.get((*key, path.name), {})} or None)
        name = stated.get("modality", modality)
        contents.found.append(ImageRecord(path, "_".join(above), subject, session, stem, name, infos=infos))
    if stray:
        contents.notes.append(f"Excluded, in no subject of a source (PT…): {counted(stray, 'image')}")
    if archives := contents.other_files.get(".zip", 0):
        contents.notes.append(
            f"Ignored, because not unpacked: {counted(archives, 'archive')}; unpack each into a folder of its name: "
            f"find {root} -name 'ses-*.zip' -exec sh -c 'unzip -nq \"$1\" -d \"${{1%.zip}}\"' sh {{}} ';'"
        )
    return contents


def modality_of(stem: str) -> tuple[str, dict[str, Any]]:
    """Return the modality of a name without ending, and its b-value in s/mm² (`b_value`) if it is diffusion."""
    match = _SUFFIX.fullmatch(stem)
    suffix = match[1] if match else stem.rpartition("_")[2]
    if diffusion := _DIFFUSION.fullmatch(suffix):
        value = int(diffusion[1])
        kind = "dwi_trace" if diffusion[2] else "dwi_b0" if value <= _NO_DIFFUSION else "dwi"
        return kind, {"b_value": value}
    return UNKNOWN if suffix == "scan" else suffix, {}


def _table(base: Path, root: Path, name: str, columns: tuple[str, ...], notes: list[str]) -> dict[Key, Facts]:
    """Return columns of a table's rows by dataset, subject, session and, if it is one of images, the file's name.

    There is one at the root, and one in each source. They only add information, so that a damaged one is a note.
    """
    found: dict[Key, Facts] = {}
    for file in [base / name] if is_file(base / name) else sorted((*root.glob(name), *root.glob(f"PT*/{name}"))):
        try:
            rows = read_table(file)[1]
        except UserError as problem:
            notes.append(f"{problem} Its information is ignored")
            continue
        for row in rows:
            key = tuple(row.get(column, "") for column in ("dataset", "participant_id", "session_id"))
            image = PurePosixPath(row.get("filename", "")).name
            found[(*key, image) if image else key] = {column: row[column] for column in columns if column in row}
    return found
