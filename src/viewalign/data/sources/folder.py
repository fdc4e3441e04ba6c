"""A folder searched recursively, a single file, or a pattern such as `'data/*/T1.nii.gz'`.

Each subfolder that has a known layout (nnU-Net, OpenMind, BIDS, FOMO) is a separate dataset, read by that layout's
rules. Everything else belongs to one dataset named after the folder; DICOM slices are grouped into stacks. Label maps,
recognised by their names, and folders of derivatives are ignored and counted.
"""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from viewalign.data.file_types import suffix_of
from viewalign.data.readers.dicom_files import may_be_dicom
from viewalign.data.readers.pointers import missing_content
from viewalign.data.sources import bids, fomo, fomo300k, nnunet, openmind
from viewalign.data.sources.dicom import add_stacks
from viewalign.data.sources.label_names import in_label_folder, is_label
from viewalign.data.sources.naming import (
    DERIVED_FOLDERS,
    Names,
    alike_subjects,
    dataset_above_subject,
    is_plain,
    names_of,
    pattern_names,
    person_of,
)
from viewalign.data.sources.nnunet import split_channels
from viewalign.data.sources.records import Exclusion, FindOptions, ImageRecord, SourceContents
from viewalign.data.sources.structure import in_subject_folders, paired_label_maps
from viewalign.data.sources.walk import absolute, obvious_fault, printable, unwritable_name, walk
from viewalign.errors import UserError
from viewalign.utils.io import is_folder
from viewalign.utils.text import counted


class Layout(Protocol):
    """Interface of the module of a folder layout."""

    def is_root(self, folder: Path, files: Collection[str], folders: Collection[str]) -> bool:
        """Return whether a folder with these files and folders is the root of a dataset of this layout."""

    def find(self, root: Path, dataset: str, options: FindOptions) -> SourceContents:
        """List the images below a root, as images of `dataset`."""


LAYOUTS: Sequence[Layout] = (nnunet, openmind, fomo300k, bids, fomo)


def can_read(text: str) -> bool:
    """Accept existing paths and all patterns."""
    return os.path.lexists(text) or glob.has_magic(text)


def find(text: str, options: FindOptions) -> SourceContents:
    """List the images of a folder, file or pattern: those of known layouts by dataset, then the others by path.

    Raises:
        UserError: the pattern matches nothing, or the folder itself is a damaged dataset of a known layout.
    """
    search = _Search(text)
    contents = search.contents
    for layout, root in search.datasets:
        name = "_".join(root.relative_to(search.root).parts) or dataset_name(root)
        try:
            contents.add(layout.find(root, name, options))
        except UserError as error:
            if root == search.root:
                raise
            contents.excluded.append(Exclusion(printable(root), str(error)))
    _add_plain(search.files, search.root, options, contents)
    if search.derived:
        contents.notes.append(
            f"Ignored: {counted(search.derived, 'folder')} called derivatives or sourcedata (index such a folder "
            "itself to include its images)"
        )
    return contents


def dataset_name(root: Path) -> str:
    """Return the name of a folder's dataset: the folder's, or its parent's if it is only `images`."""
    name = root.parent.name if is_plain(root.name) and root.parent.name else root.name
    return name.encode("utf-8", "replace").decode("utf-8") or "dataset"


class _Search:
    """Walks a source once.

    Attributes:
        root: names are relative to this folder.
        datasets: roots of datasets of a known layout.
        files: all other files.
        derived: number of folders of derivatives that were not entered.
    """

    def __init__(self, text: str) -> None:
        self.contents = SourceContents()
        self.datasets: list[tuple[Layout, Path]] = []
        self.derived = 0
        paths = [absolute(text)] if os.path.lexists(text) else _matches(text)
        folders = [path for path in paths if is_folder(path) and (len(paths) == 1 or not suffix_of(path.name))]
        whole = len(paths) == 1 and bool(folders)
        self.root = paths[0] if whole else Path(os.path.commonpath([str(path.parent) for path in paths]))
        self._given = set(folders)
        self.files = {path for path in paths if path not in self._given}
        for folder in folders:
            self.files.update(walk(folder, self.contents, self._claim))

    def _claim(self, folder: Path, files: list[str], folders: list[str]) -> bool:
        layout = next((each for each in LAYOUTS if each.is_root(folder, files, folders)), None)
        if layout is not None:
            self.datasets.append((layout, folder))
            return True
        if folder.name in DERIVED_FOLDERS and folder not in self._given:
            self.derived += 1
            return True
        return False


def _matches(pattern: str) -> list[Path]:
    paths = sorted({absolute(hit) for hit in glob.glob(pattern, recursive=True)})  # noqa: PTH207
    if not paths:
        raise UserError(f"The pattern {pattern} matches no file.")
    inside = set(paths)
    return [path for path in paths if inside.isdisjoint(path.parents)]


def _add_file(
    path: Path, relative: PurePosixPath, options: FindOptions, contents: SourceContents, slices: set[Path]
) -> None:
    """Add the folder of a file that is not named like an image to those with DICOM, or count the file."""
    if not may_be_dicom(path):
        contents.pass_over(path)
    elif not options.labels and in_label_folder(relative):
        contents.label_files.append(path)
    elif (reason := missing_content(path) or unwritable_name(path)) is not None:
        contents.excluded.append(Exclusion(printable(path), reason))
    else:
        slices.add(path.parent)


def _named(stems: Mapping[PurePosixPath, str], options: FindOptions) -> dict[PurePosixPath, Names]:
    """Return the names of images by their paths, from the names of all of them."""
    owned = in_subject_folders(stems)
    beside: dict[PurePosixPath, list[str]] = defaultdict(list)
    for relative, stem in stems.items():
        beside[relative.parent].append(stem)
    cases = {folder: split_channels(names) for folder, names in beside.items()}
    return {
        relative: names_of(relative, cases[relative.parent][stem][0], options.subject_pattern, relative in owned)
        for relative, stem in stems.items()
    }


def _add_plain(files: Iterable[Path], root: Path, options: FindOptions, contents: SourceContents) -> None:
    """Add files that belong to no known layout."""
    dataset = dataset_name(root)
    slices: set[Path] = set()
    stems: dict[PurePosixPath, str] = {}
    for path in sorted(files):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if (suffix := suffix_of(path.name)) is None:
            _add_file(path, relative, options, contents, slices)
            continue
        stem = path.name[: -len(suffix)]
        if (reason := obvious_fault(path)) is not None:
            contents.excluded.append(Exclusion(printable(path), reason))
        elif not options.labels and is_label(relative, stem):
            contents.label_files.append(path)
        else:
            stems[relative] = stem
    if not options.labels:
        for relative in sorted(paired_label_maps(stems)):
            contents.label_files.append(root / relative)
            del stems[relative]
    pattern = options.subject_pattern
    if pattern and (others := [one for one in stems if not pattern_names(pattern, one)]):
        some = f"{len(stems) - len(others):,} of {len(stems):,} paths (others are named by other rules); not"
        none = f"no path ({len(stems):,} tried), such as"
        contents.notes.append(f"subject_pattern matches {some if len(others) < len(stems) else none} {others[0]}")
    unsure: set[str] = set()
    for relative, names in _named(stems, options).items():
        inner = dataset if pattern else dataset_above_subject(relative) or dataset
        subject, session, modality = names
        contents.found.append(ImageRecord(root / relative, inner, subject, session, stems[relative], modality))
        if not person_of(relative, stems[relative]):
            unsure.add(subject)
    if pattern is None and (note := alike_subjects(unsure, f" in {dataset}")):
        contents.notes.append(note)
    add_stacks(slices, root, dataset, options, contents)
