"""A frozen-feature probe: what a linear classifier can tell of a voxel from an encoder's features alone.

The encoder is not trained. A few voxels of every class are taken from a few labelled volumes, a logistic regression is
fitted to their standardised features, and it is judged on other volumes. The same network with the weights it had
before training, and plain intensities, are judged in the same way on the same voxels.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.preprocessing import prepare_volume
from viewalign.data.readers.files import read_mask, read_volume
from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.evaluation.statistics import bootstrap_interval
from viewalign.evaluation.voxel_features import FeatureReader, IntensityFeatures, Voxels
from viewalign.utils.io import atomic_write
from viewalign.utils.rng import make_rng

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths C of the regularisation that are tried; the best on left-out training cases is taken."""


@dataclass(frozen=True)
class Case:
    """A labelled volume.

    Attributes:
        name: told apart from all others; it seeds which voxels are taken.
        image: (D, H, W), prepared as the images of pretraining were.
        labels: (D, H, W), whole numbers from 0, which is background.
    """

    name: str
    image: NDArray[np.float32]
    labels: NDArray[np.integer[Any]]

    def __post_init__(self) -> None:
        if self.image.shape != self.labels.shape or self.image.ndim != 3:
            raise ValueError(
                f"{self.name}: image {self.image.shape} and labels {self.labels.shape} must be one (D, H, W)"
            )


def read_prepared(name: str, image: Path, labels: Path, settings: PrepareSettings) -> Case:
    """Read a labelled image, prepared as the images of pretraining were.

    Raises:
        RefusedImageError: one of the files cannot be used.
    """
    volume = read_volume(image, settings.fill_nonfinite)
    prepared = prepare_volume(volume, settings, {"labels": read_mask(labels, volume)})
    return Case(name, np.asarray(prepared.array, dtype=np.float32), prepared.masks["labels"])


@dataclass(frozen=True)
class VoxelProbeSettings:
    """How voxels are chosen.

    Attributes:
        seed: of the training voxels and of the bootstrap.
        per_class: training voxels of each class and case.
        test_voxels: a test case is judged on the densest regular lattice of at most so many voxels.
    """

    seed: int = 0
    per_class: int = 400
    test_voxels: int = 10_000


@dataclass(frozen=True)
class VoxelProbeScore:
    """How well one kind of features did on the test cases.

    Attributes:
        dice: mean over cases of the mean Dice over foreground classes, in [0, 1].
        balanced_accuracy: mean over cases of the mean recall over all classes, in [0, 1].
        cases: mean foreground Dice of each test case.
        interval: 95 % bootstrap interval of `dice` over test cases; None below five of them.
        penalty: the C that was chosen.
    """

    dice: float
    balanced_accuracy: float
    cases: tuple[float, ...]
    interval: tuple[float, float] | None
    penalty: float


@dataclass(frozen=True)
class VoxelProbeResult:
    """A probe of a pretrained encoder beside what it must beat.

    Attributes:
        task: what is told apart, in words.
        pretrained, untrained: the same network after and before pretraining.
        baselines: other features by name.
        cases_train, cases_test: numbers of labelled volumes.
        gain: mean difference of Dice, pretrained minus untrained, over the same test cases.
        gain_interval: its 95 % paired bootstrap interval; None below five test cases.
        note: anything a reader should know about the data.
    """

    task: str
    pretrained: VoxelProbeScore
    untrained: VoxelProbeScore
    cases_train: int
    cases_test: int
    gain: float
    gain_interval: tuple[float, float] | None
    baselines: dict[str, VoxelProbeScore] = field(default_factory=dict)
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what `probe.json` holds."""
        scores = {"pretrained": self.pretrained, "untrained": self.untrained, **self.baselines}
        return {
            "task": self.task,
            "metric": "mean Dice over foreground classes",
            "pretrained": self.pretrained.dice,
            "untrained": self.untrained.dice,
            "baselines": {name: score.dice for name, score in self.baselines.items()},
            "cases_train": self.cases_train,
            "cases_test": self.cases_test,
            "interval": {name: list(score.interval) for name, score in scores.items() if score.interval is not None},
            "balanced_accuracy": {name: score.balanced_accuracy for name, score in scores.items()},
            "gain": {"value": self.gain, "interval": None if self.gain_interval is None else list(self.gain_interval)},
            "per_case": {name: list(score.cases) for name, score in scores.items()},
            "penalty": {name: score.penalty for name, score in scores.items()},
            "note": self.note,
        }

    def write(self, path: Path) -> None:
        """Write `probe.json`, whole or not at all."""
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(
    pretrained: FeatureReader,
    untrained: FeatureReader,
    train: Sequence[Case],
    test: Sequence[Case],
    task: str,
    settings: VoxelProbeSettings | None = None,
    note: str = "",
    on_part: Callable[[str], None] | None = None,
) -> VoxelProbeResult:
    """Probe a pretrained encoder, the same one untrained, and plain intensities, on the same voxels.

    Args:
        pretrained, untrained: features of the network after and before pretraining.
        train, test: labelled volumes of different subjects.
        task: what is told apart, in words.
        settings: default `ProbeSettings()`.
        note: kept with the result.
        on_part: called with the name of each kind of features before it is judged.

    Raises:
        UserError: no cases, or fewer than two classes in the training cases.
    """
    settings = settings or VoxelProbeSettings()
    readers: Mapping[str, FeatureReader] = {
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
    return VoxelProbeResult(
        task=task,
        pretrained=scores["pretrained"],
        untrained=scores["untrained"],
        cases_train=len(train),
        cases_test=len(test),
        gain=float(np.nanmean(differences)),
        gain_interval=bootstrap_interval(differences, settings.seed),
        baselines={"intensity": scores["intensity"]},
        note=note,
    )


def probe(
    read: FeatureReader, train: Sequence[Case], test: Sequence[Case], settings: VoxelProbeSettings | None = None
) -> VoxelProbeScore:
    """Fit a linear classifier to features of the training cases' voxels and judge it on the test cases.

    Raises:
        UserError: no cases, or fewer than two classes in the training cases.
    """
    settings = settings or VoxelProbeSettings()
    if not train or not test:
        raise UserError("A probe needs labelled volumes for training and others for testing.")
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
    """Draw up to `per_class` voxels (P, 3) of every class of a case; a function of (seed, name, class) alone."""
    drawn = []
    for label in np.unique(case.labels).tolist():
        where = np.flatnonzero(case.labels == label)
        rng = make_rng(seed, case.name, label, "probe")
        chosen = np.sort(rng.choice(where, size=min(per_class, len(where)), replace=False))
        drawn.append(np.stack(np.unravel_index(chosen, case.labels.shape), axis=1))
    return np.concatenate(drawn).astype(np.int64)


def lattice_voxels(shape: tuple[int, ...], most: int) -> Voxels:
    """Return a regular lattice (P, 3) over a volume: the smallest step, alike on all axes, of at most `most` points."""
    step = 1
    while np.prod([max(1, len(range(step // 2, n, step))) for n in shape]) > most:
        step += 1
    axes = [np.arange(min(step // 2, n - 1), n, step) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)


def choose_penalty(rows: NDArray[np.float32], labels: NDArray[Any], groups: NDArray[np.int64]) -> float:
    """Choose C of `PENALTIES` by the mean balanced accuracy on left-out training cases (at most four folds).

    With a single case there is nothing to leave out, and the middle one is taken.
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
    """Fit standardisation and multinomial logistic regression, every class weighing the same."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        raise UserError("A probe needs scikit-learn: pip install 'viewalign[tasks]'.") from None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=200, class_weight="balanced"))
    # One thread: the products are small, and the result does not depend on how many cores there are.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Weak penalties may stop at the last iteration; that is an early stop, the same each time, and no fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(rows.astype(np.float64), labels)


def mean_dice(guess: NDArray[Any], truth: NDArray[Any], classes: Sequence[int]) -> float:
    """Return the mean Dice over `classes`; one that is in neither `guess` nor `truth` is left out, NaN if all are."""
    dices = []
    for label in classes:
        ours, theirs = guess == label, truth == label
        total = int(ours.sum() + theirs.sum())
        if total:
            dices.append(2 * int((ours & theirs).sum()) / total)
    return float(np.mean(dices)) if dices else float("nan")


def balanced_accuracy(guess: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the mean, over the classes in `truth`, of the share that was recognised."""
    return float(np.mean([(guess[truth == label] == label).mean() for label in np.unique(truth)]))
