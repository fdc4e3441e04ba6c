"""Readers that end their process at some files, as a library may at a damaged one."""

import os
from pathlib import Path

from viewalign.data.readers import dicom_headers
from viewalign.tasks.preprocessing import Preprocessor


class Deadly(Preprocessor):
    """Crashes at images with certain names."""

    def __call__(self, images, mask=None):
        if any("deadly" in path.name for path in images.values()):
            os._exit(3)
        return super().__call__(images, mask)


_read_chunk = dicom_headers._read_chunk


def read_chunk(files: tuple[Path, ...]) -> dicom_headers.FilesRead:
    """Read headers of DICOM files; crashes at files with certain names."""
    if any("deadly" in path.name for path in files):
        os._exit(3)
    return _read_chunk(files)
