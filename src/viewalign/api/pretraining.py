"""Pretraining, its report, and the available recipes and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import report_os_errors

if TYPE_CHECKING:
    from viewalign.config import Recipe
    from viewalign.data.store import Store
    from viewalign.training.run import RunResult


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
    """Pretrain an encoder without labels, until the last step, Ctrl-C or SIGTERM, and keep its page up to date.

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
    from viewalign.reports.run import LivePage
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
    return run.pretrain(recipe, "auto" if resume else False, store, probe, LivePage())


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
    if not isinstance(run, str | Path) and len(run) > 1:
        return overlay.write_overlay([Path(one) for one in run], page)
    folder = Path(run if isinstance(run, str | Path) else run[0])
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
