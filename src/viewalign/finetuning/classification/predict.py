"""Answers of a fine-tuned model to new cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from viewalign.finetuning.classification.finetune import write_predictions
from viewalign.finetuning.classification.models import Predictor, prediction_columns
from viewalign.finetuning.classification.onnx import OnnxPredictor
from viewalign.tasks.cases import in_order, prepared
from viewalign.tasks.manifest import read_manifest


@dataclass(frozen=True)
class Answers:
    """What a model says of cases.

    Attributes:
        columns: what the numbers are: `p_<class>` each, or `value`.
        values: by case, (K,) probabilities or (1,) value in the target's own unit.
        refused: name and reason of each case that could not be used.
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
    """Answer for each case, averaged over the model's folds.

    Args:
        model: the folder of a fine-tuning or one of its folds, or an exported `.onnx`.
        cases: a manifest or a task's folder; targets are not needed.
        out: a CSV to write.
        device: what the network computes on; an `.onnx` runs on the CPU.
        flips: whether to average over mirrored images too.
        on_progress: takes how many cases are done and how many there are.
        workers: processes that prepare cases, as `prepared` takes them.

    Raises:
        UserError: no model there, or cases that cannot be used.
    """
    predictor = OnnxPredictor(model) if model.suffix == ".onnx" else Predictor(model, device)
    given = read_manifest(cases, predictor.spec, targets=False)
    found: dict[str, NDArray[np.float64] | str] = {}
    for number, (case, sample) in enumerate(prepared(given, predictor.preprocessor, workers=workers), 1):
        found[case.case] = sample if isinstance(sample, str) else predictor.answer(sample, flips)
        if on_progress:
            on_progress(number, len(given))
    values, excluded = in_order(given, found)
    if out is not None:
        write_predictions(out, given, {name: ("", value) for name, value in values.items()}, predictor.spec)
    return Answers(tuple(prediction_columns(predictor.spec)), values, excluded)
