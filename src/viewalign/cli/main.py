"""The command `viewalign`: which commands there are, and how mistakes are told."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from viewalign import __version__
from viewalign.cli.compare import compare
from viewalign.cli.demo import demo
from viewalign.cli.doctor import doctor
from viewalign.cli.embed import embed
from viewalign.cli.estimate import estimate
from viewalign.cli.evaluate import evaluate
from viewalign.cli.export import export
from viewalign.cli.fetch import fetch
from viewalign.cli.finetune import finetune
from viewalign.cli.fomo import fomo
from viewalign.cli.index import index
from viewalign.cli.nnunet import nnunet
from viewalign.cli.predict import predict
from viewalign.cli.prepare import prepare
from viewalign.cli.pretrain import pretrain
from viewalign.cli.probe import probe
from viewalign.cli.recipes import methods, recipes
from viewalign.cli.report import report
from viewalign.cli.study import compare_methods, study
from viewalign.cli.task import task
from viewalign.errors import UserError, report_disk_full

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
for command in (
    demo,
    doctor,
    fetch,
    index,
    estimate,
    prepare,
    pretrain,
    report,
    export,
    recipes,
    methods,
    evaluate,
    compare,
):
    app.command()(command)
app.add_typer(finetune, name="finetune")
app.add_typer(task, name="task")
app.add_typer(fomo, name="fomo")
app.add_typer(nnunet, name="nnunet")
app.command()(embed)
app.command()(probe)
app.command()(study)
app.command()(compare_methods)
app.command()(predict)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"viewalign {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Learn from unlabelled 3D medical images by Consistent View Alignment, and carry it to your task.

    The way of the data, in five commands:

      viewalign index    FOLDER -o catalogue.json

      viewalign prepare  catalogue.json -o store

      viewalign pretrain cva-resenc-l data=store out=run

      viewalign report   run

      viewalign export   run

    New here? [bold]viewalign demo[/bold] does all of it on example data in a few minutes.
    """


def run(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in a sentence and exit code 1, never in a traceback."""
    # torch and its friends warn each other of their own deprecations; a user can do nothing about these.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with report_disk_full():
            app(args=arguments, prog_name="viewalign")
    except UserError as problem:
        errors.print(f"[bold red]viewalign:[/bold red] {escape(str(problem))}")
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("Stopped.")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
