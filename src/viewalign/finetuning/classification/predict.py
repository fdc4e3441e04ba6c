"""Predict new cases with a fine-tuned or exported model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from viewalign.evaluation.predictions import prediction_columns, write_predictions
from viewalign.finetuning.classification.models import Predictor
from viewalign.finetuning.classification.onnx import OnnxPredictor
from viewalign.tasks.cases import iter_prepared, split_results
from viewalign.tasks.manifest import read_manifest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """Predictions for new cases.

    Attributes:
        columns: names of the values: `p_<class>` for each class, or `value`.
        values: by case, probabilities (K,) or value (1,) in the target's unit.
        excluded: name and reason of each unusable case.
    """

    columns: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    excluded: list[tuple[str, str]]


def predict(
    model: Path,
    cases: str | Path,
    out: Path | None = None,
    device: str = "cpu",
    flips: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Answers:
    """Predict each case by the mean over the model's folds.

    Args:
        model: folder of a fine-tuning or one of its folds, or an exported `.onnx`.
        cases: a manifest or a task's folder; targets are not needed.
        out: a CSV file to write.
        device: where the network runs; an `.onnx` runs on the CPU.
        flips: whether to average over mirrored images, if training used them.
        on_progress: called with (done, total) after each case.
        workers: see `tasks.cases.iter_prepared`.

    Raises:
        UserError: no model, or an invalid manifest.
    """
    predictor = OnnxPredictor(model) if model.suffix == ".onnx" else Predictor(model, device)
    if flips and not predictor.mirrored:
        flips = False
        _log.warning(
            "tta=true has no effect: %s was trained without mirrored images (by default left and right differ: "
            "laterality in task.yaml).",
            model,
        )
    rows = read_manifest(cases, predictor.spec, targets=False)
    results: dict[str, NDArray[np.float64] | str] = {}
    for case, sample in iter_prepared(rows, predictor.preprocessor, workers=workers):
        results[case.case] = sample if isinstance(sample, str) else predictor.predict_sample(sample, flips)
        if on_progress:
            on_progress(len(results), len(rows))
    values, excluded = split_results(rows, results)
    if out is not None:
        write_predictions(out, rows, {name: ("", value) for name, value in values.items()}, predictor.spec)
    return Answers(tuple(prediction_columns(predictor.spec)), values, excluded)
