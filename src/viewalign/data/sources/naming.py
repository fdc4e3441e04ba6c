"""Guess subject, session and modality from a path. The rules, first match first:

1. `--subject-pattern`: named groups `subject`, `session`, `modality`.
2. `sub-XX` or `sub_XX` (and `ses-XX` or `ses_XX`) at the beginning of a folder's or the file's name.
3. A file name such as `patient01_study1_T1W`: a word for a person with a number, then perhaps one for a visit.
4. A file name that is only a modality (`anna/T1.nii.gz`, `anna/visit2/T1.nii.gz`): the folders are subject and session.
5. Else the file is a subject of its own, named by its path without a modality at the end: `anna_T1` and `anna_T2` in
   one folder are both of `anna`. Folders called `images`, `imagesTr`, `data` … do not count.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple

from viewalign.data.catalogue import DEFAULT_SESSION

UNKNOWN = "unknown"

_MODALITIES = {
    "T1w": "t1 t1w t1n t1weighted mprage mp2rage spgr",
    "T1post": "t1post t1ce t1c t1gd t1gad t1wce t1wpost",
    "T2w": "t2 t2w t2weighted",
    "FLAIR": "flair t2flair t2f",
    "PDw": "pd pdw",
    "T2starw": "t2star t2starw t2s gre",
    "SWI": "swi",
    "TOF": "tof mra angio",
    "DWI": "dwi dti trace",
    "ADC": "adc",
    "BOLD": "bold fmri",
    "PET": "pet",
    "CT": "ct cta cect ncct",
    "MR": "mr mri",
}
_BY_WORD = {word: modality for modality, words in _MODALITIES.items() for word in words.split()}
PLAIN_FOLDERS = frozenset(("images", "imagestr", "imagests", "image", "data", "raw", "nifti", "nii", "volumes"))
"""Folder names that tell neither dataset nor subject."""
_LABEL_WORDS = frozenset(("label", "labels", "seg", "mask", "lesion", "lesions", "dseg", "probseg"))
_LABEL_FOLDERS = frozenset(("labels", "labelstr", "labelsts", "labelsva"))
_SUBJECT = re.compile(r"^sub[-_]([A-Za-z0-9]+)")
_SESSION = re.compile(r"(?:^|_)ses[-_]([A-Za-z0-9]+)")
_PERSON = re.compile(r"^(?P<subject>(?:patient|subject|subj|case|pat|person)[-_]?\d+)(?:_|$)", re.IGNORECASE)
_VISIT = re.compile(
    r"(?:^|_)(?P<session>(?:study|session|visit|scan|timepoint|time|tp|baseline|followup)[-_]?\d*)(?:_|$)",
    re.IGNORECASE,
)


class Names(NamedTuple):
    """Whose an image is and what it shows."""

    subject: str
    session: str
    modality: str


def names_of(relative: PurePosixPath, stem: str, pattern: re.Pattern[str] | None = None) -> Names:
    """Guess from the path relative to the source and the file's name without suffix."""
    guess = _guess(relative, stem)
    given = pattern.search(relative.as_posix()) if pattern else None
    if given is None:
        return guess
    groups = {key: value for key, value in given.groupdict().items() if value}
    return Names(
        groups.get("subject", guess.subject),
        groups.get("session", guess.session),
        groups.get("modality", guess.modality),
    )


def stated_names(relative: PurePosixPath, pattern: re.Pattern[str] | None = None) -> dict[str, str]:
    """Return only what the path states: groups of the pattern, `sub-01` and `ses-1`; keys as in `Names`."""
    stated: dict[str, str] = {}
    for key, shape in (("subject", _SUBJECT), ("session", _SESSION)):
        match = next(filter(None, (shape.search(part) for part in reversed(relative.parts))), None)
        if match:
            stated[key] = f"{key[:3]}-{match.group(1)}"
    given = pattern.search(relative.as_posix()) if pattern else None
    return {**stated, **{key: value for key, value in (given.groupdict() if given else {}).items() if value}}


def modality_of(stem: str) -> str:
    """Return the modality that the last recognisable word of a name stands for, or `unknown`."""
    words = re.split(r"[^A-Za-z0-9]+", stem.lower())
    return next((_BY_WORD[word] for word in reversed(words) if word in _BY_WORD), UNKNOWN)


def is_label(relative: PurePosixPath, stem: str) -> bool:
    """Say whether a path looks like a label map: `…_seg`, `…_label`, `…_mask`, or a folder such as `labelsTr`."""
    last = re.split(r"[^A-Za-z0-9]+", stem.lower())[-1]
    return last in _LABEL_WORDS or any(part.lower() in _LABEL_FOLDERS for part in relative.parts[:-1])


def _guess(relative: PurePosixPath, stem: str) -> Names:
    modality = modality_of(stem)
    parts = (*relative.parts[:-1], stem)
    for subject in filter(None, (_SUBJECT.search(part) for part in reversed(parts))):
        session = next(filter(None, (_SESSION.search(part) for part in reversed(parts))), None)
        return Names(f"sub-{subject.group(1)}", f"ses-{session.group(1)}" if session else DEFAULT_SESSION, modality)
    if person := _PERSON.search(stem):
        visit = _VISIT.search(stem[person.end() :])
        return Names(person.group("subject"), visit.group("session") if visit else DEFAULT_SESSION, modality)
    folders = [part for part in parts[:-1] if part.lower() not in PLAIN_FOLDERS]
    if stem.lower() in _BY_WORD and folders:
        visited = folders.pop() if len(folders) > 1 and _VISIT.fullmatch(folders[-1]) else DEFAULT_SESSION
        return Names("_".join(folders), visited, modality)
    return Names("_".join((*folders, _without_modality(stem))), DEFAULT_SESSION, modality)


def _without_modality(stem: str) -> str:
    head, _, last = stem.replace("-", "_").replace(".", "_").rpartition("_")
    return stem[: len(head)] if head and last.lower() in _BY_WORD else stem
