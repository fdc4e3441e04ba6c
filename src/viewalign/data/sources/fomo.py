"""FOMO60K and its kin: `sub_1/ses_1/t1.nii.gz`. Names stay as they are; a `participants.tsv` is read."""

from __future__ import annotations

import re
from pathlib import Path

from viewalign.data.sources.folder import dataset_name
from viewalign.data.sources.naming import modality_of
from viewalign.data.sources.records import FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.table import participants
from viewalign.data.sources.walk import absolute, image_files

_PLACE = re.compile(r"^(?P<outer>(?:.+/)?)(?P<subject>sub_\d+)/(?P<session>ses_\d+)/(?:.+/)?[^/]+$", re.DOTALL)


def claims(text: str) -> bool:
    """Take a folder with `sub_N/ses_N` in it or one level down."""
    root = Path(text)
    return root.is_dir() and any(
        re.fullmatch(r"ses_\d+", path.name) and re.fullmatch(r"sub_\d+", path.parent.name)
        for depth in ("sub_*/ses_*", "*/sub_*/ses_*")
        for path in root.glob(depth)
    )


def find(text: str, options: FindOptions) -> SourceContents:  # noqa: ARG001 - the tree leaves nothing to guess
    """List the images of a tree `sub_N/ses_N`; a folder above `sub_N` is the dataset."""
    root = absolute(text)
    findings = SourceContents()
    people = participants(root / "participants.tsv")
    for path, stem in image_files(root, findings):
        place = _PLACE.match(path.relative_to(root).as_posix())
        if place is None:
            findings.notes.append(f"{path.name} lies outside sub_N/ses_N and was left out")
            continue
        subject = place["subject"]
        outer = place["outer"].strip("/").replace("/", "_")
        infos = Infos(subject=people.get(subject))
        findings.found.append(
            ImageRecord(
                path, outer or dataset_name(root), subject, place["session"], stem, modality_of(stem), infos=infos
            )
        )
    return findings
