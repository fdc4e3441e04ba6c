"""Run the cells of a study, and estimate the remaining time."""

from __future__ import annotations

import logging
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from viewalign.reports.run import LivePage
from viewalign.studies.cells import FILE, Cell, Grid
from viewalign.studies.labelled import report_copies
from viewalign.tasks.copies import CACHE
from viewalign.training.run import pretrain
from viewalign.utils.console import duration
from viewalign.utils.io import write_json
from viewalign.utils.locks import BusyError, locked

_log = logging.getLogger(__name__)

RUN = "run"


def time_left(cells: Sequence[Cell], all_cells: Sequence[Cell]) -> str:
    """Describe the remaining time of cells; empty if it is unknown.

    Args:
        cells: those of this process.
        all_cells: those of the study, whose durations are used by kind.
    """
    seconds: dict[str, list[float]] = {}
    for cell in all_cells:
        if (taken := cell.record.get("seconds")) is not None:
            seconds.setdefault(_kind(cell), []).append(float(taken))
    remaining = [cell for cell in cells if not cell.done]
    known = [mean(seconds[_kind(cell)]) for cell in remaining if _kind(cell) in seconds]
    if not known:
        return ""
    return f"{'about' if len(known) == len(remaining) else 'more than'} {duration(sum(known))} left"


def _kind(cell: Cell) -> str:
    """Return a key of cells with similar duration: the arm of a pretraining, or the evaluation."""
    return f"pretrain/{cell.arm}" if cell.evaluation is None else f"evaluate/{cell.evaluation}"


def run_study(
    grid: Grid,
    go_on: Callable[[], bool] = lambda: True,
    cells: Sequence[Cell] | None = None,
) -> int:
    """Run unfinished cells, except those that another process is running.

    Args:
        grid: the study.
        go_on: called before each cell; false stops the study.
        cells: some cells of the grid, in its order; default all.

    Returns:
        0 if all are finished, 3 if some failed, 4 if some are left (stopped, or run by another process), otherwise the
        exit code of a signal.
    """
    chosen = grid.cells if cells is None else cells
    if grid.labelled is not None and not all(cell.done for cell in chosen if cell.evaluation):
        report_copies(grid.labelled, grid.out / "data" / CACHE)
    for number, cell in enumerate(chosen, start=1):
        if cell.done or (cell.needs is not None and not cell.needs.done):
            continue
        if not go_on():
            return 4
        cell.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(cell.folder / ".lock"):
                code = None if cell.done else run_cell(grid, cell)
        except BusyError as other:
            _log.info("[%d/%d] %s: running in %s", number, len(chosen), cell.name, other)
            continue
        if code is not None:
            return code
        result = cell.record.get("error") or cell.record.get("measures") or "done"
        _log.info("[%d/%d] %s: %s  %s", number, len(chosen), cell.name, result, time_left(chosen, grid.cells))
    return _report_remaining([cell for cell in chosen if not cell.done])


def _report_remaining(cells: Sequence[Cell]) -> int:
    failed = False
    for cell in cells:
        error = cell.record.get("error")
        before = cell.needs
        while before is not None and before.record.get("error") is None:
            before = before.needs
        failed = failed or error is not None or before is not None
        reason = error or (f"{before.name} failed" if before is not None else "run by another process")
        _log.warning("not finished: %s: %s", cell.name, reason)
    return 3 if failed else 4 if cells else 0


def run_cell(grid: Grid, cell: Cell) -> int | None:
    """Run a cell and record its result and duration; an error is recorded too.

    Returns:
        An exit code if a signal was received, even if the cell was completed.
    """
    start = time.perf_counter()
    code: int | None = None
    result: dict[str, Any] = {"measures": {}}
    try:
        if cell.evaluation is None:
            finished, code = _pretrain(grid, cell)
            if not finished:
                return code
        else:
            result = _evaluate(grid, cell, cell.evaluation)
    except Exception as problem:
        (cell.folder / "error.txt").write_text(traceback.format_exc())
        write_json(cell.folder / FILE, {"status": "failed", "error": str(problem) or type(problem).__name__})
        return None
    (cell.folder / "error.txt").unlink(missing_ok=True)
    write_json(cell.folder / FILE, {"status": "done", "seconds": round(time.perf_counter() - start, 1), **result})
    return code


def _pretrain(grid: Grid, cell: Cell) -> tuple[bool, int | None]:
    """Return whether the run is complete, and an exit code if a signal was received."""
    arm = grid.study.arms[cell.arm]
    if arm.untrained or arm.encoder:
        return True, None
    run = cell.folder / RUN
    if run.is_dir() and not (run / "config.yaml").is_file():
        shutil.rmtree(run)  # killed before the first step
    changes: dict[str, Any] = {"data": str(grid.store_path), "out": str(run)}
    recipe = grid.recipes[cell.arm, cell.seed]
    if cell.needs is not None:
        external = grid.external.get(cell.needs.arm)
        weights = external.path if external else str(cell.needs.folder / RUN)
        changes["init"] = recipe.init.model_copy(update={"weights": weights})
    outcome = pretrain(recipe.model_copy(update=changes), resume="auto", page=LivePage())
    return outcome.finished, outcome.stops_caller


def _evaluate(grid: Grid, cell: Cell, name: str) -> dict[str, Any]:
    assert cell.needs is not None
    external = grid.external.get(cell.arm)
    run = None if grid.study.arms[cell.arm].untrained or external else cell.needs.folder / RUN
    recipe = grid.recipes[cell.arm, cell.seed]
    return grid.evaluator.evaluate(name, cell.arm, cell.folder, run, recipe, cell.seed, external)
