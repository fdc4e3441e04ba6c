"""How long a study will still take, by what its cells took so far."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from viewalign.studies.cells import FILE, Cell, Grid
from viewalign.training.logs import duration
from viewalign.training.run import pretrain
from viewalign.utils.io import atomic_write
from viewalign.utils.locks import BusyError, locked


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


RUN = "run"


def run_study(
    grid: Grid,
    say: Callable[[str], None],
    go_on: Callable[[], bool] = lambda: True,
    cells: Sequence[Cell] | None = None,
) -> int:
    """Do cells that are not done; what another process is at is left to it.

    Args:
        grid: the study.
        say: takes a line for each cell that was done, and for each that was not.
        go_on: asked before each cell.
        cells: some of the grid's, in its order; default all.

    Returns:
        0 if all are done, 3 if some failed, 4 if some are left (`go_on` said no, or another process has them), else
        the exit code of the signal that came.
    """
    chosen = grid.cells if cells is None else cells
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
            say(f"[{number}/{len(chosen)}] {cell.name}: {other} is at it")
            continue
        if code is not None:
            return code
        told = cell.record.get("error") or cell.record.get("measures") or "done"
        say(f"[{number}/{len(chosen)}] {cell.name}: {told}  {time_left(chosen, grid.cells)}".rstrip())
    return _tell_open([cell for cell in chosen if not cell.done], say)


def _tell_open(left: Sequence[Cell], say: Callable[[str], None]) -> int:
    failed = False
    for cell in left:
        error = cell.record.get("error")
        before = cell.needs.record.get("error") if cell.needs is not None else None
        failed = failed or error is not None or before is not None
        say(f"not done: {cell.name}: {error or ('what it needs failed' if before else 'another process has it')}")
    return 3 if failed else 4 if left else 0


def run_cell(grid: Grid, cell: Cell) -> int | None:
    """Do a cell; a fault is written down and does not end the study. How long it took stands in its record.

    Returns:
        An exit code if a signal came, which may have been in the last step of a run that is done now.
    """
    begin = time.perf_counter()
    stop = None
    try:
        if cell.judge is None:
            finished, stop = _pretrain(grid, cell)
            if not finished:
                return stop
        told = {"measures": {}} if cell.judge is None else _judge(grid, cell, cell.judge)
    except Exception as fault:
        (cell.folder / "error.txt").write_text(traceback.format_exc())
        _write(cell.folder / FILE, {"status": "failed", "error": str(fault) or type(fault).__name__})
        return None
    (cell.folder / "error.txt").unlink(missing_ok=True)
    _write(cell.folder / FILE, {"status": "done", "seconds": round(time.perf_counter() - begin, 1), **told})
    return stop


def _pretrain(grid: Grid, cell: Cell) -> tuple[bool, int | None]:
    """Return whether the run is finished, and an exit code if a signal came."""
    if grid.study.arms[cell.arm].untrained:
        return True, None
    run = cell.folder / RUN
    if run.is_dir() and not (run / "config.yaml").is_file():
        shutil.rmtree(run)  # killed before it had begun
    extra: dict[str, Any] = {"data": str(grid.store_path), "out": str(run)}
    recipe = grid.recipes[cell.arm, cell.seed].model_copy(update=extra)
    if cell.needs is not None:
        start = recipe.init.model_copy(update={"weights": str(cell.needs.folder / RUN)})
        recipe = recipe.model_copy(update={"init": start})
    outcome = pretrain(recipe, resume="auto")
    return outcome.finished, outcome.stops_caller


def _judge(grid: Grid, cell: Cell, judge: str) -> dict[str, Any]:
    assert cell.needs is not None
    run = None if grid.study.arms[cell.arm].untrained else cell.needs.folder / RUN
    return grid.bench.judge(judge, cell.folder, run, grid.recipes[cell.arm, cell.seed], cell.seed)


def _write(path: Path, told: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(told, indent=1) + "\n")
