"""A folder walked recursively, a single file, or a pattern such as `'data/*/T1.nii.gz'`.

What cannot be an image though its name says so (broken link, a folder) is set aside with the reason; label maps, told
by their names, are passed over and counted. DICOM slices are gathered into stacks, folder by folder.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from viewalign.data.file_types import suffix_of
from viewalign.data.readers.dicom_files import may_be_dicom
from viewalign.data.sources.dicom import add_stacks
from viewalign.data.sources.naming import PLAIN_FOLDERS, is_label, names_of
from viewalign.data.sources.records import Exclusion, FindOptions, ImageRecord, SourceContents
from viewalign.data.sources.walk import absolute, obvious_fault, printable, walk
from viewalign.errors import UserError


def claims(text: str) -> bool:
    """Take what exists, and every pattern."""
    return os.path.lexists(text) or glob.has_magic(text)


def find(text: str, options: FindOptions) -> SourceContents:
    """List the images of a folder, file or pattern, in the order of their paths.

    Raises:
        UserError: the pattern matches nothing.
    """
    root, candidates, findings = _candidates(text)
    dataset = dataset_name(root)
    slices: set[Path] = set()
    for path in sorted(candidates):
        suffix = suffix_of(path.name)
        if suffix is None:
            if may_be_dicom(path):
                slices.add(path.parent)
            else:
                findings.other_files += 1
            continue
        relative = PurePosixPath(path.relative_to(root).as_posix())
        stem = path.name[: -len(suffix)]
        if (reason := obvious_fault(path)) is not None:
            findings.excluded.append(Exclusion(printable(path), reason))
            continue
        if not options.labels and is_label(relative, stem):
            findings.label_files += 1
            continue
        subject, session, modality = names_of(relative, stem, options.subject_pattern)
        findings.found.append(ImageRecord(path, dataset, subject, session, stem, modality))
    add_stacks(slices, root, dataset, options, findings)
    return findings


def dataset_name(root: Path) -> str:
    """Return what a folder's images are called together: its name, or its parent's where it is only `images`."""
    name = root.parent.name if root.name.lower() in PLAIN_FOLDERS and root.parent.name else root.name
    return name.encode("utf-8", "replace").decode("utf-8") or "dataset"


def _candidates(text: str) -> tuple[Path, Iterable[Path], SourceContents]:
    findings = SourceContents()
    if os.path.lexists(text):
        path = absolute(text)
        if path.is_dir():
            return path, list(walk(path, findings)), findings
        return path.parent, [path], findings
    paths = [absolute(hit) for hit in glob.glob(text, recursive=True)]  # noqa: PTH207
    if not paths:
        raise UserError(f"The pattern {text} matches no file.")
    parents = [str(path.parent) for path in paths]
    root = Path(os.path.commonpath(parents))
    files = {path for path in paths if not path.is_dir() or suffix_of(path.name)}
    inside = {inner for path in paths if path not in files for inner in walk(path, findings)}
    return root, files | inside, findings
