"""Series that the package's own reader cannot place, converted by dcm2niix (extra `dicom`).

dcm2niix knows the private fields of scanners: mosaics, directions of diffusion, time series without a time, tilted
gantries. It runs in a separate process with limits of time, memory and file size. It also writes images of series
that it could not place, with only a warning, so its messages are checked, and its images like any other file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from viewalign.data.readers.dicom_stacks import Rejected
from viewalign.errors import ExcludedImageError

_SECONDS = 900
_BASE_BYTES = 1 << 30
_BYTES_PER_VOXEL = 16
_NAME = "image"
_OPTIONS = (
    *("-g", "i"),  # no defaults from the user's folder
    *("-b", "n", "-z", "n", "-d", "0", "-f", _NAME),
    *("-l", "n"),  # corrects gaps and tilt of signed numbers only
    *("-p", "n"),  # values as RescaleSlope and RescaleIntercept define them
)
_CORRECTED = re.compile(r"(_Tilt|_Eq)+(_\d+)?$")
_UNSOLVED = (
    ("MOSAIC but number of slices not specified", None, "the number of slices in its mosaics is missing"),
    ("Interslice distance varies", "_Eq", "its gaps could not be made equal"),
    ("gantry tilt", "_Tilt", "its tilt could not be corrected"),
    ("slice orientation varies", None, "its slices have different directions"),
    ("images may be missing", None, "slices are missing"),
    ("Missing images. Found", None, "slices are missing"),
    ("Slice positions repeated", None, "slices are missing"),
)
"""Message of dcm2niix, part of the name of the image in which the problem is corrected, and what to report."""


@dataclass(frozen=True)
class Output:
    """An image that dcm2niix wrote.

    Attributes:
        key: distinguishes it from the others of its series: `""`, `e2`, `ph` …
        path: a NIfTI file in a temporary folder.
        version: of dcm2niix.
    """

    key: str
    path: Path
    version: str


def executable() -> str | None:
    """Return dcm2niix's path, of the PyPI package or the system; None if there is none."""
    if find_spec("dcm2niix") is not None:
        import dcm2niix

        return str(dcm2niix.bin)
    return shutil.which("dcm2niix")


@contextmanager
def converted(series: Rejected, max_voxels: int) -> Iterator[list[Output]]:
    """Convert a series and yield the images, sorted by key; they are removed afterwards.

    Raises:
        ExcludedImageError: it cannot be converted, or dcm2niix is not installed, fails, or could not place the slices.
    """
    if not series.convertible:
        raise ExcludedImageError(series.reason)
    try:
        with _converted({frame.path for frame in series.frames}, max_voxels) as outputs:
            yield outputs
    except ConversionError as error:
        raise ExcludedImageError(f"{series.reason}; {error}") from None


class ConversionError(Exception):
    """Conversion failed; the text is the reason."""


@contextmanager
def _converted(files: Collection[Path], max_voxels: int) -> Iterator[list[Output]]:
    program = executable()
    if program is None:
        raise ConversionError("dcm2niix may convert it: pip install dcm2niix")
    with tempfile.TemporaryDirectory(prefix="viewalign-") as folder:
        inputs, outputs = Path(folder) / "in", Path(folder) / "out"
        inputs.mkdir()
        outputs.mkdir()
        for number, file in enumerate(sorted(files)):
            (inputs / f"{number:06d}.dcm").symlink_to(file.absolute())
        log = _run([program, *_OPTIONS, "-o", str(outputs), str(inputs)], max_voxels)
        version = re.search(r"version (v[\w.]+)", log)
        yield _outputs(outputs, log, version[1] if version else "of unknown version")


def _run(command: list[str], max_voxels: int) -> str:
    memory = _BASE_BYTES + _BYTES_PER_VOXEL * max_voxels
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    )
    if sys.platform == "linux":
        import resource

        for limit, value in (
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_FSIZE, memory),
            (resource.RLIMIT_CPU, _SECONDS),
        ):
            resource.prlimit(process.pid, limit, (value, value))
    try:
        log, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConversionError(f"dcm2niix took more than {_SECONDS} seconds for it") from None
    finally:
        process.kill()
        process.wait()
    if process.returncode < 0:
        raise ConversionError(f"dcm2niix crashed on it (signal {-process.returncode})")
    return log


def _outputs(folder: Path, log: str, version: str) -> list[Output]:
    names = sorted(path.stem for path in folder.glob("*.nii"))
    mended = {_CORRECTED.sub("", name) for name in names if _CORRECTED.search(name)}
    for message, part, reason in _UNSOLVED:
        if message in log and not (part and any(part in name for name in names)):
            raise ConversionError(f"dcm2niix cannot convert it: {reason}")
    error = re.search(r"^Error: ?(.*?)(?: /.*)?$", log, re.M)
    if not names or error:
        raise ConversionError(f"dcm2niix cannot convert it: {error[1] if error else 'it creates no image'}")
    keys = {name: name.removeprefix(_NAME).strip("_") for name in names if name not in mended}
    return [Output(key, folder / f"{name}.nii", version) for name, key in keys.items()]
