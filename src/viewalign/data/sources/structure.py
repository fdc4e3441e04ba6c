"""Folders that are a subject, which no single name shows: `10000/10000_1000000_hbv.mha`, `bert/mri/orig.mgz`.

Folders side by side are subjects if most of their files are named by their folder (`training01/training01_01_pd`) or
have names that recur in the others (`imaging`, `orig`, `T1_brain`), so that a name is a kind of image, not a person.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

from viewalign.data.sources.naming import UNKNOWN, identity_folders, modality_of

_MOST_FILES = 8
"""Most files per folder, in multiples of the number of folders: datasets side by side are few folders of many files."""

_SEGMENTATION = re.compile(r"(?<![a-z])(seg|segs|segmentation)(?![a-z])", re.IGNORECASE)

Folder = tuple[str, ...]


def in_subject_folders(stems: Mapping[PurePosixPath, str]) -> set[PurePosixPath]:
    """Return the files whose folders are subjects.

    Args:
        stems: name without suffix of each file, by its path relative to the source.
    """
    beside: dict[Folder, dict[Folder, list[PurePosixPath]]] = defaultdict(lambda: defaultdict(list))
    for path in stems:
        folders, _ = identity_folders(path)
        if folders:
            beside[tuple(folders[:-1])][tuple(folders)].append(path)
    return {
        path
        for folders in beside.values()
        if len(folders) > 1 and _are_subjects(folders, stems)
        for paths in folders.values()
        for path in paths
    }


def _are_subjects(folders: Mapping[Folder, list[PurePosixPath]], stems: Mapping[PurePosixPath, str]) -> bool:
    """Return whether folders side by side are subjects, by at least half of their files."""
    rests = {path: _rest(folder[-1], stems[path]) for folder, paths in folders.items() for path in paths}
    in_folders = [{rests[path] or stems[path] for path in paths} for paths in folders.values()]
    recurring = Counter(name for names in in_folders for name in names)
    per_folder = len(rests) / len(folders)
    votes = 0
    for path, rest in rests.items():
        name = rest or stems[path]
        kind = re.search(r"[A-Za-z]$", name) is not None or modality_of(name) != UNKNOWN
        recurs = recurring[name] >= max(2, len(folders) / 2)
        named = rest is not None and (kind or recurs)
        most = _MOST_FILES * len(folders) if kind else len(folders)
        votes += (named and per_folder <= most) or (kind and recurs)
    return votes >= len(rests) / 2


def _rest(folder: str, stem: str) -> str | None:
    """Return what a name has beyond the words that it shares with its folder; None if these contain no number."""
    own, words = (re.findall(r"[^-_. ]+", text.lower()) for text in (folder, stem))
    shared = 0
    while shared < min(len(own), len(words)) and own[shared] == words[shared]:
        shared += 1
    return "_".join(words[shared:]) if any(re.search(r"\d", word) for word in own[:shared]) else None


def paired_label_maps(stems: Mapping[PurePosixPath, str]) -> set[PurePosixPath]:
    """Return files in folders such as `seg-lungs-LUNA16` that have the name of an image elsewhere."""
    marked = {path for path in stems if any(_SEGMENTATION.search(part) for part in path.parts[:-1])}
    names = {stem for path, stem in stems.items() if path not in marked}
    return {path for path in marked if stems[path] in names}
