"""`viewalign recipes`, `methods` and `settings`: lists of recipes, methods and settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viewalign.cli.grammar import MODELS, Result, model_of
from viewalign.errors import UserError
from viewalign.utils.overrides import similar

if TYPE_CHECKING:
    from viewalign.utils.settings_description import Setting


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe with every setting that it uses.")] = None,
) -> Result:
    """List the recipes, or print one of them in full, with the meaning of each setting.

    Save a recipe to a file, edit it, and pass the file to `viewalign pretrain`:

      viewalign recipes cva-resenc-l > mine.yaml
    """
    import viewalign
    from viewalign.recipes import loading

    if name is not None:
        recipe = loading.load(name)
        return Result(recipe.model_dump(by_alias=True), loading.to_yaml(recipe, comments=True).rstrip("\n"))
    listed = viewalign.list_recipes()
    return Result(listed, "\n".join(f"{name:22s} {line}" for name, line in listed.items()))


def methods() -> Result:
    """List the pretraining methods: title, paper, networks, recipes, settings that only some methods use, status.

    To use a method, choose one of its recipes; `viewalign recipes` shows all settings:

      viewalign pretrain voco-resenc-xs store -o run

      viewalign recipes voco-resenc-l
    """
    from viewalign.methods.registry import METHODS, used_settings_of
    from viewalign.methods.requirements import summary
    from viewalign.recipes import loading
    from viewalign.recipes.files import RECIPES

    recipes: dict[str, list[str]] = {name: [] for name in METHODS}
    for recipe in RECIPES.names():
        recipes[loading.load(recipe).method].append(recipe)
    facts = {
        name: {
            "title": entry.title,
            "paper": entry.paper,
            "networks": entry.networks,
            "recipes": recipes[name],
            "uses": summary(used_settings_of(name)),
            "status": entry.status,
        }
        for name, entry in METHODS.items()
    }
    return Result(facts, "\n".join(_method_text(name, method) for name, method in facts.items()))


def _method_text(name: str, method: dict[str, Any]) -> str:
    lines = [
        f"{name}: {method['title']} ({method['paper']})",
        f"    networks  {', '.join(method['networks'])}",
        f"    recipes   {', '.join(method['recipes'])}",
        f"    uses      {', '.join(method['uses']) or 'only common settings'}",
        f"    status    {method['status']}",
    ]
    return "\n".join(lines)


def settings(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Such as prepare, or finetune segmentation.")
    ] = None,
) -> Result:
    """Print the settings of a command as YAML with default, values and meaning; without COMMAND, list the commands.

    Save them to a file, remove the # before those that you change, and pass it to the command as config=FILE; the
    command line overrides the file, which overrides a recipe:

      viewalign settings prepare > ct.yaml

      viewalign prepare scans -o store config=ct.yaml workers=8
    """
    name = " ".join(command or [])
    model = model_of(name)
    if model is None:
        if name:
            near = similar(name, MODELS)
            raise UserError(f"No command '{name}' has settings{near}. `viewalign settings` lists those that have some.")
        return Result({"commands": sorted(MODELS)}, "\n".join(sorted(MODELS)))
    owner: Any = context.find_root().command
    for word in command or []:
        owner = owner.commands[word]
    found = owner.own_settings(model)
    return Result({"command": name, "settings": found}, "\n".join(_as_yaml(found)))


def _as_yaml(settings: list[Setting]) -> Iterator[str]:
    group = ""
    for one in settings:
        if one.group != group:
            group = one.group
            yield f"\n## {group}"
        yield f"# {one.meaning} [{one.values}]"
        yield f"{'#' if one.default or one.absent else ''}{one.name}: {one.default or 'REQUIRED'}"
