"""A synthetic cohort for the demo: random deformations, contrasts, bias fields and noise of one template brain."""

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
from viewalign.utils.extras import missing
from viewalign.utils.io import atomic_write
from viewalign.utils.rng import make_rng

_DISPLACEMENTS = ((20.0, 2.5), (10.0, 0.8))
"""(width, amplitude) in mm of the displacement fields, smooth enough to avoid folding."""

Field = NDArray[np.float32]


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], spacing: float, width: float) -> Field:
    """Draw a smooth random field of zero mean and unit deviation.

    Args:
        rng: generator of the noise.
        shape: of the field, in voxels.
        spacing: voxel size in mm.
        width: standard deviation in mm of the Gaussian by which white noise is smoothed.

    Returns:
        float32 of `shape`.
    """
    # White noise on coarse nodes times Gaussian weights: smoothing and interpolation in one product per axis.
    node = width / 2
    matrices = []
    for n in shape:
        nodes = np.arange(-4 * width, n * spacing + 4 * width, node)
        bumps = np.exp(-0.5 * ((spacing * np.arange(n)[:, None] - nodes) / width) ** 2)
        matrices.append((bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32))
    field = rng.standard_normal([matrix.shape[1] for matrix in matrices], dtype=np.float32)
    for matrix in matrices:
        # The axis moves to the end each time, so that after three products the order is restored.
        field = np.tensordot(field, matrix, axes=([0], [1]))
    return field


def displacement(rng: np.random.Generator, shape: tuple[int, int, int], spacing: float) -> Field:
    """Draw smooth displacements of a few mm, float32 (3, *shape)."""
    total = np.zeros((3, *shape), dtype=np.float32)
    for axis in range(3):
        for width, amplitude in _DISPLACEMENTS:
            total[axis] += np.float32(amplitude) * smooth_field(rng, shape, spacing, width)
    return total


def random_affine(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a 3×3 matrix: rotations of up to 8° about each axis, scales of 0.92 to 1.08, shears of up to 0.03."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-8, 8, size=3))):
        i, j = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ step
    shear = np.eye(3) + np.triu(rng.uniform(-0.03, 0.03, size=(3, 3)), k=1)
    return np.asarray(rotation @ shear @ np.diag(rng.uniform(0.92, 1.08, size=3)))


_PACKAGES = {"nilearn": "nilearn", "sklearn": "scikit-learn", "scipy": "scipy"}


@dataclass(frozen=True)
class Template:
    """MNI152 on a 1 mm grid with an empty border; array axes are x, y, z towards right, anterior and superior.

    Attributes:
        t1: intensity in [0, 1], 0 outside the brain.
        tissues: (3, X, Y, Z) probabilities of fluid and other, grey matter, white matter, whose sum is `brain`.
        brain: brain mask, 0 or 1.
        origin: centre of voxel (0, 0, 0) in mm.
    """

    t1: NDArray[np.float32]
    tissues: NDArray[np.float32]
    brain: NDArray[np.float32]
    origin: NDArray[np.float64]


def require_extras() -> None:
    """Check that the packages of the demo are installed.

    Raises:
        UserError: which are missing, and how to install them.
    """
    absent = [name for module, name in _PACKAGES.items() if find_spec(module) is None]
    if absent:
        raise missing(f"The demo needs {', '.join(absent)}", "demo")


@cache
def load_template() -> Template:
    """Load the template that is part of nilearn.

    Raises:
        UserError: nilearn is not installed.
    """
    require_extras()
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=1)
    brain = _padded(datasets.load_mni152_brain_mask(resolution=1))
    grey = _padded(datasets.load_mni152_gm_template(resolution=1)) * brain
    white = _padded(datasets.load_mni152_wm_template(resolution=1)) * brain
    solid = np.maximum(grey + white, 1.0)
    grey, white = grey / solid, white / solid
    tissues = np.stack([brain - grey - white, grey, white])
    return Template(_padded(image) * brain, tissues, brain, np.asarray(image.affine[:3, 3] - 1.0))


def _padded(image: Any) -> NDArray[np.float32]:
    """Return the voxels with an empty border of 1, as the brain stem ends at the border of the template."""
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
"""Mean intensity of fluid, grey and white matter by contrast."""

LABELS = {0: "background", 1: "fluid and other", 2: "grey matter", 3: "white matter"}
_T1_MEANS = (0.25, 0.62, 0.90)
_MARGIN_MM = 24.0


@dataclass(frozen=True)
class Subject:
    """A synthetic subject; array axes are x, y, z towards right, anterior and superior.

    Attributes:
        name: such as `sub-003_T2w`.
        image: int16, 0 outside the brain.
        labels: uint8, see `LABELS`.
        affine: 4×4, from voxel indices to mm.
    """

    name: str
    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class CohortSettings:
    """Settings of a cohort.

    Attributes:
        seed: of all random values.
        unlabelled: number of subjects without labels.
        labelled: number of further subjects, with labels.
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
    """Write a cohort to `folder/images` and `folder/labels`, keeping existing files.

    Args:
        folder: created if necessary.
        settings: of the cohort.
        workers: number of processes; default one per core, 0 for this process.
        on_subject: called with (done, total).

    Raises:
        UserError: nilearn is not installed.
    """
    load_template()
    total = settings.unlabelled + settings.labelled
    jobs = [number for number in range(total) if not all(path.is_file() for path in _files(folder, number, settings))]
    done = total - len(jobs)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    count = min(default_workers() if workers is None else workers, len(jobs))
    for number, result in run_jobs(partial(_write_subject, folder, settings), jobs, count):
        if isinstance(result, WorkerLost):
            raise RuntimeError(f"subject {number} could not be created: {result.reason}")
        done += 1
        if on_subject:
            on_subject(done, total)


def make_subject(template: Template, number: int, settings: CohortSettings) -> Subject:
    """Create subject `number`: deform template and tissue maps, then sample its appearance."""
    rng = make_rng(settings.seed, number, "shape")
    lowest, shape = _grid(template, settings.spacing)
    points = _template_points(rng, template, lowest, shape, settings.spacing)
    brain = _nearest(template.brain, points) > 0
    tissues = np.stack([_interpolate(tissue, points, brain) for tissue in template.tissues])
    labels = np.where(brain, tissues.argmax(axis=0) + 1, 0).astype(np.uint8)
    contrast = contrast_of(number)
    rng = make_rng(settings.seed, number, "look")
    image = _change_contrast(rng, _interpolate(template.t1, points, brain), tissues, contrast)
    image = _degrade(rng, image, settings.spacing) * brain
    affine = np.diag([settings.spacing] * 3 + [1.0])
    affine[:3, 3] = lowest
    # 0 only outside the brain.
    scaled = np.where(brain, np.maximum(np.rint(image * rng.uniform(300, 1500)), 1), 0)
    return Subject(_name(number), scaled.astype(np.int16), labels, affine)


def contrast_of(number: int) -> str:
    """Return the contrast of subject `number`; contrasts alternate."""
    return list(CONTRASTS)[number % len(CONTRASTS)]


def _name(number: int) -> str:
    return f"sub-{number + 1:03d}_{contrast_of(number)}"


def _files(folder: Path, number: int, settings: CohortSettings) -> list[Path]:
    """Return the files of a subject; labelled subjects follow the unlabelled ones."""
    kinds = ["images", "labels"] if number >= settings.unlabelled else ["images"]
    return [folder / kind / f"{_name(number)}.nii.gz" for kind in kinds]


def _write_subject(folder: Path, settings: CohortSettings, number: int) -> None:
    import nibabel

    subject = make_subject(load_template(), number, settings)
    for path, array in zip(_files(folder, number, settings), (subject.image, subject.labels), strict=False):
        with atomic_write(path) as partial_path:
            nibabel.save(nibabel.Nifti1Image(array, subject.affine), partial_path)


def _grid(template: Template, spacing: float) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return first voxel centre (mm) and shape of a grid that contains the brain and a margin for deformations."""
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
    """Return the template coordinates (3, *shape), in voxels, of each voxel of a subject."""
    axes = [low + spacing * np.arange(n) for low, n in zip(lowest, shape, strict=True)]
    world = np.stack(np.meshgrid(*axes, indexing="ij"))
    middle = (lowest + spacing * (np.array(shape) - 1) / 2)[:, None, None, None]
    rotated = np.tensordot(random_affine(rng), world - middle, axes=1) + middle
    moved = rotated + displacement(rng, shape, spacing)
    return (moved - template.origin[:, None, None, None]).astype(np.float32)


def _nearest(array: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the nearest voxels at points; the empty border represents the outside."""
    where = [np.clip(np.rint(part).astype(np.int32), 0, n - 1) for part, n in zip(points, array.shape, strict=True)]
    return np.asarray(array[tuple(where)])


def _interpolate(
    array: NDArray[np.float32], points: NDArray[np.float32], where: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Interpolate linearly at the points where `where` is true; 0 elsewhere."""
    from scipy.ndimage import map_coordinates

    out = np.zeros(where.shape, dtype=np.float32)
    out[where] = map_coordinates(array, points[:, where], order=1, mode="constant", cval=0.0)
    return out


def _change_contrast(
    rng: np.random.Generator, t1: NDArray[np.float32], tissues: NDArray[np.float32], contrast: str
) -> NDArray[np.float32]:
    """Give each tissue a new mean intensity, with the texture of the template weakened or inverted."""
    texture = t1 - np.tensordot(_T1_MEANS, tissues, axes=1)
    means = np.array(CONTRASTS[contrast]) + rng.uniform(-0.06, 0.06, size=3)
    strength = rng.uniform(0.4, 1.0) * (1.0 if contrast == "T1w" else -1.0)
    image = np.tensordot(means, tissues, axes=1) + strength * texture
    gamma = np.exp(rng.uniform(-0.25, 0.25))
    return np.asarray(np.clip(image, 0.0, 1.5) ** gamma, dtype=np.float32)


def _degrade(rng: np.random.Generator, image: NDArray[np.float32], spacing: float) -> NDArray[np.float32]:
    """Apply a smooth bias field and add Rician noise."""
    x, y, z = image.shape
    bias = np.exp(rng.uniform(0.05, 0.15) * smooth_field(rng, (x, y, z), spacing, width=40.0))
    deviation = rng.uniform(0.02, 0.05)
    real, imaginary = rng.normal(scale=deviation, size=(2, x, y, z))
    return np.asarray(np.hypot(image * bias + real, imaginary), dtype=np.float32)
