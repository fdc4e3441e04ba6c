"""Two results of the same cases, whatever they are of."""

from __future__ import annotations

from pathlib import Path

from viewalign.errors import UserError
from viewalign.transfer.evaluation.comparing import Comparison, compare
from viewalign.transfer.evaluation.results import read_evaluation
from viewalign.transfer.tasks.comparing import TaskComparison, compare_runs
from viewalign.transfer.tasks.outcomes import is_task_run


def compare_any(a: Path, b: Path) -> Comparison | TaskComparison:
    """Compare two evaluations of segmentations, or two fine-tunings for classification or regression.

    Raises:
        UserError: one of either, or results that cannot be compared.
    """
    kinds = [is_task_run(one) for one in (a, b)]
    if all(kinds):
        return compare_runs(a, b)
    if any(kinds):
        other = b if kinds[0] else a
        raise UserError(f"{a if kinds[0] else b} is a fine-tuning with predictions.csv, but {other} is not.")
    return compare(read_evaluation(a), read_evaluation(b), (str(a), str(b)))
