"""Smooth random fields, and where a deformed subject's voxels come from in the template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.worker_pool import WorkerLost, default_workers, run_jobs
from viewalign.errors import UserError
from viewalign.utils.io import atomic_write
from viewalign.utils.rng import make_rng

_BENDS = ((20.0, 2.5), (10.0, 0.8))
"""(width, size) in mm of the displacements: broad ones of some mm and narrower, smaller ones. Steeper would fold."""

Field = NDArray[np.float32]


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], spacing: float, width: float) -> Field:
    """Draw a smooth random field of zero mean and unit deviation.

    Args:
        rng: where the noise comes from.
        shape: of the field, in voxels.
        spacing: of the voxels, in mm.
        width: deviation of the Gaussian that smooths white noise, in mm.

    Returns:
        float32 of `shape`.
    """
    # White noise on coarse nodes, spread by Gaussians: smoothing and interpolation in one product per axis.
    node = width / 2
    matrices = []
    for n in shape:
        nodes = np.arange(-4 * width, n * spacing + 4 * width, node)
        bumps = np.exp(-0.5 * ((spacing * np.arange(n)[:, None] - nodes) / width) ** 2)
        matrices.append((bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32))
    field = rng.standard_normal([matrix.shape[1] for matrix in matrices], dtype=np.float32)
    for matrix in matrices:
        # The axis worked on moves to the end each time, so that after three all are in order again.
        field = np.tensordot(field, matrix, axes=([0], [1]))
    return field


def displacement(rng: np.random.Generator, shape: tuple[int, int, int], spacing: float) -> Field:
    """Draw displacements in mm, float32 (3, *shape): a few mm, smooth enough that nothing folds."""
    total = np.zeros((3, *shape), dtype=np.float32)
    for axis in range(3):
        for width, size in _BENDS:
            total[axis] += np.float32(size) * smooth_field(rng, shape, spacing, width)
    return total


def mild_affine(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a 3×3 matrix: turns of up to 8° about each axis, scales of 0.92 to 1.08, shears of up to 0.03."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-8, 8, size=3))):
        one, other = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[one, one] = step[other, other] = np.cos(angle)
        step[one, other], step[other, one] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    shear = np.eye(3) + np.triu(rng.uniform(-0.03, 0.03, size=(3, 3)), k=1)
    return np.asarray(turn @ shear @ np.diag(rng.uniform(0.92, 1.08, size=3)))


_NEEDED = {"nilearn": "nilearn", "sklearn": "scikit-learn", "scipy": "scipy"}


@dataclass(frozen=True)
class Template:
    """MNI152 on a 1 mm grid with an empty frame; array axes are x, y, z towards right, front and top.

    Attributes:
        t1: intensity in [0, 1], 0 outside the brain.
        tissues: (3, X, Y, Z) probabilities of fluid and all other, grey matter, white matter; they sum to `brain`.
        brain: 1 inside the brain mask, else 0.
        origin: centre of voxel (0, 0, 0) in mm.
    """

    t1: NDArray[np.float32]
    tissues: NDArray[np.float32]
    brain: NDArray[np.float32]
    origin: NDArray[np.float64]


def require_extras() -> None:
    """Make sure that what the demo needs beyond pretraining is installed.

    Raises:
        UserError: something is missing; the sentence says how to install it.
    """
    missing = [name for module, name in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"The demo needs {', '.join(missing)}: pip install 'viewalign[demo]'.")


@cache
def load_template() -> Template:
    """Load the template; no network is used.

    Raises:
        UserError: nilearn is not installed.
    """
    require_extras()
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=1)
    brain = _framed(datasets.load_mni152_brain_mask(resolution=1))
    grey = _framed(datasets.load_mni152_gm_template(resolution=1)) * brain
    white = _framed(datasets.load_mni152_wm_template(resolution=1)) * brain
    solid = np.maximum(grey + white, 1.0)
    grey, white = grey / solid, white / solid
    tissues = np.stack([brain - grey - white, grey, white])
    return Template(_framed(image) * brain, tissues, brain, np.asarray(image.affine[:3, 3] - 1.0))


def _framed(image: Any) -> NDArray[np.float32]:
    """Return the voxels with an empty frame of one: the brain stem ends at the template's border."""
    return np.pad(np.asarray(image.dataobj, dtype=np.float32), 1)


NOTE = (
    "This cohort is synthetic: one template brain, deformed. Every image was made from the MNI152 T1 average (as "
    "shipped with nilearn) by a random smooth deformation of a few millimetres, a random T1-, T2- or PD-like contrast, "
    "a bias field and noise; the labels are the template's tissue maps under the same deformation. It shows that the "
    "program works from end to end. It says nothing about patients, scanners or lesions."
)

CONTRASTS: dict[str, tuple[float, float, float]] = {
    "T1w": (0.25, 0.62, 0.90),
    "T2w": (0.95, 0.60, 0.40),
    "PDw": (0.70, 0.90, 0.62),
}
"""Mean intensity of fluid, grey and white matter, by the name of the contrast that is imitated."""

LABELS = {0: "background", 1: "fluid and other", 2: "grey matter", 3: "white matter"}
_T1_MEANS = (0.25, 0.62, 0.90)
_MARGIN_MM = 24.0


@dataclass(frozen=True)
class Subject:
    """One made subject; array axes are x, y, z towards right, front and top.

    Attributes:
        name: such as `sub-003_T2w`.
        image: int16, 0 outside the brain.
        labels: uint8, see `LABELS`.
        affine: 4×4, voxel index to mm.
    """

    name: str
    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class CohortSettings:
    """How many subjects are made, and how fine.

    Attributes:
        seed: of everything.
        unlabelled: subjects without labels.
        labelled: subjects with labels, none of them among the unlabelled.
        spacing: voxel size in mm.
    """

    seed: int = 0
    unlabelled: int = 24
    labelled: int = 10
    spacing: float = 2.0


def make_cohort(
    folder: Path,
    settings: CohortSettings,
    workers: int | None = None,
    on_subject: Callable[[int, int], None] | None = None,
) -> None:
    """Write a cohort to `folder/images` and `folder/labels`; files that are there already are kept.

    Args:
        folder: made if it is not there.
        settings: how many, how fine.
        workers: processes; default one per core, 0 works in this process.
        on_subject: called with (subjects done, subjects in all).

    Raises:
        UserError: nilearn is not installed.
    """
    load_template()
    total = settings.unlabelled + settings.labelled
    jobs = [number for number in range(total) if not _is_there(folder, number, settings)]
    done = total - len(jobs)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    count = min(default_workers() if workers is None else workers, len(jobs))
    for number, result in run_jobs(partial(_write_subject, folder, settings), jobs, count):
        if isinstance(result, WorkerLost):
            raise RuntimeError(f"subject {number} could not be made: {result.reason}")
        done += 1
        if on_subject:
            on_subject(done, total)


def make_subject(template: Template, number: int, settings: CohortSettings) -> Subject:
    """Make subject `number`: deform the template and its tissue maps with one field, then draw how it looks."""
    rng = make_rng(settings.seed, number, "shape")
    lowest, shape = _grid(template, settings.spacing)
    points = _template_points(rng, template, lowest, shape, settings.spacing)
    brain = _nearest(template.brain, points) > 0
    tissues = np.stack([_read(one, points, brain) for one in template.tissues])
    labels = np.where(brain, tissues.argmax(axis=0) + 1, 0).astype(np.uint8)
    contrast = contrast_of(number)
    rng = make_rng(settings.seed, number, "look")
    image = _recolour(rng, _read(template.t1, points, brain), tissues, contrast)
    image = _degrade(rng, image, settings.spacing) * brain
    affine = np.diag([settings.spacing] * 3 + [1.0])
    affine[:3, 3] = lowest
    # 0 is kept for what is outside the brain.
    scaled = np.where(brain, np.maximum(np.rint(image * rng.uniform(300, 1500)), 1), 0)
    return Subject(f"{_name(number)}", scaled.astype(np.int16), labels, affine)


def contrast_of(number: int) -> str:
    """Return the contrast of subject `number`: they take turns, so that every part of the cohort has all."""
    return list(CONTRASTS)[number % len(CONTRASTS)]


def _name(number: int) -> str:
    return f"sub-{number + 1:03d}_{contrast_of(number)}"


def _files(folder: Path, number: int, settings: CohortSettings) -> list[Path]:
    """Return the image's file, and the labels' for the labelled subjects, who come after the unlabelled."""
    kinds = ["images", "labels"] if number >= settings.unlabelled else ["images"]
    return [folder / kind / f"{_name(number)}.nii.gz" for kind in kinds]


def _is_there(folder: Path, number: int, settings: CohortSettings) -> bool:
    return all(path.is_file() for path in _files(folder, number, settings))


def _write_subject(folder: Path, settings: CohortSettings, number: int) -> None:
    import nibabel

    subject = make_subject(load_template(), number, settings)
    for path, array in zip(_files(folder, number, settings), (subject.image, subject.labels), strict=False):
        with atomic_write(path) as partial_path:
            nibabel.save(nibabel.Nifti1Image(array, subject.affine), partial_path)


def _grid(template: Template, spacing: float) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return first voxel centre (mm) and shape of a grid that holds the brain with room to be deformed in."""
    inside = np.argwhere(template.brain > 0)
    lowest = template.origin + inside.min(axis=0) - _MARGIN_MM
    x, y, z = np.ceil((np.ptp(inside, axis=0) + 2 * _MARGIN_MM) / spacing).astype(int).tolist()
    return lowest, (x, y, z)


def _template_points(
    rng: np.random.Generator,
    template: Template,
    lowest: NDArray[np.float64],
    shape: tuple[int, int, int],
    spacing: float,
) -> NDArray[np.float32]:
    """Return where in the template, in its voxels, each voxel of a subject comes from: (3, *shape)."""
    axes = [low + spacing * np.arange(n) for low, n in zip(lowest, shape, strict=True)]
    world = np.stack(np.meshgrid(*axes, indexing="ij"))
    middle = (lowest + spacing * (np.array(shape) - 1) / 2)[:, None, None, None]
    turned = np.tensordot(mild_affine(rng), world - middle, axes=1) + middle
    moved = turned + displacement(rng, shape, spacing)
    return (moved - template.origin[:, None, None, None]).astype(np.float32)


def _nearest(array: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Read the nearest voxels; the template's frame, which is empty, stands for what lies outside."""
    where = [np.clip(np.rint(part).astype(np.int32), 0, n - 1) for part, n in zip(points, array.shape, strict=True)]
    return np.asarray(array[tuple(where)])


def _read(array: NDArray[np.float32], points: NDArray[np.float32], where: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Read linearly at the points of the voxels chosen by `where`; 0 elsewhere."""
    from scipy.ndimage import map_coordinates

    out = np.zeros(where.shape, dtype=np.float32)
    out[where] = map_coordinates(array, points[:, where], order=1, mode="constant", cval=0.0)
    return out


def _recolour(
    rng: np.random.Generator, t1: NDArray[np.float32], tissues: NDArray[np.float32], contrast: str
) -> NDArray[np.float32]:
    """Give each tissue a new mean and keep the template's own texture about it, weaker or inverted."""
    texture = t1 - np.tensordot(_T1_MEANS, tissues, axes=1)
    means = np.array(CONTRASTS[contrast]) + rng.uniform(-0.06, 0.06, size=3)
    strength = rng.uniform(0.4, 1.0) * (1.0 if contrast == "T1w" else -1.0)
    image = np.tensordot(means, tissues, axes=1) + strength * texture
    gamma = np.exp(rng.uniform(-0.25, 0.25))
    return np.asarray(np.clip(image, 0.0, 1.5) ** gamma, dtype=np.float32)


def _degrade(rng: np.random.Generator, image: NDArray[np.float32], spacing: float) -> NDArray[np.float32]:
    """Multiply a smooth bias field onto an image and add Rician noise."""
    x, y, z = image.shape
    bias = np.exp(rng.uniform(0.05, 0.15) * smooth_field(rng, (x, y, z), spacing, width=40.0))
    deviation = rng.uniform(0.02, 0.05)
    real, imaginary = rng.normal(scale=deviation, size=(2, x, y, z))
    return np.asarray(np.hypot(image * bias + real, imaginary), dtype=np.float32)
