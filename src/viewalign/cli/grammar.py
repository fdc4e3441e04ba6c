"""The grammar of every command: inputs as positional arguments, `-o`, few flags, and settings as `key=value`."""

from __future__ import annotations

import inspect
import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand

from viewalign.errors import UserError
from viewalign.utils.io import plain_values
from viewalign.utils.overrides import similar
from viewalign.utils.progress import show_progress
from viewalign.utils.settings import Settings, read_words, setting_names, suggest, with_home
from viewalign.utils.settings_description import Setting, describe

MODELS = {
    "index": "viewalign.data.settings:IndexSettings",
    "prepare": "viewalign.data.settings:PrepareOptions",
    "estimate": "viewalign.training.estimate:EstimateSettings",
    "pretrain": "viewalign.config:Recipe",
    "export": "viewalign.weights.settings:ExportSettings",
    "finetune segmentation": "viewalign.finetuning.segmentation.settings:SegmentationOptions",
    "finetune classification": "viewalign.finetuning.classification.settings:TaskOptions",
    "finetune regression": "viewalign.finetuning.classification.settings:TaskOptions",
    "predict": "viewalign.finetuning.settings:PredictSettings",
    "embed": "viewalign.evaluation.settings:EmbedSettings",
    "probe": "viewalign.evaluation.settings:ProbeSettings",
    "evaluate": "viewalign.evaluation.settings:EvaluateSettings",
    "study": "viewalign.studies.settings:StudyOptions",
    "gain": "viewalign.studies.settings:GainSettings",
    "compare-methods": "viewalign.studies.settings:CompareMethodsSettings",
    "demo": "viewalign.demo.settings:DemoOptions",
    "fetch": "viewalign.data.settings:FetchSettings",
    "fomo prepare": "viewalign.compat.fomo:FomoSettings",
    "fomo submission": "viewalign.evaluation.settings:FeatureSettings",
    "fomo check": "viewalign.compat.fomo_check:CheckSettings",
    "task convert": "viewalign.compat.task_conversion:ConvertSettings",
}
"""The model of each command's settings; it is imported on demand."""
_SETTING = re.compile(r"[A-Za-z_][\w.+-]*=")
_JSON = "viewalign.json"
"""Key of the context that holds whether --json was used."""


@dataclass(frozen=True)
class Result:
    """Result of a command, printed as text or with --json as one JSON object on one line.

    Attributes:
        facts: of the JSON object; see `plain_values` for how they are written.
        text: to print, or a function that prints it.
        code: exit code of the command.
    """

    facts: Mapping[str, Any]
    text: str | Callable[[], object] = ""
    code: int = 0

    def print(self, as_json: bool) -> None:
        """Print the result to standard output."""
        if as_json:
            typer.echo(json.dumps(plain_values(self.facts)))
        elif callable(self.text):
            self.text()
        elif self.text:
            typer.echo(self.text)


def command(*words: object) -> str:
    """Return a command of viewalign as a line for a shell; words with spaces are quoted."""
    return shlex.join(["viewalign", *map(str, words)])


def model_of(command: str) -> type[Settings] | None:
    """Return the model of a command's settings; None if it has none."""
    if command not in MODELS:
        return None
    module, name = MODELS[command].split(":")
    model: type[Settings] = getattr(import_module(module), name)
    return model


def settings_of(context: typer.Context) -> dict[str, Any]:
    """Return the settings on the command line as nested plain values; the called function checks them."""
    values: dict[str, Any] = context.obj
    return values


class Command(TyperCommand):
    """A command that accepts `key=value` anywhere among its arguments, shows its settings in its help, and has --json.

    Its function returns a `Result`, or None if there is nothing to print.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common_options()
        for param in self.params:
            if param.param_type_name == "argument":
                param.metavar = param.metavar or (param.name or "").upper()
        self.help = reflowed(self.help or "")

    def invoke(self, ctx: Any) -> None:
        """Run the command and print its result; with --json, other output of it and of libraries goes to stderr."""
        as_json = bool(ctx.meta.get(_JSON))
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            result: Result | None = super().invoke(ctx)
        if result is None:
            return
        result.print(as_json)
        if result.code:
            raise typer.Exit(result.code)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Separate the settings from the words; the rest is parsed as usual, and unknown words are explained."""
        if ctx.resilient_parsing:  # for shell completion
            return list(super().parse_args(ctx, args))
        ctx.allow_extra_args = True
        known = {
            name: option
            for option in self.params
            for name in option.opts + option.secondary_opts
            if name.startswith("-")  # an argument's own name is listed too, and may be the name of a folder
        }
        words, settings, value_next = [], [], False
        for place, word in enumerate(args):
            if not value_next and _SETTING.match(word):
                settings.append(word)
                continue
            name = word.partition("=")[0]
            if not value_next and _is_unknown_flag(name, {*known, *ctx.help_option_names}):
                raise UserError(self._about_flag(ctx, word, args[place + 1 :]))
            value_next = not value_next and name in known and "=" not in word and not getattr(known[name], "is_flag", 0)
            flag, sign, path = word.partition("=") if word.startswith("--") and "=" in word else ("", "", word)
            if word[:2] in known and not word.startswith("--"):
                flag, path = word[:2], word[2:]  # as in -oFOLDER
            words.append(flag + sign + with_home(path))
        ctx.obj = read_words(settings, self._model(ctx))
        self._check_names(ctx, settings)
        try:
            rest: list[str] = super().parse_args(ctx, words)
        except typer.BadParameter as problem:
            if type(problem).__name__ != "MissingParameter":  # typer exports only its base class
                raise
            raise UserError(self._about_missing(ctx, problem.param)) from None
        if ctx.args:
            raise UserError(self._about_argument(ctx, ctx.args[0]))
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Show the position of settings in the first line of the help."""
        pieces: list[str] = super().collect_usage_pieces(ctx)
        return pieces if self._model(ctx) is None else [*pieces, "[KEY=VALUE]..."]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, then the settings in groups with default and meaning."""
        super().format_help(ctx, formatter)
        model = self._model(ctx)
        if model is not None:
            print_settings(self.own_settings(model))

    def own_settings(self, model: type[Settings]) -> list[Setting]:
        """Return the settings of a model that are no inputs or flags of the command."""
        places = {param.name for param in self.params}
        return [one for one in describe(model) if one.name not in places]

    def _model(self, ctx: Any) -> type[Settings] | None:
        return model_of(ctx.command_path.partition(" ")[2])

    def _check_names(self, ctx: Any, words: list[str]) -> None:
        """Reject names that are inputs or flags of this command, or unknown; the called function checks values."""
        places, model = {param.name: param for param in self.params}, self._model(ctx)
        for key, value in ctx.obj.items():
            if key in places and not (model and isinstance(value, dict) and _is_group(key, model)):
                raise UserError(f"{key}= is not a setting of {ctx.command_path}: {_written(places[key])}.")
        if model is None:
            if words:
                raise UserError(f"{ctx.command_path} has no settings: '{words[0]}' cannot be used. See --help.")
            return
        for key in ctx.obj:
            if key.partition(".")[0] not in {field.alias or name for name, field in model.model_fields.items()}:
                near = suggest(key, list(setting_names(model, groups=True)))
                raise UserError(f"There is no setting '{key}'{near}. See {ctx.command_path} --help.")

    def _about_flag(self, ctx: Any, word: str, following: list[str]) -> str:
        """Explain a flag that the command does not have: a setting, or a misspelt flag."""
        flag, sign, value = word.partition("=")
        key = flag.lstrip("-").replace("-", "_")
        names = list(setting_names(model)) if (model := self._model(ctx)) else []
        if not sign:
            value = "false" if key.startswith("no_") else "true"
            value = following[0] if following and not following[0].startswith("-") else value
        key = key if key in names else key.removeprefix("no_")
        if key in names:
            return f"{flag} is a setting, not a flag: write {key}={value}"
        flags = [name for option in self.params for name in option.opts if name.startswith("--")]
        near = suggest(key, names) or similar(flag, flags, cutoff=0.7)
        settings = " Settings are written key=value; see --help." if names else " See --help."
        return f"{ctx.command_path} has no flag {flag}{near}.{settings}"

    def _about_missing(self, ctx: Any, param: Any) -> str:
        """Explain an input or output that is missing, with the first example of the help."""
        usage = [line.strip() for line in (self.help or "").splitlines()]
        example = next((line for line in usage if line.startswith(f"{ctx.command_path} ")), "")
        name = param.metavar if param.param_type_name == "argument" else f"{param.opts[0]} {param.metavar or 'PATH'}"
        about = f"{ctx.command_path} needs {name}: {param.help}"
        return f"{about} For example: {example}" if example else f"{about} See {ctx.command_path} -h."

    def _about_argument(self, ctx: Any, word: str) -> str:
        inputs = " ".join(param.metavar or "" for param in self.params if param.param_type_name == "argument")
        model = self._model(ctx)
        hint = "" if model is None else f" Settings are written key=value, such as {next(setting_names(model))}=…"
        if "=" in ctx.args:
            hint = " Settings are written key=value, without spaces."
        return f"Unexpected argument '{word}'. {ctx.command_path} takes {inputs or 'no input'}.{hint}"


def _is_group(key: str, model: type[Settings]) -> bool:
    return any(name.startswith(f"{key}.") for name in setting_names(model))


def _is_unknown_flag(name: str, known: Collection[str]) -> bool:
    """Whether a word is a flag that a command lacks; `-oPATH` is the known flag -o with its value."""
    return name.startswith("-") and name != "-" and not {name, name[:2]} & set(known)


def reflowed(text: str) -> str:
    """Join the lines of each paragraph, so that they wrap at the width of the terminal.

    Indented lines, such as examples, stay; so do paragraphs that begin with a backspace, such as tables.
    """
    done = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.splitlines()
        kept = paragraph.startswith("\b")
        joined = lines[:1]
        for before, line in pairwise(lines):
            if kept or before.startswith(" ") or line.startswith(" "):
                joined.append(line)
            else:
                joined[-1] += f" {line}"
        done.append("\n".join(joined))
    return "\n\n".join(done)


def _quiet(wanted: bool) -> None:
    if wanted:
        show_progress(logging.WARNING)


def _verbose(wanted: bool) -> None:
    if wanted:
        show_progress(logging.DEBUG)


def _json(context: typer.Context, wanted: bool) -> None:
    context.meta[_JSON] = wanted


def _flags(
    _json: Annotated[
        bool, typer.Option("--json", callback=_json, help="Print the result as one JSON object on one line.")
    ] = False,
    _quiet: Annotated[
        bool, typer.Option("-q", "--quiet", callback=_quiet, help="Show warnings and results only.")
    ] = False,
    _verbose: Annotated[
        bool, typer.Option("-v", "--verbose", callback=_verbose, help="Show debug messages and tracebacks of errors.")
    ] = False,
) -> None:
    """Declare the options that every command has."""


def _common_options() -> list[Any]:
    """Return the options of `_flags`, which no command declares itself."""
    template = typer.Typer(add_completion=False)
    template.command()(_flags)
    names = ("_json", "_quiet", "_verbose")
    options = [param for param in typer.main.get_command(template).params if param.name in names]
    for option in options:
        option.expose_value = False
    return options


def _written(param: Any) -> str:
    """Return how an input or output is written."""
    if param.param_type_name == "argument":
        return "it is a positional argument"
    return f"write {param.opts[0]}" + ("" if param.is_flag else " PATH")


def print_settings(settings: list[Setting]) -> None:
    """Print settings as a table for each group."""
    from itertools import groupby

    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for group, members in groupby(settings, key=lambda one: one.group):
        table = Table.grid(padding=(0, 2))
        for one in members:
            default = f"[default: {one.default}]" if one.default else "[required]"
            about = Text(f"{one.meaning} ").append(f"{one.values} {default}", style="dim")
            table.add_row(Text(one.name, style="bold cyan"), about)
        console.print(Panel(table, title=f"Settings: {group}", title_align="left", border_style="dim"))
