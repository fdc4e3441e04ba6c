"""Dice and normalised surface distance of segmentations."""

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
from viewalign.utils.extras import missing

Mask = NDArray[np.bool_]


def dice(prediction: Mask, reference: Mask) -> float:
    """Return 2|A∩B| / (|A|+|B|); NaN if both masks are empty."""
    total = int(prediction.sum()) + int(reference.sum())
    return float("nan") if total == 0 else 2.0 * int((prediction & reference).sum()) / total


def surface_dice(prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """Return the normalised surface distance at a tolerance (Nikolov et al., arXiv:1809.04430, equation 2).

    It is the fraction of the area of both surfaces that is within `tolerance` of the other surface. Areas are those of
    marching-cubes surface elements between voxel centres, as in DeepMind's code, computed by MONAI.

    Args:
        prediction: mask (D, H, W).
        reference: mask (D, H, W).
        spacing: voxel size in mm along (D, H, W).
        tolerance: in mm, not negative.

    Returns:
        A value in [0, 1]; NaN if both masks are empty, 0 if one is.
    """
    if not prediction.any() or not reference.any():
        return 0.0 if prediction.any() or reference.any() else float("nan")
    compute = _monai()
    # Distances are measured between the surfaces, so voxels beyond a margin around both have no effect.
    box = _box(prediction | reference)
    pair = [torch.from_numpy(np.pad(mask[box], 1))[None, None].float() for mask in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's own deprecations
        limits = {"class_thresholds": [float(tolerance)], "spacing": list(spacing)}
        return float(compute(*pair, **limits, include_background=True, use_subvoxels=True))


def _monai() -> Callable[..., torch.Tensor]:
    try:
        from monai.metrics.surface_dice import compute_surface_dice
    except ImportError:
        raise missing("Surface distances need MONAI and SciPy", "tasks") from None
    found: Callable[..., torch.Tensor] = compute_surface_dice
    return found


def _box(mask: Mask) -> tuple[slice, ...]:
    """Return the slices of the bounding box of a mask."""
    profiles = (mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)) for axis in range(mask.ndim))
    ends = [np.flatnonzero(profile)[[0, -1]] for profile in profiles]
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)


Empty = Literal["skip", "one", "fomo26"]


@dataclass(frozen=True)
class Rules:
    """How segmentations are scored.

    Attributes:
        classes: label values of each class by name; several values form a region.
        tolerances: of the surface distance in mm, by class.
        ignore: value of reference voxels that are ignored.
        empty: score of a class that is in neither map: "skip" excludes it from means, "one" counts it as 1. A class in
            only one of the two maps scores 0. "fomo26": a single class in neither map has Dice 1 and NSD 0; of several
            classes, those that are not in the reference are excluded, even if they are predicted.
    """

    classes: Mapping[str, tuple[int, ...]]
    tolerances: Mapping[str, float]
    ignore: int | None = None
    empty: Empty = "skip"


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class in one case; NaN if it is in neither map."""

    dice: float
    nsd: float
    reference_voxels: int
    prediction_voxels: int


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case.

    Attributes:
        name: of the case.
        classes: scores by class.
        prediction_sha256, reference_sha256: of the files.
        note: a warning about the files.
    """

    name: str
    classes: dict[str, ClassScore]
    prediction_sha256: str
    reference_sha256: str
    note: str = ""

    def mean(self, metric: Literal["dice", "nsd"]) -> float:
        """Return the mean over the classes that count; NaN if none does."""
        values = [getattr(score, metric) for score in self.classes.values()]
        counted = [value for value in values if np.isfinite(value)]
        return float(np.mean(counted)) if counted else float("nan")


def score_files(name: str, prediction: Path, reference: Path, rules: Rules) -> CaseScore:
    """Score one case.

    Raises:
        UserError: a file cannot be read, or the files differ in size or voxel size; the message is only the reason.
    """
    guess, truth = read_labels(prediction), read_labels(reference)
    if guess.GetSize() != truth.GetSize():
        sizes = " and ".join("×".join(str(n) for n in image.GetSize()[::-1]) for image in (guess, truth))
        raise UserError(f"prediction and reference have different sizes ({sizes})")
    if not np.allclose(guess.GetSpacing(), truth.GetSpacing(), rtol=1e-3):
        raise UserError("prediction and reference have different voxel sizes")
    scores = score_maps(_array(guess), _array(truth), truth.GetSpacing()[::-1], rules)
    same_origin = np.allclose(guess.GetOrigin(), truth.GetOrigin(), atol=0.1)
    same_grid = same_origin and np.allclose(guess.GetDirection(), truth.GetDirection(), atol=0.02)
    note = "" if same_grid else "prediction and reference have different origins or directions; voxels were compared"
    predicted, expected = (hashlib.sha256(file.read_bytes()).hexdigest() for file in (prediction, reference))
    return CaseScore(name, scores, predicted, expected, note)


def score_maps(
    prediction: NDArray[Any], reference: NDArray[Any], spacing: tuple[float, ...], rules: Rules
) -> dict[str, ClassScore]:
    """Score label maps (D, H, W) with voxels of `spacing` (D, H, W) in mm.

    Ignored voxels of the reference are background in both maps, for every class.
    """
    counted = np.ones(reference.shape, bool) if rules.ignore is None else reference != rules.ignore
    scores = {}
    for name, values in rules.classes.items():
        guess = np.isin(prediction, values) & counted
        truth = np.isin(reference, values) & counted
        overlap = dice(guess, truth)
        surface = surface_dice(guess, truth, spacing, rules.tolerances[name])
        if rules.empty == "fomo26" and len(rules.classes) > 1 and not truth.any():
            overlap = surface = float("nan")
        elif rules.empty != "skip" and not guess.any() and not truth.any():
            overlap, surface = 1.0, float(rules.empty == "one")
        scores[name] = ClassScore(overlap, surface, int(truth.sum()), int(guess.sum()))
    return scores


def read_labels(path: Path) -> sitk.Image:
    """Read a label map.

    Raises:
        UserError: it cannot be read or is not 3D; the message is only the reason, with the file's name.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[-1]
        raise UserError(f"{path.name} cannot be read ({reason})") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path.name} is not a 3D label map")
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise UserError(f"{path.name} has values that are no numbers (NaN or infinite)")
    return image


def _array(image: sitk.Image) -> NDArray[Any]:
    return np.asarray(np.rint(sitk.GetArrayViewFromImage(image))).astype(np.int64)
