"""Write the page of all commands from the command line itself: python docs/make_commands.py."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from viewalign.cli.grammar import model_of
from viewalign.cli.main import app

PAGE = Path(__file__).parent / "commands.md"
_START = """# Commands

Generated from the command line by `python docs/make_commands.py`; `viewalign COMMAND -h` shows the same. Inputs are
positional arguments, `-o` is what is written, settings are `key=value` ([All settings](settings.md)). Every command
takes `--json` (print the result as one JSON object on one line; messages are on standard error), `-q` (warnings and
results only), `-v` (debug messages) and `-h`; with `--offline` before the command nothing is fetched.
"""
_SHARED = {"--json", "-q", "-v", "-h", "--help"}


def page() -> str:
    """Return the page."""
    return "\n".join([_START, *_sections("viewalign", get_command(app))]).rstrip() + "\n"


def _sections(path: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name in sorted(command.commands):
            yield from _sections(f"{path} {name}", command.commands[name])
        return
    name = path.removeprefix("viewalign ")
    inputs = [one for one in command.params if one.param_type_name == "argument"]
    settings = model_of(name) is not None
    words = [_input(one) for one in inputs] + ["[KEY=VALUE]..."] * settings
    yield f"## {name}\n\n```text\n{' '.join([path, *words])}\n```\n\n{_text(command)}\n"
    rows = [(f"`{_input(one)}`", one.help or "") for one in inputs]
    options = [one for one in command.params if one not in inputs and not _SHARED & set(one.opts)]
    rows += [(f"`{', '.join(one.opts)}`", (one.help or "") + " Required." * one.required) for one in options]
    if rows:
        yield "| | |\n|---|---|"
        yield from (f"| {left} | {_cell(right)} |" for left, right in rows)
        yield ""
    if settings:
        yield f"Settings: [{name}](settings.md#{name.replace(' ', '-')}).\n"


def _input(one: Any) -> str:
    word = one.metavar + "..." * (one.nargs == -1)
    return word if one.required else f"[{word}]"


def _cell(text: str) -> str:
    return _bold(text).replace("|", "\\|").replace("<", "&lt;")


def _bold(text: str) -> str:
    return re.sub(r"\[/?(?:b|bold)\]", "**", text).replace("\\[", "[")


def _text(command: Any) -> str:
    """Return the help as Markdown: headings in bold, examples and tables of the terminal as blocks."""
    text = _bold(inspect.cleandoc(command.help or "").replace("\b", ""))
    parts: list[str] = []
    for part in (one.strip("\n") for one in text.split("\n\n")):
        lines = part.splitlines()
        code = all(line.startswith(("viewalign ", "  ")) for line in lines if line) and bool(lines)
        columns = len(lines) > 1 and any(re.search(r"\S {3,}\S", line) for line in lines)
        block = f"```text\n{textwrap.dedent(part)}\n```" if code or columns else _cell(part)
        if code and parts and parts[-1].endswith("```"):
            parts[-1] = parts[-1].removesuffix("```") + block.removeprefix("```text\n")
        else:
            parts.append(block)
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
