"""Contents of a source: images with subject and session, and excluded files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from viewalign.data.catalogue import AssociatedMasks, Info, SeriesSource
from viewalign.data.readers.dicom_stacks import Stack
from viewalign.data.readers.headers import Header
from viewalign.utils.io import is_file

_VOXELS_OF = {".img": (".hdr",), ".raw": (".mhd", ".nhdr"), ".zraw": (".mhd",)}
"""Suffixes of headers whose voxels are in a file with this suffix."""


@dataclass(frozen=True)
class FindOptions:
    """Options of the search.

    Attributes:
        subject_pattern: regular expression searched in the path relative to the source; its named groups `subject`,
            `session` and `modality` override what would be inferred.
        labels: include label maps (`…_seg`, `…_label`, folders `labels`, `labelsTr`).
        frames: include 4-D files.
        workers: processes that read headers of DICOM files, as for `index_sources`.
        on_file: called with (DICOM files read, total).
    """

    subject_pattern: re.Pattern[str] | None = None
    labels: bool = False
    on_file: Callable[[int, int], None] | None = None
    frames: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Infos:
    """Further information by level, as in the catalogue."""

    dataset: Info = None
    subject: Info = None
    session: Info = None
    image: Info = None


@dataclass(frozen=True)
class ImageRecord:
    """One image file with its dataset, subject and session.

    Attributes:
        path: the file; of a DICOM stack the first by name.
        stack: the DICOM stack, so that its headers need not be read again.
        header: of dcm2niix's conversion of its series.
        series: source of the slices of its DICOM series.
        masks: paths of masks on its voxels.
        infos: further information.
        written: the path in the catalogue, if it differs (`$VARIABLE/…`).
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
    header: Header | None = None
    series: SeriesSource | None = None


@dataclass(frozen=True, order=True)
class Exclusion:
    """One file that was excluded, and why; `image` is the path of its image in a store, empty if it is not known."""

    file: str
    reason: str
    image: str = field(default="", compare=False)

    def as_json(self) -> dict[str, str]:
        """Return `{"file": …, "reason": …}`."""
        return {"file": self.file, "reason": self.reason}


@dataclass
class SourceContents:
    """The images of a source, excluded files, and further findings.

    Attributes:
        other_files: number of files of unsupported types, by suffix (`""` for none).
        label_files: label maps, recognised by their names, that were ignored.
        collection: index and name, if the source is a catalogue with these.
        notes: sentences about what was ignored on purpose.
    """

    found: list[ImageRecord] = field(default_factory=list)
    excluded: list[Exclusion] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    label_files: list[Path] = field(default_factory=list)
    collection: tuple[int | str, str] | None = None
    notes: list[str] = field(default_factory=list)

    def pass_over(self, path: Path) -> None:
        """Count a file of an unsupported type, unless it has the voxels of a header beside it."""
        if not any(is_file(path.with_suffix(suffix)) for suffix in _VOXELS_OF.get(path.suffix.lower(), ())):
            packed = path.suffix.lower() == ".gz"
            self.other_files["".join(path.suffixes[-2:] if packed else path.suffixes[-1:]).lower()] += 1

    def add(self, other: SourceContents) -> None:
        """Append other contents."""
        self.found.extend(other.found)
        self.excluded.extend(other.excluded)
        self.other_files.update(other.other_files)
        self.label_files.extend(other.label_files)
        self.notes.extend(other.notes)
