"""A BIDS dataset: `dataset_description.json`, `participants.tsv`, `sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz`.

Modality is the suffix of the name, as BIDS has it. `derivatives`, `sourcedata` and `code` are passed over, and so are
masks and segmentations. A row of `participants.tsv` becomes the subject's info.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from viewalign.data.catalogue import DEFAULT_SESSION
from viewalign.data.layout import read_json
from viewalign.data.sources.folder import dataset_name
from viewalign.data.sources.naming import is_label, stated_names
from viewalign.data.sources.records import FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.table import participants
from viewalign.data.sources.walk import absolute, image_files

_PASSED_OVER = frozenset(("derivatives", "sourcedata", "code", "stimuli"))
_DESCRIBED = ("Name", "License", "DatasetDOI", "BIDSVersion")


def claims(text: str) -> bool:
    """Take a folder with `dataset_description.json`, or with `participants.tsv` and a `sub-…` folder."""
    root = Path(text)
    if not root.is_dir():
        return False
    described = (root / "dataset_description.json").is_file() or (root / "participants.tsv").is_file()
    return described and any(path.is_dir() for path in root.glob("sub-*"))


def find(text: str, options: FindOptions) -> SourceContents:
    """List the images of a BIDS dataset."""
    root = absolute(text)
    findings = SourceContents()
    people = participants(root / "participants.tsv")
    described = _description(root)
    derived = 0
    for path, stem in image_files(root, findings):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        subject = re.match(r"sub-[^/]+$", relative.parts[0])
        if subject is None:
            derived += relative.parts[0] in _PASSED_OVER
            continue
        if not options.labels and is_label(relative, stem):
            findings.label_files += 1
            continue
        stated = stated_names(relative, options.subject_pattern)
        infos = Infos(described, people.get(subject.group()))
        findings.found.append(
            ImageRecord(
                path,
                dataset_name(root),
                stated.get("subject", subject.group()),
                stated.get("session", DEFAULT_SESSION),
                stem,
                stated.get("modality") or stem.rpartition("_")[2],
                infos=infos,
            )
        )
    if derived:
        findings.notes.append(f"{derived} images under derivatives/ and the like were passed over (give that folder)")
    return findings


def _description(root: Path) -> dict[str, str] | None:
    try:
        described = read_json(root / "dataset_description.json")
        return {key: str(described[key]) for key in _DESCRIBED if key in described} or None
    except (OSError, ValueError, TypeError):
        return None
