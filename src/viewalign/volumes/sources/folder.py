"""A folder walked recursively, a single file, or a pattern such as `'data/*/T1.nii.gz'`.

Names that begin with a dot are passed over, links are followed (a folder is entered once). What cannot be an image
though its name says so (broken link, a folder) is set aside with the reason; label maps, told by their names, are
passed over and counted.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from viewalign.errors import UserError
from viewalign.volumes.filetypes import suffix_of
from viewalign.volumes.sources.findings import Findings, FindOptions, Found, Refusal
from viewalign.volumes.sources.naming import PLAIN_FOLDERS, is_label, names_of


def claims(text: str) -> bool:
    """Take what exists, and every pattern."""
    return os.path.lexists(text) or glob.has_magic(text)


def find(text: str, options: FindOptions) -> Findings:
    """List the images of a folder, file or pattern, in the order of their paths.

    Raises:
        UserError: the pattern matches nothing.
    """
    root, candidates, findings = _candidates(text)
    dataset = _dataset_name(root)
    for path in sorted(candidates):
        suffix = suffix_of(path.name)
        if suffix is None:
            findings.other_files += 1
            findings.dicom_files += path.name.lower().endswith((".dcm", ".ima"))
            continue
        relative = PurePosixPath(path.relative_to(root).as_posix())
        stem = path.name[: -len(suffix)]
        if (reason := _obvious_fault(path)) is not None:
            findings.refused.append(Refusal(_printable(path), reason))
            continue
        if not options.labels and is_label(relative, stem):
            findings.label_files += 1
            continue
        subject, session, modality = names_of(relative, stem, options.subject_pattern)
        findings.found.append(Found(path, dataset, subject, session, stem, modality))
    return findings


def _candidates(text: str) -> tuple[Path, Iterable[Path], Findings]:
    findings = Findings()
    if os.path.lexists(text):
        path = Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would follow links and lose the user's names
        if path.is_dir():
            return path, list(_walk(path, findings)), findings
        return path.parent, [path], findings
    paths = [Path(os.path.abspath(hit)) for hit in glob.glob(text, recursive=True)]  # noqa: PTH100, PTH207
    if not paths:
        raise UserError(f"The pattern {text} matches no file.")
    parents = [str(path.parent) for path in paths]
    root = Path(os.path.commonpath(parents))
    files = [path for path in paths if not path.is_dir() or suffix_of(path.name)]
    inside = [inner for path in paths if path not in set(files) for inner in _walk(path, findings)]
    return root, set(files) | set(inside), findings


def _walk(root: Path, findings: Findings) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        findings.refused.append(Refusal(str(error.filename), f"the folder cannot be listed: {error.strerror}"))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*files, *(name for name in folders if suffix_of(name))):
            if not name.startswith("."):
                yield Path(folder) / name


def _obvious_fault(path: Path) -> str | None:
    if path.is_symlink() and not path.exists():
        return "the link is broken: it points to a file that does not exist"
    if path.is_dir():
        return "it is a folder with the name of an image"
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    return None


def _printable(path: Path) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _dataset_name(root: Path) -> str:
    name = root.parent.name if root.name.lower() in PLAIN_FOLDERS and root.parent.name else root.name
    return name.encode("utf-8", "replace").decode("utf-8") or "dataset"
