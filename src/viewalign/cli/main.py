"""The command `viewalign`: its subcommands, and how errors are reported."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from viewalign import __version__
from viewalign.cli.compat import fomo, nnunet, task
from viewalign.cli.demo import demo
from viewalign.cli.doctor import doctor
from viewalign.cli.estimate import estimate
from viewalign.cli.evaluation import compare, embed, evaluate, probe
from viewalign.cli.export import export
from viewalign.cli.fetch import encoders, fetch
from viewalign.cli.finetune import finetune, predict
from viewalign.cli.grammar import Command, Result
from viewalign.cli.index import index
from viewalign.cli.prepare import prepare
from viewalign.cli.pretrain import pretrain
from viewalign.cli.recipes import methods, recipes, settings
from viewalign.cli.report import report
from viewalign.cli.study import compare_methods, gain, study
from viewalign.cli.verify import verify
from viewalign.errors import DamageWarning, UserError, report_os_errors
from viewalign.utils.io import visible
from viewalign.utils.progress import show_progress

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]}
)
_COMMANDS: dict[str, list[Callable[..., Result]]] = {
    "Pretraining": [index, prepare, estimate, pretrain, report, export],
    "Transfer and evaluation": [predict, embed, probe, evaluate, compare, gain, study, compare_methods],
    "More": [demo, recipes, methods, settings, doctor, fetch, encoders, verify],
}
for panel, commands in _COMMANDS.items():
    for command in commands:
        app.command(cls=Command, rich_help_panel=panel)(command)
app.add_typer(finetune, name="finetune", rich_help_panel="Transfer and evaluation")
for name, group in {"task": task, "fomo": fomo, "nnunet": nnunet}.items():
    app.add_typer(group, name=name, rich_help_panel="More")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"viewalign {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing: encoders of a name come from the cache.")
    ] = False,
) -> None:
    """Pretrain encoders on unlabelled 3D medical images, and transfer them to your task.

    Inputs are positional arguments, -o is the output, settings are key=value (see COMMAND -h).

    Typical workflow:

      viewalign index    FOLDER -o catalogue.json

      viewalign prepare  catalogue.json -o store

      viewalign pretrain cva-resenc-l store -o run

      viewalign report   run

      viewalign export   run

    [bold]viewalign demo[/bold] runs all of it on example data in a few minutes.
    """
    if offline:
        os.environ["VIEWALIGN_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"  # for worker processes too
    show_progress()


def _show_warning(
    errors: Console, plain: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any
) -> None:
    """Print a warning of damage like an error, and others as Python does."""
    if issubclass(category, DamageWarning):
        errors.print(f"[bold yellow]viewalign:[/bold yellow] {escape(visible(str(message)))}")
    else:
        plain(message, category, *where)


def run(arguments: list[str] | None = None) -> None:
    """Run the command line; errors of the input end in a message and exit code 1, without a traceback."""
    # Libraries warn about deprecations within each other, which a user cannot change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # some encodings of terminals lack × and →
    errors = Console(stderr=True, highlight=False, soft_wrap=True)

    warnings.showwarning = partial(_show_warning, errors, warnings.showwarning)
    try:
        with report_os_errors():
            app(args=arguments, prog_name="viewalign")
    except UserError as problem:
        if logging.getLogger("viewalign").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        errors.print(f"[bold red]viewalign:[/bold red] {escape(visible(str(problem)))}")
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("Stopped.")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the output has closed the pipe, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
