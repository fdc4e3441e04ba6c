"""Dice and normalised surface distance of one class in one case."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError

Mask = NDArray[np.bool_]


def dice(prediction: Mask, reference: Mask) -> float:
    """Return 2|A∩B| / (|A|+|B|); NaN where both masks are empty."""
    total = int(prediction.sum()) + int(reference.sum())
    return float("nan") if total == 0 else 2.0 * int((prediction & reference).sum()) / total


def surface_dice(prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """Return the normalised surface distance at a tolerance (Nikolov et al., arXiv:1809.04430, equation 2).

    It is the area of both surfaces that lies within `tolerance` of the other, over the area of both. Areas are those of
    marching-cubes surface elements between voxel centres, as in DeepMind's code, computed by MONAI.

    Args:
        prediction: mask (D, H, W).
        reference: mask (D, H, W).
        spacing: voxel size in mm along (D, H, W).
        tolerance: in mm, not negative.

    Returns:
        A share in [0, 1]; NaN where both masks are empty, 0 where one is.
    """
    if not prediction.any() or not reference.any():
        return 0.0 if prediction.any() or reference.any() else float("nan")
    compute = _monai()
    # Distances are taken between the two surfaces alone, so what lies outside both, but for a rim, changes nothing.
    box = _box(prediction | reference)
    pair = [torch.from_numpy(np.pad(mask[box], 1))[None, None].float() for mask in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of its own deprecations
        limits = {"class_thresholds": [float(tolerance)], "spacing": list(spacing)}
        return float(compute(*pair, **limits, include_background=True, use_subvoxels=True))


def _monai() -> Callable[..., torch.Tensor]:
    try:
        from monai.metrics.surface_dice import compute_surface_dice
    except ImportError:
        raise UserError("Surface distances need MONAI and SciPy: pip install 'viewalign[tasks]'") from None
    found: Callable[..., torch.Tensor] = compute_surface_dice
    return found


def _box(mask: Mask) -> tuple[slice, ...]:
    """Return the slices of the smallest box around a mask."""
    spans = []
    for axis in range(mask.ndim):
        others = tuple(k for k in range(mask.ndim) if k != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        spans.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(spans)


Empty = Literal["skip", "one"]


@dataclass(frozen=True)
class Rules:
    """How cases are judged.

    Attributes:
        classes: the label values of each class by name; several make a region.
        tolerances: of the surface distance in mm, by class.
        ignore: the value of reference voxels that count nowhere.
        empty: what a class counts that is in neither map: "skip" leaves it out of means, "one" counts it as perfect. A
            class that is in one of the two alone counts 0 either way.
    """

    classes: Mapping[str, tuple[int, ...]]
    tolerances: Mapping[str, float]
    ignore: int | None = None
    empty: Empty = "skip"


@dataclass(frozen=True)
class ClassScore:
    """What one class came to in one case; NaN where it is in neither map."""

    dice: float
    nsd: float
    reference_voxels: int
    prediction_voxels: int


@dataclass(frozen=True)
class CaseScore:
    """What one case came to.

    Attributes:
        name: of the case.
        classes: scores by class.
        prediction_sha256, reference_sha256: of the files.
        note: anything odd that did not keep it from being judged.
    """

    name: str
    classes: dict[str, ClassScore]
    prediction_sha256: str
    reference_sha256: str
    note: str = ""

    def mean(self, metric: Literal["dice", "nsd"]) -> float:
        """Return the mean over those classes that count; NaN where none does."""
        values = [getattr(score, metric) for score in self.classes.values()]
        counted = [value for value in values if np.isfinite(value)]
        return float(np.mean(counted)) if counted else float("nan")


def score_files(name: str, prediction: Path, reference: Path, rules: Rules) -> CaseScore:
    """Judge one case.

    Raises:
        UserError: a file that cannot be read, or two that do not lie on one grid; the text is the reason alone.
    """
    guess, truth = _read(prediction), _read(reference)
    if guess.GetSize() != truth.GetSize():
        sizes = " and ".join("×".join(str(n) for n in image.GetSize()[::-1]) for image in (guess, truth))
        raise UserError(f"prediction and reference have different sizes ({sizes})")
    if not np.allclose(guess.GetSpacing(), truth.GetSpacing(), rtol=1e-3):
        raise UserError("prediction and reference have different voxel sizes")
    alike = np.allclose(guess.GetOrigin(), truth.GetOrigin(), atol=0.1) and np.allclose(
        guess.GetDirection(), truth.GetDirection(), atol=0.02
    )
    scores = score_maps(_array(guess), _array(truth), truth.GetSpacing()[::-1], rules)
    note = "" if alike else "prediction and reference have different origins or directions; voxels were compared"
    return CaseScore(name, scores, _digest(prediction), _digest(reference), note)


def score_maps(
    prediction: NDArray[Any], reference: NDArray[Any], spacing: tuple[float, ...], rules: Rules
) -> dict[str, ClassScore]:
    """Judge label maps (D, H, W) of one voxel size (D, H, W) in mm.

    Voxels that the reference ignores are background in both maps, for every class.
    """
    counted = np.ones(reference.shape, bool) if rules.ignore is None else reference != rules.ignore
    scores = {}
    for name, values in rules.classes.items():
        guess = np.isin(prediction, values) & counted
        truth = np.isin(reference, values) & counted
        overlap = dice(guess, truth)
        surface = surface_dice(guess, truth, spacing, rules.tolerances[name])
        if rules.empty == "one" and not guess.any() and not truth.any():
            overlap = surface = 1.0
        scores[name] = ClassScore(overlap, surface, int(truth.sum()), int(guess.sum()))
    return scores


def _read(path: Path) -> sitk.Image:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[-1]
        raise UserError(f"{path.name} cannot be read ({reason})") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path.name} is no 3D label map")
    return image


def _array(image: sitk.Image) -> NDArray[Any]:
    return np.asarray(np.rint(sitk.GetArrayViewFromImage(image))).astype(np.int64)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
