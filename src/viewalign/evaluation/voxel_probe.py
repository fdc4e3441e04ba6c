"""Linear probe of voxels: logistic regression on features of a frozen encoder.

It is fitted to a few voxels of every class from a few labelled volumes, and evaluated on other volumes. The untrained
network and simple intensities are evaluated on the same voxels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.preprocessing import prepare_volume
from viewalign.data.readers.files import read_labels, read_volume
from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.evaluation.segmentation_metrics import dice
from viewalign.evaluation.statistics import bootstrap_interval
from viewalign.evaluation.voxel_features import FeatureReader, IntensityFeatures, Voxels
from viewalign.utils.extras import missing
from viewalign.utils.rng import make_rng

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidate inverse penalties C; the best by cross-validation over training cases is used."""


@dataclass(frozen=True)
class Case:
    """A labelled volume.

    Attributes:
        name: unique; it seeds the choice of voxels.
        image: (D, H, W), prepared as in pretraining.
        labels: (D, H, W), integers from 0, which is background.
    """

    name: str
    image: NDArray[np.float32]
    labels: NDArray[np.integer[Any]]

    def __post_init__(self) -> None:
        if self.image.shape != self.labels.shape or self.image.ndim != 3:
            raise ValueError(
                f"{self.name}: image {self.image.shape} and labels {self.labels.shape} must have one shape (D, H, W)"
            )


def read_prepared(name: str, image: Path, labels: Path, settings: PrepareSettings) -> Case:
    """Read a labelled image and prepare it as in pretraining.

    Raises:
        ExcludedImageError: a file cannot be used.
    """
    volume = read_volume(image, settings.fill_nonfinite)
    prepared = prepare_volume(volume, settings, {"labels": read_labels(labels, volume)})
    return Case(name, np.asarray(prepared.array, dtype=np.float32), prepared.masks["labels"])


@dataclass(frozen=True)
class VoxelProbeSettings:
    """How voxels are chosen.

    Attributes:
        seed: of the training voxels and the bootstrap.
        per_class: training voxels per class and case.
        test_voxels: maximum number of voxels per test case, on the densest regular lattice.
    """

    seed: int = 0
    per_class: int = 400
    test_voxels: int = 10_000


@dataclass(frozen=True)
class VoxelProbeScore:
    """Scores of one kind of features on the test cases.

    Attributes:
        dice: mean over cases of the mean Dice over foreground classes, in [0, 1].
        balanced_accuracy: mean over cases of the mean recall over all classes, in [0, 1].
        cases: mean foreground Dice of each test case.
        interval: 95 % bootstrap interval of `dice` over test cases; None below five of them.
        penalty: the chosen C.
    """

    dice: float
    balanced_accuracy: float
    cases: tuple[float, ...]
    interval: tuple[float, float] | None
    penalty: float


def compare(
    pretrained: FeatureReader,
    untrained: FeatureReader,
    train: Sequence[Case],
    test: Sequence[Case],
    task: str,
    settings: VoxelProbeSettings | None = None,
    note: str = "",
    on_part: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Probe a pretrained encoder, the same network untrained, and simple intensities, on the same voxels.

    Args:
        pretrained, untrained: features of the network after and before pretraining.
        train, test: labelled volumes of different subjects.
        task: description of the classes.
        settings: default `VoxelProbeSettings()`.
        note: about the data, stored with the result.
        on_part: called with the name of each kind of features before it is evaluated.

    Returns:
        The contents of `probe.json`: scores by kind of features, and the mean difference in Dice (`gain`), pretrained
        minus untrained, with its paired interval (None below five test cases).

    Raises:
        UserError: no cases, or fewer than two classes in the training cases.
    """
    settings = settings or VoxelProbeSettings()
    readers: dict[str, FeatureReader] = {
        "pretrained": pretrained,
        "untrained": untrained,
        "intensity": IntensityFeatures(),
    }
    scores = {}
    for name, reader in readers.items():
        if on_part:
            on_part(name)
        scores[name] = probe(reader, train, test, settings)
    differences = np.subtract(scores["pretrained"].cases, scores["untrained"].cases)
    gain_interval = bootstrap_interval(differences, settings.seed)
    return {
        "task": task,
        "metric": "mean Dice over foreground classes",
        "pretrained": scores["pretrained"].dice,
        "untrained": scores["untrained"].dice,
        "baselines": {"intensity": scores["intensity"].dice},
        "cases_train": len(train),
        "cases_test": len(test),
        "interval": {name: list(score.interval) for name, score in scores.items() if score.interval is not None},
        "balanced_accuracy": {name: score.balanced_accuracy for name, score in scores.items()},
        "gain": {"value": float(np.nanmean(differences)), "interval": gain_interval and list(gain_interval)},
        "per_case": {name: list(score.cases) for name, score in scores.items()},
        "penalty": {name: score.penalty for name, score in scores.items()},
        "note": note,
    }


def probe(
    read: FeatureReader, train: Sequence[Case], test: Sequence[Case], settings: VoxelProbeSettings | None = None
) -> VoxelProbeScore:
    """Fit a linear classifier to features of voxels of the training cases and evaluate it on the test cases.

    Raises:
        UserError: no cases, or fewer than two classes in the training cases.
    """
    settings = settings or VoxelProbeSettings()
    if not train or not test:
        raise UserError("A probe needs labelled volumes for training and for testing.")
    drawn = [draw_voxels(case, settings.per_class, settings.seed) for case in train]
    labels = np.concatenate([case.labels[tuple(voxels.T)] for case, voxels in zip(train, drawn, strict=True)])
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UserError("A probe needs at least two classes in its training volumes.")
    rows = np.concatenate([read(case.image, voxels) for case, voxels in zip(train, drawn, strict=True)])
    groups = np.repeat(np.arange(len(train)), [len(voxels) for voxels in drawn])
    penalty = choose_penalty(rows, labels, groups)
    model = _fit(rows, labels, penalty)
    dices, recalls = [], []
    for case in test:
        voxels = lattice_voxels(case.image.shape, settings.test_voxels)
        truth = case.labels[tuple(voxels.T)]
        guess = model.predict(read(case.image, voxels).astype(np.float64))
        dices.append(mean_dice(guess, truth, [label for label in classes.tolist() if label != 0]))
        recalls.append(balanced_accuracy(guess, truth))
    interval = bootstrap_interval(np.asarray(dices), settings.seed)
    return VoxelProbeScore(float(np.nanmean(dices)), float(np.mean(recalls)), tuple(dices), interval, penalty)


def draw_voxels(case: Case, per_class: int, seed: int) -> Voxels:
    """Sample up to `per_class` voxels (P, 3) of every class of a case, seeded by seed, name and class."""
    drawn = []
    for label in np.unique(case.labels).tolist():
        where = np.flatnonzero(case.labels == label)
        rng = make_rng(seed, case.name, label, "probe")
        chosen = np.sort(rng.choice(where, size=min(per_class, len(where)), replace=False))
        drawn.append(np.stack(np.unravel_index(chosen, case.labels.shape), axis=1))
    return np.concatenate(drawn).astype(np.int64)


def lattice_voxels(shape: tuple[int, ...], most: int) -> Voxels:
    """Return the densest regular lattice (P, 3) over a volume with at most `most` points."""
    step = 1
    while np.prod([max(1, len(range(step // 2, n, step))) for n in shape]) > most:
        step += 1
    axes = [np.arange(min(step // 2, n - 1), n, step) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)


def choose_penalty(rows: NDArray[np.float32], labels: NDArray[Any], groups: NDArray[np.int64]) -> float:
    """Choose C of `PENALTIES` by mean balanced accuracy in cross-validation over cases, with at most four folds.

    The middle value is used if there is only one case.
    """
    cases = np.unique(groups)
    folds = [cases[k :: min(4, len(cases))] for k in range(min(4, len(cases)))]
    if len(cases) < 2:
        return PENALTIES[len(PENALTIES) // 2]
    means = []
    for penalty in PENALTIES:
        reached = []
        for fold in folds:
            out = np.isin(groups, fold)
            if len(np.unique(labels[~out])) > 1:
                model = _fit(rows[~out], labels[~out], penalty)
                reached.append(balanced_accuracy(model.predict(rows[out].astype(np.float64)), labels[out]))
        means.append(float(np.mean(reached)) if reached else 0.0)
    return PENALTIES[int(np.argmax(means))]


def _fit(rows: NDArray[np.float32], labels: NDArray[Any], penalty: float) -> Any:
    """Fit standardisation and multinomial logistic regression with balanced class weights."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        raise missing("A probe needs scikit-learn", "tasks") from None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=200, class_weight="balanced"))
    # One thread, so that the result does not depend on the number of cores.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Weak penalties may reach the iteration limit, a deterministic early stop.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(rows.astype(np.float64), labels)


def mean_dice(guess: NDArray[Any], truth: NDArray[Any], classes: Sequence[int]) -> float:
    """Return the mean Dice over classes that occur in `guess` or `truth`; NaN if none does."""
    values = [dice(guess == label, truth == label) for label in classes]
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def balanced_accuracy(guess: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the mean recall over the classes in `truth`."""
    return float(np.mean([(guess[truth == label] == label).mean() for label in np.unique(truth)]))
