"""Subject, session and modality of an image, inferred from its path. The first rule that matches decides:

1. `subject_pattern`: named groups `subject`, `session`, `modality`.
2. `sub-XX` or `sub_XX` (and `ses-XX` or `ses_XX`) at the start of a folder's or the file's name.
3. The naming scheme of a public cohort: ADNI and others of LONI, BraTS, CT-RATE, Human Connectome Project, IXI, OASIS,
   UK Biobank.
4. A file name such as `patient01_study1_T1W`: a word for a person with a number, perhaps followed by one for a visit.
5. A file name that is only a modality (`anna/T1.nii.gz`, `anna/visit2/T1.nii.gz`), or a folder that is a subject by the
   names of all files (`structure`): the folders are subject and session.
6. Otherwise each file is its own subject, named by its path without a modality at the end: `anna_T1` and `anna_T2` in
   one folder both belong to `anna`.

Folders that name no person are ignored: `images`, `imagesTr`, `data` …, kinds of images (`T1`, `mri`, `orig`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from itertools import pairwise
from pathlib import PurePosixPath
from typing import NamedTuple

from viewalign.data.catalogue import DEFAULT_SESSION

UNKNOWN = "unknown"
NAME_SUBJECTS = (
    "set a subject pattern or name the subjects in a table: images of one subject must not be split between training "
    "and validation"
)
"""What to do about subjects that may be the same person; the end of a sentence."""

_MODALITIES = {
    "T1w": "t1 t1w t1n t1weighted mprage mp2rage spgr",
    "T1post": "t1post t1ce t1c t1gd t1gad t1wce t1wpost",
    "T2w": "t2 t2w t2weighted",
    "FLAIR": "flair t2flair t2f",
    "PDw": "pd pdw",
    "T2starw": "t2star t2starw t2s gre",
    "SWI": "swi",
    "TOF": "tof mra angio",
    "DWI": "dwi dti trace hbv",
    "ADC": "adc",
    "BOLD": "bold fmri",
    "PET": "pet suv",
    "CT": "ct cta ctpa cect ncct ctres",
    "MR": "mr mri lgemri",
}
_BY_WORD = {word: modality for modality, words in _MODALITIES.items() for word in words.split()}
_LAST_ONLY = {"pt": "PET"}
"""Words that name a modality at the end of a name; elsewhere `pt` may be a patient."""
_SEQUENCES = frozenset(("T1w", "T2w", "FLAIR", "DWI"))
_OF_FOLDERS = _SEQUENCES | {"CT", "MR", "PET"}
"""Modalities that the name of a folder may state; others are too often words of something else."""
_PLAIN_FOLDER = re.compile(
    r"images?(tr|ts|va|val)?|imgs?|data|raw(data)?|nifti|nii|volumes|mri|anat|unprocessed|processed|orig(inals?)?|pre"
    r"|preprocessed|native|mni|registered",
    re.IGNORECASE,
)
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

_SUBJECT = re.compile(
    r"^sub(?:-(?P<name>[^\W\d_]+(?:-\d[^\W_]*)+|[^\W_]+)|_(?P<other>[^\W\d_]+_\d[^\W_]*(?=_)|[^\W_]+))"
)
"""`sub-01`, `sub-CAM-001` and `sub_CAM_001_…`: a word and numbers after it are one name."""
_SESSION = re.compile(r"(?:^|_)ses[-_]([A-Za-z0-9]+)")
_PERSON = re.compile(r"^(?P<subject>(?:patient|subject|subj|case|pat|person)[-_]?\d+)(?:_|$)", re.IGNORECASE)
_VISIT = re.compile(
    r"(?:^|_)(?P<session>(?:study|session|visit|scan|timepoint|time|tp|baseline|followup)[-_]?\d*)(?:_|$)",
    re.IGNORECASE,
)
_VISIT_FOLDER = re.compile(rf"ses[-_].*|{_VISIT.pattern}", re.IGNORECASE)
_TERSE_VISIT = re.compile(
    r"v\d{1,2}|(?:19|20)\d\d(?P<mark>[-_.]?)(?:0[1-9]|1[0-2])(?P=mark)(?:0[1-9]|[12]\d|3[01])", re.IGNORECASE
)
"""A visit, as `V2` or `20190131`, if the folder around it has a number too; else it may be the name of a person."""
_DATED_FOLDER = re.compile(r"(?P<session>\d{4}-\d\d-\d\d|\d\d-\d\d-\d{4})(?!\d).*")
_COHORTS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:^|/)(?:ADNI_)?(?P<subject>\d{3}_S_\d{4,5})(?:/[^/]+/(?P<session>\d{4}-\d\d-\d\d)[^/]*)?(?=/|_|$)",  # ADNI
        r"(?:^|/)(?P<subject>[^/]+)/[^/]+/(?P<session>\d{4}-\d\d-\d\d)_\d\d_\d\d_\d\d\.\d/[^/]+/[^/]+$",  # LONI
        r"(?:^|/)[A-Z][A-Za-z0-9]*_(?P<subject>[^/]+?)_(?:MR|PT|CT)_[^/]*_S\d+_I\d+(?=[_.]|$)",  # LONI, in one folder
        r"(?:^|/)(?P<subject>OAS[1-4]_?\d{4})_(?P<session>[A-Za-z]+\d*(?:_d\d{4})?)(?=[/_.]|$)",  # OASIS
        r"(?:^|/)(?P<subject>BraTS-[A-Za-z]+-\d{5})-(?P<session>\d{3})(?=[-/._]|$)",  # BraTS 2023 on
        r"(?:^|/)(?P<subject>(?:train|valid)_\d+)_(?P<session>[a-z])_\d+(?=[_.]|$)",  # CT-RATE
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


def names_of(relative: PurePosixPath, stem: str, pattern: re.Pattern[str] | None = None, owned: bool = False) -> Names:
    """Infer names from the path.

    Args:
        relative: the path relative to the source.
        stem: the file's name without suffix.
        pattern: states names, see above.
        owned: whether the folder is known to be that of a subject.
    """
    relative, stem = _composed(relative), unicodedata.normalize("NFC", stem)
    who = {"session": DEFAULT_SESSION, **(person_of(relative, stem) or _by_place(relative, stem, owned))}
    guess = Names(who["subject"], who["session"], with_part(_modality(relative, stem), stem))
    groups = pattern_names(pattern, relative)
    return guess._replace(**{key: groups[key] for key in groups if key in Names._fields})


def person_of(relative: PurePosixPath, stem: str) -> dict[str, str]:
    """Return `subject`, and `session` if there is one, by rules 2 to 4; empty if none of them matches.

    Args:
        relative: the path relative to the source.
        stem: the file's name without suffix.
    """
    relative, stem = _composed(relative), unicodedata.normalize("NFC", stem)
    parts = (*relative.parts[:-1], stem)
    for subject in filter(None, (_SUBJECT.search(part) for part in reversed(parts))):
        session = next(filter(None, (_SESSION.search(part) for part in reversed(parts))), None)
        return {"subject": f"sub-{_named(subject)}", **({"session": f"ses-{_named(session)}"} if session else {})}
    for cohort in _COHORTS:
        if groups := pattern_names(cohort, relative):
            return groups
    if person := _PERSON.search(stem):
        visit = _VISIT.search(stem[person.end() :])
        return person.groupdict() | (visit.groupdict() if visit else {})
    return {}


def stated_names(relative: PurePosixPath, pattern: re.Pattern[str] | None = None) -> dict[str, str]:
    """Return only what the path states: groups of the pattern, `sub-01` and `ses-1`; keys as in `Names`."""
    relative = _composed(relative)
    stated: dict[str, str] = {}
    for key, shape in (("subject", _SUBJECT), ("session", _SESSION)):
        match = next(filter(None, (shape.search(part) for part in reversed(relative.parts))), None)
        if match:
            stated[key] = f"{key[:3]}-{_named(match)}"
    return {**stated, **pattern_names(pattern, relative)}


def modality_of(stem: str) -> str:
    """Return the modality of the last recognisable word of a name, or `unknown`."""
    words = words_of(stem)
    known = (_BY_WORD[word] for word in reversed(words) if word in _BY_WORD)
    return _LAST_ONLY.get(words[-1]) or next(known, UNKNOWN)


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


def dataset_above_subject(relative: PurePosixPath) -> str:
    """Return the dataset named by the folders above a subject, such as `siteA`; "" without one.

    The subject is a folder, as in `siteA/sub-01/T1.nii`, or the file: `siteA/sub-01_T1.nii`, `siteA/patient01_T1.nii`.
    """
    folders = relative.parts[:-1]
    depth = next((number for number, part in enumerate(folders) if _SUBJECT.search(part)), 0)
    if _names_subject(relative.name.split(".")[0]) and not any(map(_names_subject, folders)):
        depth = len(folders)
    outer = (part for part in folders[:depth] if modality_of(part) == UNKNOWN and not is_plain(part))
    visits = (_VISIT_FOLDER, _DATED_FOLDER, _TERSE_VISIT)
    return "_".join(part for part in outer if not any(visit.fullmatch(part) for visit in visits))


def _composed(relative: PurePosixPath) -> PurePosixPath:
    """Return a path with composed accented letters, which macOS decomposes into two characters."""
    return PurePosixPath(unicodedata.normalize("NFC", str(relative)))


def _names_subject(word: str) -> bool:
    return bool(_SUBJECT.search(word) or _PERSON.search(word))


def _named(match: re.Match[str]) -> str:
    """Return the label of a subject or session that a pattern matched."""
    return str(next(filter(None, match.groups())))


def fewer_subjects(subjects: Collection[str]) -> int:
    """Return how many subjects there would be if names that differ only in the last word were the same; 0 if none."""
    stems = set(map(_without_last_word, subjects))
    return len(stems) if 1 < len(stems) <= 0.75 * len(subjects) else 0


def _without_last_word(name: str) -> str:
    return re.sub(r"[-_. ]?[A-Za-z0-9]+$", "", name) or name


def alike_subjects(subjects: Collection[str], of: str = "") -> str | None:
    """Return a sentence on subjects that may be fewer people (`fewer_subjects`), or None.

    Args:
        subjects: names that were inferred from paths in no known scheme.
        of: where they are, ` in DATASET`.
    """
    if not (fewer := fewer_subjects(subjects)):
        return None
    pairs = pairwise(sorted(subjects, key=lambda name: (_without_last_word(name), name)))
    one, other = next(pair for pair in pairs if len(set(map(_without_last_word, pair))) == 1)
    return (
        f"{len(subjects):,} subjects{of} look like {fewer:,} if the last word of a name, as in {one} and {other}, does "
        f"not matter. If they show the same person, {NAME_SUBJECTS}"
    )


def words_of(stem: str) -> list[str]:
    """Return the words of a name in lower case."""
    return re.split(r"[^A-Za-z0-9]+", stem.lower())


def pattern_names(pattern: re.Pattern[str] | None, relative: PurePosixPath) -> dict[str, str]:
    """Return the named groups of a pattern that a path fills."""
    match = pattern.search(unicodedata.normalize("NFC", relative.as_posix())) if pattern else None
    return {key: value for key, value in match.groupdict().items() if value} if match else {}


def identity_folders(relative: PurePosixPath) -> tuple[list[str], str]:
    """Return the folders of a path that may name a subject, from the outside in, and the session that they name."""
    session, folders = DEFAULT_SESSION, list(relative.parts[:-1])
    while folders:
        dated = _DATED_FOLDER.fullmatch(folders[-1])
        around = folders[-2] if len(folders) > 1 else ""
        terse = re.search(r"\d", around) and not _is_kind(around) and _TERSE_VISIT.fullmatch(folders[-1])
        if not (dated or terse or _is_kind(folders[-1]) or (around and _VISIT.fullmatch(folders[-1]))):
            break
        last = folders.pop()
        if not _is_kind(last):
            session = dated["session"] if dated else last
    return [part for part in folders if not _is_kind(part)], session


def _is_kind(folder: str) -> bool:
    """Return whether a folder names a kind of images: `images`, `mri`, `T1`."""
    return is_plain(folder) or folder.lower() in _BY_WORD


def _modality(relative: PurePosixPath, stem: str) -> str:
    """Return the modality of a name, or of the innermost folder that states one, or a sequence for `MR`."""
    if (found := modality_of(stem)) not in (UNKNOWN, "MR"):
        return found
    known = _SEQUENCES if found == "MR" else _OF_FOLDERS
    of_folders = map(modality_of, reversed(relative.parts[:-1]))
    return next((each for each in of_folders if each in known), found)


def _by_place(relative: PurePosixPath, stem: str, owned: bool) -> dict[str, str]:
    """Return subject and session by rule 5, or the subject by rule 6."""
    folders, day = identity_folders(relative)
    if folders and (owned or stem.lower() in _BY_WORD):
        return {"subject": "_".join(folders), "session": day}
    own = [part for part in relative.parts[:-1] if not _is_kind(part)]
    return {"subject": "_".join((*own, _without_modality(stem)))}


def _without_modality(stem: str) -> str:
    """Return a name up to its modality, if that is the last word or words without a number follow it: `1_t2_SPACE`."""
    words = list(re.finditer(r"[A-Za-z0-9]+", stem))
    for word in words:
        head = re.sub(r"[\W_]+$", "", stem[: word.start()])
        if head and (word[0].lower() in _BY_WORD or (word is words[-1] and word[0].lower() in _LAST_ONLY)):
            rest = stem[word.end() :]
            if word is words[-1] or (re.search(r"\d", head) and not re.search(r"\d", rest)):
                return head
    return stem
