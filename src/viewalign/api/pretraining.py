"""Pretraining, and the available recipes and methods: `pretrain`, `list_recipes`, `list_methods`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
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
    say: Callable[[str], Any] = warnings.warn,
    **settings: Any,
) -> RunResult:
    """Pretrain an encoder without labels, until the last step, Ctrl-C or SIGTERM.

    Args:
        recipe: a recipe's name (`list_recipes`), a YAML file, or a `Recipe`.
        data: a prepared store.
        out: the run's folder.
        resume: whether to resume from the newest checkpoint in `out`, if there is one.
        store: an open store, instead of `data`.
        say: called with a message for each setting of a YAML file that has no effect.
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
        recipe = load(str(recipe), settings=wanted, say=say)
    elif wanted:
        recipe = change(recipe, wanted)
    probe = None
    if recipe.validate_.probe is not None:
        from viewalign.evaluation.online_probe import make_probe

        probe = make_probe(recipe)
    return run.pretrain(recipe, "auto" if resume else False, store, probe)


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
