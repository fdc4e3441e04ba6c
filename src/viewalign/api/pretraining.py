"""Pretraining, its report, and the available recipes and methods."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import UserError, report_os_errors

if TYPE_CHECKING:
    from viewalign.config import Recipe
    from viewalign.data.store import Store
    from viewalign.training.run import RunResult


_log = logging.getLogger(__name__)


@report_os_errors()
def pretrain(
    recipe: str | Path | Recipe,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    store: Store | None = None,
    **settings: Any,
) -> RunResult:
    """Pretrain an encoder without labels, until the last step, Ctrl-C or SIGTERM; then write the report.

    Args:
        recipe: a recipe's name (`list_recipes`), a YAML file, or a `Recipe`.
        data: a prepared store.
        out: the run's folder.
        resume: whether to resume from the newest checkpoint in `out`, if there is one.
        store: an open store, instead of `data`.
        **settings: any of the recipe's, in groups: `steps=500, optim={"lr": 1e-3}`.

    Returns:
        How the run ended: `folder.root`, `step` of `steps`, `finished`.

    Raises:
        UserError: an invalid recipe, setting, store or folder; raised before training.

    Example:
        ```python
        views = {"patch_size": 32}
        run = viewalign.pretrain("cva-resenc-xs", data="store", out="run", steps=500, views=views)
        print(run.finished, run.folder.root)
        ```
    """
    from viewalign.config import Recipe
    from viewalign.recipes.loading import change, load
    from viewalign.training import run

    places = {name: str(value) for name, value in (("data", data), ("out", out)) if value is not None}
    wanted: Mapping[str, Any] = {**settings, **places}
    if not isinstance(recipe, Recipe):
        recipe = load(str(recipe), settings=wanted, warn=True)
    elif wanted:
        recipe = change(recipe, wanted)
    probe = None
    if recipe.validate_.probe is not None:
        from viewalign.evaluation.online_probe import make_probe

        probe = make_probe(recipe)
    result = run.pretrain(recipe, "auto" if resume else False, store, probe)
    if result.first:
        try:
            report(result.folder.root)
        except UserError as problem:  # a full disk; the run itself is complete
            _log.warning("The report could not be written: %s", problem)
    return result


@report_os_errors()
def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, finished or not, or of a fine-tuning for classification or regression.

    Args:
        run: its folder.
        out: the page's file; default `report.html` in the folder.

    Returns:
        The page's path.

    Raises:
        UserError: there is no run in the folder, or the page cannot be written.

    Example:
        ```python
        print(viewalign.report("run"))
        ```
    """
    from viewalign.evaluation.predictions import is_task_run
    from viewalign.reports import task
    from viewalign.reports.run import write_report

    write = task.write_page if is_task_run(Path(run)) else write_report
    return write(Path(run), None if out is None else Path(out))


def list_recipes() -> dict[str, str]:
    """Return the names of the pretraining recipes, each with a one-line description.

    Example:
        ```python
        for name, line in viewalign.list_recipes().items():
            print(name, line)
        ```
    """
    from viewalign.recipes import loading

    return {name: loading.headline(name) for name in loading.names()}


def list_methods() -> dict[str, str]:
    """Return the names of the pretraining methods, each with its title and paper.

    Example:
        ```python
        print(viewalign.list_methods()["cva"])
        ```
    """
    from viewalign.methods.registry import METHODS

    return {name: f"{entry.title} ({entry.paper})" for name, entry in METHODS.items()}
