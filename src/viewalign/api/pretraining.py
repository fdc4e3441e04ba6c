"""Pretraining, its report, and the available recipes and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from viewalign.errors import StoppedError, UserError, report_os_errors

if TYPE_CHECKING:
    from viewalign.config import Recipe
    from viewalign.data.store import Store
    from viewalign.training.dry_run import DryRun
    from viewalign.training.run import RunResult


@overload
def pretrain(
    recipe: str | Path | Recipe,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    store: Store | None = None,
    dry_run: Literal[False] = False,
    **settings: Any,
) -> RunResult: ...
@overload
def pretrain(
    recipe: str | Path | Recipe,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    store: Store | None = None,
    dry_run: Literal[True],
    **settings: Any,
) -> DryRun: ...
@report_os_errors()
def pretrain(
    recipe: str | Path | Recipe,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    store: Store | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> RunResult | DryRun:
    """Pretrain an encoder without labels, and keep the run's page up to date.

    Ctrl-C (in a notebook: interrupt), SIGTERM, SIGUSR1 and SIGHUP finish the step, save the state, and raise.

    Args:
        recipe: a recipe's name (`list_recipes`), a YAML file, or a `Recipe`.
        data: a prepared store.
        out: the run's folder.
        resume: whether to resume from the newest checkpoint in `out`, if there is one.
        store: an open store, instead of `data`.
        dry_run: only check everything that a start checks, and estimate memory and time.
        **settings: any of the recipe's, in groups: `steps=500, optim={"lr": 1e-3}`.

    Returns:
        The finished run: `folder.root`, `steps`. Of a dry run what a start would do; `text()` describes it.

    Raises:
        UserError: an invalid recipe, setting, store or folder; raised before training.
        StoppedError: a signal stopped the run after its state was saved; a `KeyboardInterrupt`. Its `result` has the
            `step`; the same call with `resume=True` continues.

    Example:
        ```python
        views = {"patch_size": 32}
        run = viewalign.pretrain("cva-resenc-xs", data="store", out="run", steps=500, views=views)
        print(run.steps, run.folder.root)
        ```
    """
    from viewalign.reports.run import LivePage
    from viewalign.training import run

    places = {name: str(value) for name, value in (("data", data), ("out", out)) if value is not None}
    recipe = _recipe(recipe, {**settings, **places})
    probe = None
    if recipe.validate_.probe is not None:
        from viewalign.evaluation.online_probe import make_probe

        probe = make_probe(recipe, store)
    if dry_run:
        from viewalign.training import dry_run as trial

        return trial.dry_run(recipe, resume, store)
    done = run.pretrain(recipe, "auto" if resume else False, store, probe, LivePage())
    if done.stops_caller is not None:
        state = f"{done.folder.root} is saved at step {done.step} of {done.steps}; resume=True continues it."
        raise StoppedError(state, done, done.exit_code)
    return done


def _recipe(recipe: str | Path | Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return a recipe, loaded if it is given by name, with settings."""
    from viewalign.config import Recipe
    from viewalign.recipes.loading import change, load

    if not isinstance(recipe, Recipe):
        return load(str(recipe), settings=settings, warn=True)
    return change(recipe, settings) if settings else recipe


@report_os_errors()
def report(run: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of a pretraining (finished or not), a fine-tuning or a study, or one page about several runs.

    Args:
        run: its folder, or the folders of several pretrainings, whose curves are overlaid.
        out: the page's file; default `report.html` in the folder, and `runs.html` here for several runs.

    Returns:
        The page's path.

    Raises:
        UserError: there is no run in the folder, or the page cannot be written.

    Example:
        ```python
        print(viewalign.report("run"))
        print(viewalign.report(["run", "other-run"], out="runs.html"))
        ```
    """
    from viewalign.evaluation.predictions import is_task_run
    from viewalign.reports import overlay, segmentation, study, task
    from viewalign.reports.run import write_report

    page = None if out is None else Path(out)
    folders = [Path(one) for one in ([run] if isinstance(run, str | Path) else run)]
    if not folders:
        raise UserError("There is no run to report: name the folder of at least one.")
    if len(folders) > 1:
        return overlay.write_overlay(folders, page)
    (folder,) = folders
    if (folder / study.TABLE).is_file():
        return study.write_page(folder, page)
    if (folder / segmentation.RESULTS).is_file():
        return segmentation.write_page(folder, page)
    return (task.write_page if is_task_run(folder) else write_report)(folder, page)


def list_recipes() -> dict[str, str]:
    """Return the names of the pretraining recipes, each with a one-line description.

    Example:
        ```python
        for name, line in viewalign.list_recipes().items():
            print(name, line)
        ```
    """
    from viewalign.recipes.files import RECIPES

    return {name: RECIPES.headline(name) for name in RECIPES.names()}


def list_methods() -> dict[str, str]:
    """Return the names of the pretraining methods, each with its title and paper.

    Example:
        ```python
        print(viewalign.list_methods()["cva"])
        ```
    """
    from viewalign.methods.registry import METHODS

    return {name: f"{entry.title} ({entry.paper})" for name, entry in METHODS.items()}
