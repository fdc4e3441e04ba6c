"""How long a study will still take, by what its cells took so far."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from viewalign.study.grid import Cell
from viewalign.training.logs import duration


def time_left(cells: Sequence[Cell], all_cells: Sequence[Cell]) -> str:
    """Say in words how long cells will take that are not done; nothing where none of them can be told.

    Args:
        cells: those that this process does.
        all_cells: the study's, those of other processes included: a cell takes what others of its kind took.
    """
    took: dict[str, list[float]] = {}
    open_cells = [cell for cell in cells if not cell.done]
    for cell in all_cells:
        seconds = cell.record.get("seconds")
        if seconds is not None:
            took.setdefault(kind_of(cell), []).append(float(seconds))
    known = [mean(took[kind_of(cell)]) for cell in open_cells if kind_of(cell) in took]
    if not known:
        return ""
    return f"{'about' if len(known) == len(open_cells) else 'more than'} {duration(sum(known))} left"


def kind_of(cell: Cell) -> str:
    """Return what cells of about equal length share: the arm of a pretraining, else the judge."""
    return f"pretrain/{cell.arm}" if cell.judge is None else f"judge/{cell.judge}"
