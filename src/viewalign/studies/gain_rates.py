"""The learning rates of `viewalign gain`: tried for each encoder on training cases, before anything is compared.

A rate that suits one start and not another decides a comparison of both. No test case is used to choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.evaluation.task_metrics import LOWER_IS_BETTER
from viewalign.finetuning.segmentation.splits import patients_of
from viewalign.studies.cells import Grid
from viewalign.studies.gain import FEWEST_TEST, exact_patterns, most_shots, split_segmentation, split_task, write_task
from viewalign.studies.labelled import read_labelled
from viewalign.studies.loading import check
from viewalign.studies.settings import FinetuneEvaluation, Study
from viewalign.tasks.copies import CACHE
from viewalign.tasks.manifest import read_manifest
from viewalign.tasks.spec import read_spec
from viewalign.utils.settings import merged

_NAME = "rate-{:g}"


def rates_study(study: Study, out: Path, rates: Sequence[float]) -> Study:
    """Return the study that tries learning rates: the arms of `gain`, its first seed and its fewest labelled cases.

    A fifth of the training cases, at least five, is held out to choose on.

    Args:
        study: that of `gain`.
        out: its folder, which both share, so that each arm is pretrained once.
        rates: the learning rates.

    Raises:
        UserError: too few training cases.
    """
    base = next(one for name, one in study.evaluations.items() if name.startswith("tuned"))
    evaluation, data = base.model_dump(), study.data.model_dump()
    if isinstance(base, FinetuneEvaluation):
        task, counts, available = _hold_out_task(Path(base.task), out)
        evaluation["task"] = str(task.absolute())
    else:
        assert study.data.labelled is not None
        training, patient = read_labelled(study.data.labelled, Path()).learn, study.data.labelled.patient
        learn, held = split_segmentation({case.name: case.image for case in training}, out, (), patient)
        counts, available = (len(learn), len(held)), len(set(patients_of(learn, patient).values()))
        data["labelled"] |= exact_patterns(learn, held)
    if counts[0] < 2 or counts[1] < FEWEST_TEST:
        raise UserError(
            f"rates: {counts[0]} training cases would be left to train on, and {counts[1]} held out to choose a rate "
            f"on; 2 and {FEWEST_TEST} are needed. Set one rate by finetune.lr instead."
        )
    if evaluation["shots"] is not None and evaluation["shots"] >= available:
        evaluation["shots"] = None
    tried = {_NAME.format(rate): merged(evaluation, {"settings": {"lr": rate}}) for rate in rates}
    tree = study.model_dump(exclude_unset=True) | {"data": data, "evaluations": tried, "seeds": [study.seeds[0]]}
    return check({**tree, "name": "gain-rates"}, "gain")


def _hold_out_task(source: Path, out: Path) -> tuple[Path, tuple[int, int], int]:
    """Write the training cases of a task as a task of which a fifth is held out.

    Returns:
        Its folder, the numbers of training and held-out cases, and the largest number of shots.
    """
    spec = read_spec(source)
    training = [case for case in read_manifest(source, spec) if case.split == "train"]
    cases = split_task(training, spec, (), out / CACHE)
    left = [case for case in cases if case.split == "train"]
    return write_task(cases, spec, out, "task-rates"), (len(left), len(cases) - len(left)), most_shots(left, spec)


@dataclass(frozen=True)
class RateChoice:
    """The learning rate of an arm.

    Attributes:
        arm: its name.
        measure: that was compared on held-out cases.
        values: its value for each rate; NaN if it is not finite.
    """

    arm: str
    measure: str
    values: dict[float, float]

    @property
    def rate(self) -> float:
        """The best rate; of equal ones, the lowest."""
        sign = -1 if self.measure in LOWER_IS_BETTER else 1
        return max(sorted(self.values), key=lambda rate: (math.isfinite(v := self.values[rate]), sign * v))

    def plain(self) -> dict[str, Any]:
        """Return plain values for a page: `values` as pairs of rate and value, and `end`, empty if it is none."""
        values = sorted(self.values.items())
        end = {values[0][0]: "lowest", values[-1][0]: "highest"}.get(self.rate, "") if len(values) > 1 else ""
        return {"arm": self.arm, "measure": self.measure, "rate": self.rate, "end": end, "values": values}


def choose_rates(grid: Grid) -> list[RateChoice]:
    """Return the choice of each arm; empty unless all rates were tried.

    Args:
        grid: of `rates_study`.
    """
    if not all(cell.done for cell in grid.cells):
        return []
    first = next(iter(grid.study.evaluations.values()))
    measure = read_spec(first.task).figure if isinstance(first, FinetuneEvaluation) else "dice"
    values: dict[str, dict[float, float]] = {arm: {} for arm in grid.study.arms}
    for cell in grid.cells:
        if cell.evaluation is not None:
            rate = grid.study.evaluation(cell.evaluation, cell.arm).settings["lr"]  # type: ignore[union-attr]
            values[cell.arm][rate] = cell.record["measures"].get(measure, math.nan)
    return [RateChoice(arm, measure, tried) for arm, tried in values.items()]


def with_rates(study: Study, choices: Sequence[RateChoice]) -> Study:
    """Return the study of `gain` in which each arm is fine-tuned at its own rate."""
    own = {one.arm: study.arms[one.arm].model_copy(update={"finetune": {"lr": one.rate}}) for one in choices}
    return study.model_copy(update={"arms": {**study.arms, **own}})
