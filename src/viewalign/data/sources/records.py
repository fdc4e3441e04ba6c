"""What a source gives: images with whose they are, and what it set aside."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from viewalign.data.catalogue import AssociatedMasks, Info
from viewalign.data.readers.dicom_stacks import Stack


@dataclass(frozen=True)
class FindOptions:
    """How to look.

    Attributes:
        subject_pattern: regular expression searched in the path relative to the source; its named groups `subject`,
            `session` and `modality` rule over what would be guessed.
        labels: take label maps too (`…_seg`, `…_label`, folders `labels`, `labelsTr`).
        frames: take in 4-D files.
        on_folder: called with (DICOM folders read, DICOM folders in all), for that may take long.
    """

    subject_pattern: re.Pattern[str] | None = None
    labels: bool = False
    on_folder: Callable[[int, int], None] | None = None
    frames: bool = False


@dataclass(frozen=True)
class Infos:
    """What else is known, level by level, as it goes into the catalogue."""

    dataset: Info = None
    subject: Info = None
    session: Info = None
    image: Info = None


@dataclass(frozen=True)
class ImageRecord:
    """One image file and whose it is.

    Attributes:
        path: the file; of a DICOM stack the first by name.
        stack: the DICOM stack, so that its headers are not read again.
        masks: paths of masks on its voxels.
        infos: what else is known of it.
        written: how the catalogue shall write the path, if not as it is (`$VARIABLE/…`).
    """

    path: Path
    dataset: str
    subject: str
    session: str
    name: str
    modality: str
    masks: AssociatedMasks | None = None
    infos: Infos = Infos()
    written: str | None = None
    stack: Stack | None = None


@dataclass(frozen=True, order=True)
class Exclusion:
    """One file that was set aside, and why."""

    file: str
    reason: str

    def as_json(self) -> dict[str, str]:
        """Return `{"file": …, "reason": …}`."""
        return {"file": self.file, "reason": self.reason}


@dataclass
class SourceContents:
    """The images of a source, what was set aside, and how many other files were passed over.

    Attributes:
        collection: index and name, where the source is a catalogue that has them.
        notes: sentences on what was left out on purpose.
    """

    found: list[ImageRecord] = field(default_factory=list)
    excluded: list[Exclusion] = field(default_factory=list)
    other_files: int = 0
    label_files: int = 0
    collection: tuple[int | str, str] | None = None
    notes: list[str] = field(default_factory=list)
