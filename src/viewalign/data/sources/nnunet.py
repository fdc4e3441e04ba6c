"""A raw dataset of nnU-Net or of the Medical Segmentation Decathlon: `dataset.json` beside `imagesTr`.

`imagesTr/CASE_0000.nii.gz` is channel 0 of a case; `channel_names` (`modality` in older files) names the channels. A
case is a subject, unless its name follows a known scheme (`patient001_frame01`, `BraTS-GLI-00000-001`); its channels
are images of one session. Labels are ignored; `imagesTs` is a test set and excluded, as is any other folder beside
`imagesTr`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from viewalign.data.catalogue import DEFAULT_SESSION
from viewalign.data.file_types import SUFFIXES
from viewalign.data.layout import read_json
from viewalign.data.sources.naming import UNKNOWN, alike_subjects, modality_of, person_of, stated_names
from viewalign.data.sources.records import FindOptions, ImageRecord, SourceContents
from viewalign.data.sources.walk import image_files
from viewalign.errors import UserError, os_reason
from viewalign.utils.io import is_folder

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_MOST_CHANNELS = 10
"""Of images whose channels are not described."""


def is_root(folder: Path, files: Collection[str], folders: Collection[str]) -> bool:  # noqa: ARG001 - names suffice
    """Accept a folder with `dataset.json` and `imagesTr`."""
    return "dataset.json" in files and "imagesTr" in folders


def find(root: Path, dataset: str, options: FindOptions) -> SourceContents:
    """List the training images of a dataset.

    Raises:
        UserError: `dataset.json` is damaged, or its images are of an unsupported type.
    """
    channels = _channels(root / "dataset.json")
    contents = SourceContents()
    images = list(image_files(root / "imagesTr", contents))
    cases = split_channels([stem for _, stem in images], len(channels))
    unsure: set[str] = set()
    for path, stem in images:
        case, channel = cases[stem]
        relative = PurePosixPath(path.relative_to(root).as_posix())
        stated = {**person_of(relative, case), **stated_names(relative, options.subject_pattern)}
        if "subject" not in stated:
            unsure.add(case)
        contents.found.append(
            ImageRecord(
                path,
                dataset,
                stated.get("subject", case),
                stated.get("session", DEFAULT_SESSION),
                stem,
                stated.get("modality") or channels.get(channel, UNKNOWN),
            )
        )
    if options.subject_pattern is None and (note := alike_subjects(unsure, f" in {dataset}")):
        contents.notes.append(note)
    for folder in sorted(root.glob("images*")):
        if folder.name != "imagesTr" and is_folder(folder):
            kind = "is a test set" if folder.name == "imagesTs" else "is not the training set"
            contents.notes.append(f"{dataset}/{folder.name} {kind} and was excluded (index it itself to include it)")
    return contents


def split_channels(stems: Sequence[str], channels: int = 0) -> dict[str, tuple[str, int]]:
    """Return case and channel of each name; numbers of four digits may also belong to the case (`amos_0001`).

    They are channels if each case has a channel 0 and none beyond the described ones. If none are described, there must
    be several cases of at most ten channels.

    Args:
        stems: names without suffix of all images of a folder.
        channels: number of described ones; 0 if that is unknown.
    """
    matches = {stem: match for stem in stems if (match := _CHANNEL.match(stem))}
    numbers: dict[str, set[int]] = defaultdict(set)
    for match in matches.values():
        numbers[match["case"]].add(int(match["channel"]))
    limit = channels or (_MOST_CHANNELS if len(numbers) > 1 and len(matches) == len(stems) else 0)
    if not all(0 in found and max(found) < limit for found in numbers.values()):
        return {stem: (stem, 0) for stem in stems}
    named = {stem: (match["case"], int(match["channel"])) for stem, match in matches.items()}
    return {stem: named.get(stem, (stem, 0)) for stem in stems}


def _channels(path: Path) -> dict[int, str]:
    try:
        described: dict[str, Any] = read_json(path)
        ending = str(described.get("file_ending", ".nii.gz"))
        named = described.get("channel_names") or described.get("modality") or {}
        channels = {int(number): str(name) for number, name in dict(named).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a dataset.json of nnU-Net: {os_reason(error)}.") from None
    if ending.lower() not in SUFFIXES:
        raise UserError(f"{path}: images of type {ending} are not supported. Supported types: {', '.join(SUFFIXES)}.")
    return {number: _modality(name) for number, name in channels.items()}


def _modality(name: str) -> str:
    known = modality_of(name)
    return name if known == UNKNOWN else known
