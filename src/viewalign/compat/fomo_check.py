"""Checks of a FOMO26 submission without its container: our reading of those of the organisers' validator, and more.

`predict.py` runs in this process on made-up images: one of T2* and SWI, both or none, thick slices, other axes and a
small image. Exit code, file, format, finite values and ranges are what the validator checks. Affine of a mask, use of
the network and the time of a case are not checked by it, but matter.
"""

from __future__ import annotations

import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import torch
from pydantic import Field

from viewalign.compat.fomo_tasks import TASKS
from viewalign.errors import UserError
from viewalign.utils.settings import Settings
from viewalign.utils.text import counted

SECONDS = 120.0
"""Time limit of a case, on one H100 with 32 CPUs."""

REQUIRED: dict[int, tuple[str, ...]] = {
    1: ("flair", "dwi", "adc"),
    2: ("flair", "dwi"),
    3: ("t1",),
    4: ("t2",),
    5: ("t1",),
    6: ("input",),
    7: ("input",),
}
"""Arguments of each task; tasks 1 and 2 have `--t2s` or `--swi` too."""

_GEOMETRIES = (
    ("RAS", (48, 56, 40), (1.0, 1.0, 1.0)),
    ("LPS", (64, 60, 16), (0.9, 0.9, 6.0)),
    ("PIR", (40, 48, 44), (1.2, 0.8, 0.8)),
    ("RAS", (32, 32, 16), (1.0, 1.0, 1.0)),
)
"""Orientation, size and spacing in mm of the made-up images, in the order x, y, z."""


class CheckSettings(Settings):
    """Task of the submission."""

    task: Literal[1, 2, 3, 4, 5, 6, 7] = Field(description="1 to 5, or 6 or 7 for an embedding.")


@dataclass(frozen=True)
class CheckedCase:
    """A prediction for one made-up subject.

    Attributes:
        name: of the subject, with its images.
        seconds: that the prediction took.
        problems: what the organisers would reject, and what else is wrong; none if all checks passed.
    """

    name: str
    seconds: float
    problems: tuple[str, ...]

    def text(self) -> str:
        """Format as a line, with further lines for problems."""
        result = "failed" if self.problems else "passed"
        return "\n  ".join([f"{self.name}: {result}, {self.seconds:.1f} s", *self.problems])


def check_submission(folder: Path, task: int) -> list[CheckedCase]:
    """Run a submission on made-up subjects and check its output.

    Args:
        folder: from `fomo_submission.write_submission`.
        task: 1 to 7.

    Raises:
        UserError: the folder has no `predict.py`.
    """
    if not (folder / "predict.py").is_file():
        raise UserError(f"{folder} has no predict.py; write it with `viewalign fomo submission`.")
    ending = ".npy" if task > 5 else ".nii.gz" if TASKS[task].kind == "segmentation" else ".txt"
    cases, lengths = [], set()
    with tempfile.TemporaryDirectory(prefix="viewalign-") as scratch:
        for number, extra in enumerate([("t2s",), ("swi",), ("t2s", "swi"), ()]):
            words = (*REQUIRED[task], *(extra if task <= 2 else ()))
            base = Path(scratch) / f"subject{number + 1}"
            images = [_write_image(base / f"{word}.nii.gz", number, seed) for seed, word in enumerate(words)]
            out = base / "output" / f"subject{number + 1}{ending}"
            out.parent.mkdir()
            arguments = [part for word, file in zip(words, images, strict=True) for part in (f"--{word}", str(file))]
            seconds, problems = _run(folder / "predict.py", [*arguments, "--output", str(out)])
            problems += [] if problems else check_output(out, task, images[0])
            if task > 5 and not problems:
                lengths.add(np.load(out).size)
                problems += [f"embeddings have different lengths: {sorted(lengths)}"] if len(lengths) > 1 else []
            cases.append(CheckedCase(f"{base.name} ({', '.join(words)})", seconds, tuple(problems)))
    return cases


def _write_image(path: Path, number: int, seed: int) -> Path:
    """Write an ellipsoid of noise in one of the geometries."""
    code, size, spacing = _GEOMETRIES[number]
    rng = np.random.default_rng((number, seed))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij"))
    array = (np.square(grid).sum(0) < 0.7) * rng.normal(300, 60, size)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-20.0, 15.0, 4.0]
    image = nibabel.Nifti1Image(array.astype(np.float32), affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(code))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turn), path)
    return path


def _run(program: Path, arguments: list[str]) -> tuple[float, list[str]]:
    """Run a program in this process without network; return its seconds and what went wrong."""
    before, attempts, problems = sys.argv, list[str](), list[str]()
    sys.argv = [str(program), *arguments]
    start = time.monotonic()
    try:
        with _without_network(attempts):
            runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        if end.code:
            problems.append(f"the exit code is {end.code}")
    except Exception as problem:  # of a program that may have been edited
        problems.append(f"it ended with {type(problem).__name__}: {problem}")
    finally:
        sys.argv = before
    seconds = time.monotonic() - start
    if attempts:
        problems.append(f"it used the network ({', '.join(sorted(set(attempts)))})")
    if seconds > SECONDS and torch.cuda.is_available():
        problems.append(f"it took longer than {SECONDS:.0f} s")
    return seconds, problems


@contextmanager
def _without_network(attempts: list[str]) -> Iterator[None]:
    """Make sockets fail, local ones too, and record their use."""

    def refused(name: str) -> Callable[..., None]:
        def refuse(*_: Any) -> None:
            attempts.append(name)
            raise OSError("there is no network in the container")

        return refuse

    names = ("connect", "connect_ex", "bind")
    own = {name: getattr(socket.socket, name) for name in names}
    for name in names:
        setattr(socket.socket, name, refused(name))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(socket.socket, name, function)


def check_output(out: Path, task: int, image: Path) -> list[str]:
    """Return what is wrong with a prediction; `image` has the grid that a mask must have."""
    if not out.is_file() or not out.stat().st_size:
        return ["there is no output, or it is empty"]
    if out.suffix == ".txt":
        return _check_number(out, None if TASKS[task].kind == "regression" else (0.0, 1.0))
    return _check_embedding(out) if out.suffix == ".npy" else _check_mask(out, image, len(TASKS[task].labels))


def _check_number(out: Path, limits: tuple[float, float] | None) -> list[str]:
    try:
        words = out.read_text(encoding="utf-8").split()
        value = float(words[0]) if len(words) == 1 else None
    except ValueError:
        return ["the output is not a number in UTF-8"]
    if value is None:
        return [f"the output has {counted(len(words), 'word')}, not one number"]
    if not np.isfinite(value):
        return [f"the output {value} is not finite"]
    return [f"the output {value} is not in [0, 1]"] if limits and not limits[0] <= value <= limits[1] else []


def _check_mask(out: Path, image: Path, highest: int) -> list[str]:
    try:
        mask, like = (nibabel.Nifti1Image.from_filename(file) for file in (out, image))
        voxels = np.asarray(mask.dataobj, dtype=np.float64)
    except Exception as problem:  # nibabel raises many types for damaged files
        return [f"the mask cannot be read: {problem}"]
    if voxels.shape != like.shape:
        return [f"the mask has the shape {voxels.shape}, the image {like.shape}"]
    if not np.isfinite(voxels).all() or not np.array_equal(voxels, np.rint(voxels)):
        return ["the mask has values that are not integers"]
    problems = []
    if voxels.min() < 0 or voxels.max() > highest:
        problems.append(f"the mask has labels from {voxels.min():g} to {voxels.max():g}, not 0 to {highest}")
    if not np.allclose(mask.affine, like.affine, atol=1e-3):
        problems.append("the mask has another affine than the image")
    return problems


def _check_embedding(out: Path) -> list[str]:
    try:
        vector = np.load(out, allow_pickle=False)
    except (OSError, ValueError) as problem:
        return [f"the embedding cannot be read: {problem}"]
    if not np.issubdtype(vector.dtype, np.floating) or vector.squeeze().ndim != 1:
        return [f"the embedding is {vector.dtype} of the shape {vector.shape}, not floats in one dimension"]
    return [] if np.isfinite(vector).all() else ["the embedding is not finite"]
