"""Write the page of all settings from their models: python docs/make_settings.py."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from viewalign.cli.grammar import MODELS, model_of
from viewalign.methods.registry import METHODS, method_settings_model
from viewalign.utils.settings_description import Setting, describe

PAGE = Path(__file__).parent / "settings.md"
_START = """# Settings

This page lists the settings of all commands. It is generated from the models that check them; run
`python docs/make_settings.py` after a change. On the command line a setting is written `key=value`; three numbers
(D, H, W) are written `[96,96,96]`, `96,96,96` or `96`; lists `a,b` or `[a,b]`; `null` means no value.
`viewalign COMMAND -h` shows the same list, `viewalign settings COMMAND` prints it as YAML, and `config=FILE` reads such
a file. In Python, groups are dictionaries: `viewalign.pretrain(..., optim={"lr": 1e-3})`.
"""


def page() -> str:
    """Return the page."""
    return "\n".join([_START, *_sections()]).rstrip() + "\n"


def _sections() -> Iterator[str]:
    for command in MODELS:
        settings = list(describe(model_of(command)))
        if command == "finetune regression":
            yield f"## {command}\n\nAs `finetune classification`.\n"
            continue
        if command == "estimate":
            settings = [one for one in settings if one.name == "gpu"]
        yield f"## {command}\n"
        if command == "estimate":
            yield "The settings of [pretrain](#pretrain), those of [prepare](#prepare) prefixed with `prepare.`, and:\n"
        yield from _tables(settings)
        if command == "pretrain":
            for name in METHODS:
                yield from _tables(list(describe(method_settings_model(name), "pretext.")))


def _tables(settings: list[Setting]) -> Iterator[str]:
    for group, members in groupby(settings, key=lambda one: one.group):
        yield f"**{group}**\n\n| setting | default | values | meaning |\n|---|---|---|---|"
        for one in members:
            default = f"`{one.default}`" if one.default else "required"
            cells = [f"`{one.name}`", default, one.values.replace(" | ", " or "), one.meaning]
            yield "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"
        yield ""


if __name__ == "__main__":
    PAGE.write_text(page())
