"""FOMO60K: `sub_1/ses_1/t1.nii.gz`. Names are kept; a `participants.tsv` is read."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from viewalign.data.sources.naming import modality_of
from viewalign.data.sources.records import FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.table import participants
from viewalign.data.sources.walk import image_files
from viewalign.utils.text import counted

_SHOWN = 3
_SUBJECT, _SESSION = re.compile(r"sub_\d+"), re.compile(r"ses_\d+")


def is_root(folder: Path, files: Collection[str], folders: Collection[str]) -> bool:  # noqa: ARG001 - folders suffice
    """Accept a folder with `sub_N/ses_N` in it."""
    first = next(filter(_SUBJECT.fullmatch, sorted(folders)), None)
    return first is not None and any(_SESSION.fullmatch(path.name) for path in (folder / first).glob("*"))


def find(root: Path, dataset: str, options: FindOptions) -> SourceContents:  # noqa: ARG001 - all names are known
    """List the images of a tree `sub_N/ses_N`."""
    contents = SourceContents()
    people = participants(root, contents.notes)
    stray: list[str] = []
    for path, stem in image_files(root, contents):
        subject, session, *inner = (*path.relative_to(root).parts, "")
        if not (_SUBJECT.fullmatch(subject) and _SESSION.fullmatch(session) and any(inner)):
            stray.append(path.name)
            continue
        infos = Infos(subject=people.get(subject))
        contents.found.append(ImageRecord(path, dataset, subject, session, stem, modality_of(stem), infos=infos))
    if stray:
        shown = ", ".join(stray[:_SHOWN])
        contents.notes.append(f"{counted(len(stray), 'image')} ignored outside sub_N/ses_N, such as {shown}")
    return contents
