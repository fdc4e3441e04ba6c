"""A BIDS dataset: `dataset_description.json`, `participants.tsv`, `sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz`.

The modality is the suffix of the name, as BIDS defines it, with `_phase` for phase images (`part-phase`). The units of
PET are read from the JSON file beside the image. `derivatives`, `sourcedata`, `code` and `stimuli` are
ignored, and so are masks and segmentations. A row of `participants.tsv` becomes the subject's info.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from viewalign.data.catalogue import DEFAULT_SESSION
from viewalign.data.layout import read_json
from viewalign.data.sources.label_names import is_label
from viewalign.data.sources.naming import DERIVED_FOLDERS, pattern_names, stated_names, units_named, with_part
from viewalign.data.sources.records import FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.table import participants
from viewalign.data.sources.walk import image_files
from viewalign.utils.io import is_folder
from viewalign.utils.text import counted

_PASSED_OVER = DERIVED_FOLDERS | {"code", "stimuli"}
_DESCRIBED = ("Name", "License", "DatasetDOI", "BIDSVersion")
_DESCRIPTIONS = frozenset(("dataset_description.json", "participants.tsv"))
_DATA_TYPES = ("anat", "dwi", "func", "perf", "fmap", "pet")
_OPENNEURO = re.compile(r"ds\d{6}")


def is_root(folder: Path, files: Collection[str], folders: Collection[str]) -> bool:
    """Accept a folder of `sub-…` folders that has a description, an OpenNeuro number or BIDS's data types."""
    subjects = sorted(name for name in folders if name.startswith("sub-"))
    if not subjects:
        return False
    if not _DESCRIPTIONS.isdisjoint(files) or _OPENNEURO.fullmatch(folder.name):
        return True
    first = folder / subjects[0]
    return any(is_folder(inner / name) for inner in (first, *first.glob("ses-*")) for name in _DATA_TYPES)


def find(root: Path, dataset: str, options: FindOptions) -> SourceContents:
    """List the images of a BIDS dataset."""
    contents = SourceContents()
    people = participants(root, contents.notes)
    description = _description(root)
    derived, stray = 0, []
    for path, stem in image_files(root, contents):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if not relative.parts[0].startswith("sub-") or len(relative.parts) == 1:
            if relative.parts[0] in _PASSED_OVER:
                derived += 1
            else:
                stray.append(relative)
            continue
        if not options.labels and is_label(relative, stem):
            contents.label_files.append(path)
            continue
        own = {"subject": relative.parts[0]}
        if folder := next((part for part in relative.parts[1:-1] if part.startswith("ses-")), None):
            own["session"] = folder
        stated = {**stated_names(relative), **own, **pattern_names(options.subject_pattern, relative)}
        subject, session = stated["subject"], stated.get("session", DEFAULT_SESSION)
        modality = stated.get("modality") or with_part(stem.rpartition("_")[2], stem)
        units = _units(path.with_name(f"{stem}.json")) if modality == "pet" else ""
        image = {"units": units} if units else None
        infos = Infos(description, people.get(relative.parts[0]), image=image)
        contents.found.append(ImageRecord(path, dataset, subject, session, stem, modality, infos=infos))
    if derived:
        contents.notes.append(
            f"{counted(derived, 'image')} ignored under derivatives/ or sourcedata/ of {dataset} (index that folder "
            "itself to include them)"
        )
    if stray:
        contents.notes.append(
            f"{counted(len(stray), 'image')} ignored outside the folders sub-… of {dataset}, such as {stray[0]} (index "
            "their folder itself to include them)"
        )
    return contents


def _units(sidecar: Path) -> str:
    try:
        return units_named(str(read_json(sidecar)["Units"]))
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _description(root: Path) -> dict[str, str] | None:
    try:
        described = read_json(root / "dataset_description.json")
        return {key: str(described[key]) for key in _DESCRIBED if key in described} or None
    except (OSError, ValueError, TypeError):
        return None
