"""Subject, session and modality of an image, inferred from its path. The first rule that matches decides:

1. `subject_pattern`: named groups `subject`, `session`, `modality`.
2. `sub-XX` or `sub_XX` (and `ses-XX` or `ses_XX`) at the start of a folder's or the file's name.
3. The naming scheme of a public cohort: ADNI, BraTS, CT-RATE, Human Connectome Project, IXI, UK Biobank.
4. A file name such as `patient01_study1_T1W`: a word for a person with a number, perhaps followed by one for a visit.
5. A file name that is only a modality (`anna/T1.nii.gz`, `anna/visit2/T1.nii.gz`): the folders are subject and session.
6. Otherwise each file is its own subject, named by its path without a modality at the end: `anna_T1` and `anna_T2` in
   one folder both belong to `anna`. Folders called `images`, `imagesTr`, `data` … are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Collection
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
_PLAIN_FOLDER = re.compile(
    r"images?(tr|ts)?|imgs?|data|raw(data)?|nifti|nii|volumes|mri|anat|unprocessed", re.IGNORECASE
)
_LABEL_FOLDER = re.compile(
    r"labels?(tr|ts|va)?|lbls?|segs?|segmentations?|masks?|msks?|gt|ground_?truth|annotations?|rois|contours",
    re.IGNORECASE,
)
_LABEL_WORD = re.compile(
    r"(?:.*(?:mask|masks|msk|msks|seg|segs|segmentation|segmentations|label|labels|labelmap|parcellation)"
    r"|lbl|gt|groundtruth|lesion|lesions|aparc|wmparc|ribbon|roi|rois)\d*"
)
"""The last word of a label map's name; `aseg`, `dseg`, `probseg`, `lesionmask`, `label0001` match too."""
_LABEL_ANYWHERE = re.compile(r"masks?|msk|seg|segmentations?|labels?|labelmap|groundtruth|aseg|aparc")
"""Words that mark a label map anywhere in its name."""
_PART = re.compile(r"(?:^|_)part-(phase|real|imag)(?:_|$)")
_UNITS = {
    "bqml": "Bq/ml",
    "cnts": "counts",
    "propcps": "counts/s",
    "cps": "counts/s",
    "gml": "SUV",
    "suv": "SUV",
    "suvbw": "SUV",
    "kbqml": "kBq/ml",
}
"""Units of PET by the names that DICOM and BIDS have for them, without punctuation."""
DERIVED_FOLDERS = frozenset(("derivatives", "sourcedata"))
"""Folders of results computed from the images beside them, or of their raw form; not separate images."""

_SUBJECT = re.compile(r"^sub[-_]([A-Za-z0-9]+)")
_SESSION = re.compile(r"(?:^|_)ses[-_]([A-Za-z0-9]+)")
_PERSON = re.compile(r"^(?P<subject>(?:patient|subject|subj|case|pat|person)[-_]?\d+)(?:_|$)", re.IGNORECASE)
_VISIT = re.compile(
    r"(?:^|_)(?P<session>(?:study|session|visit|scan|timepoint|time|tp|baseline|followup)[-_]?\d*)(?:_|$)",
    re.IGNORECASE,
)
_VISIT_FOLDER = re.compile(rf"ses[-_].*|{_VISIT.pattern}", re.IGNORECASE)
_COHORTS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:^|/)(?P<subject>\d{3}_S_\d{4,5})(?:/[^/]+/(?P<session>\d{4}-\d\d-\d\d)[^/]*)?(?=/|_|$)",  # ADNI
        r"(?:^|/)(?P<subject>BraTS-[A-Za-z]+-\d{5})-(?P<session>\d{3})(?=[-/.]|$)",  # BraTS 2023 on
        r"(?:^|/)(?P<subject>(?:train|valid)_\d+)_(?P<session>[a-z])_\d+(?=\.|$)",  # CT-RATE
        r"(?:^|/)(?P<subject>\d{6})_(?P<session>[37]T)_",  # Human Connectome Project
        r"(?:^|/)(?P<subject>IXI\d{3})-[A-Za-z]+-\d+",  # IXI
        r"(?:^|/)(?P<subject>\d{7})_\d{5}_(?P<session>\d_\d)(?=/|\.|_|$)",  # UK Biobank
    )
)


class Names(NamedTuple):
    """The subject, session and modality of an image."""

    subject: str
    session: str
    modality: str


def names_of(relative: PurePosixPath, stem: str, pattern: re.Pattern[str] | None = None) -> Names:
    """Infer names from the path relative to the source and the file's name without suffix."""
    guess = _guess(relative, stem)
    guess = guess._replace(modality=with_part(guess.modality, stem))
    groups = _groups(pattern, relative)
    return guess._replace(**{key: groups[key] for key in groups if key in Names._fields})


def stated_names(relative: PurePosixPath, pattern: re.Pattern[str] | None = None) -> dict[str, str]:
    """Return only what the path states: groups of the pattern, `sub-01` and `ses-1`; keys as in `Names`."""
    stated: dict[str, str] = {}
    for key, shape in (("subject", _SUBJECT), ("session", _SESSION)):
        match = next(filter(None, (shape.search(part) for part in reversed(relative.parts))), None)
        if match:
            stated[key] = f"{key[:3]}-{match.group(1)}"
    return {**stated, **_groups(pattern, relative)}


def modality_of(stem: str) -> str:
    """Return the modality of the last recognisable word of a name, or `unknown`."""
    return next((_BY_WORD[word] for word in reversed(_words(stem)) if word in _BY_WORD), UNKNOWN)


def with_part(modality: str, stem: str) -> str:
    """Return a modality that keeps phase, real and imaginary images (`part-phase`) apart from magnitude images."""
    part = _PART.search(stem)
    return f"{modality}_{part[1]}" if part else modality


def units_named(text: str) -> str:
    """Return the name of a unit of PET that is the same for DICOM and BIDS; other units as they are."""
    return _UNITS.get(re.sub(r"[^a-z]", "", text.lower()), text)


def is_plain(folder: str) -> bool:
    """Return whether a folder's name, such as `images`, identifies neither dataset nor subject."""
    return _PLAIN_FOLDER.fullmatch(folder) is not None


def is_label(relative: PurePosixPath, stem: str) -> bool:
    """Return whether a path is like a label map: `…_seg`, `labels-0`, `…_gt`, or a folder such as `segmentations`."""
    words = _words(stem)
    last = next((word for word in reversed(words) if not word.isdigit()), "")
    return (
        _LABEL_WORD.fullmatch(last) is not None
        or any(map(_LABEL_ANYWHERE.fullmatch, words))
        or any(map(_LABEL_FOLDER.fullmatch, relative.parts[:-1]))
    )


def dataset_above_subject(relative: PurePosixPath) -> str:
    """Return the dataset named by the folders above `sub-XX`: `siteA` for `siteA/sub-01/T1.nii`; "" without one."""
    folders = relative.parts[:-1]
    depth = next((number for number, part in enumerate(folders) if _SUBJECT.search(part)), 0)
    outer = (part for part in folders[:depth] if modality_of(part) == UNKNOWN)
    return "_".join(part for part in outer if not is_plain(part) and not _VISIT_FOLDER.fullmatch(part))


def fewer_subjects(subjects: Collection[str]) -> int:
    """Return how many subjects there would be if names that differ only in the last word were the same; 0 if none."""
    stems = {re.sub(r"[-_. ]?[A-Za-z0-9]+$", "", name) or name for name in subjects}
    return len(stems) if 1 < len(stems) <= 0.75 * len(subjects) else 0


def _words(stem: str) -> list[str]:
    return re.split(r"[^A-Za-z0-9]+", stem.lower())


def _groups(pattern: re.Pattern[str] | None, relative: PurePosixPath) -> dict[str, str]:
    match = pattern.search(relative.as_posix()) if pattern else None
    return {key: value for key, value in match.groupdict().items() if value} if match else {}


def _guess(relative: PurePosixPath, stem: str) -> Names:
    modality = modality_of(stem)
    parts = (*relative.parts[:-1], stem)
    for subject in filter(None, (_SUBJECT.search(part) for part in reversed(parts))):
        session = next(filter(None, (_SESSION.search(part) for part in reversed(parts))), None)
        return Names(f"sub-{subject.group(1)}", f"ses-{session.group(1)}" if session else DEFAULT_SESSION, modality)
    for cohort in _COHORTS:
        if groups := _groups(cohort, relative):
            return Names(groups["subject"], groups.get("session", DEFAULT_SESSION), modality)
    if person := _PERSON.search(stem):
        visit = _VISIT.search(stem[person.end() :])
        return Names(person.group("subject"), visit.group("session") if visit else DEFAULT_SESSION, modality)
    folders = [part for part in parts[:-1] if not is_plain(part)]
    if stem.lower() in _BY_WORD and folders:
        visited = folders.pop() if len(folders) > 1 and _VISIT.fullmatch(folders[-1]) else DEFAULT_SESSION
        return Names("_".join(folders), visited, modality)
    return Names("_".join((*folders, _without_modality(stem))), DEFAULT_SESSION, modality)


def _without_modality(stem: str) -> str:
    head, _, last = stem.replace("-", "_").replace(".", "_").rpartition("_")
    return stem[: len(head)] if head and last.lower() in _BY_WORD else stem
