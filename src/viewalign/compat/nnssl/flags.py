"""Argument parser and output shared by nnssl's command lines."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from viewalign.errors import UserError, report_os_errors
from viewalign.utils.overrides import similar
from viewalign.utils.progress import show_progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from viewalign.data.catalogue import Collection
    from viewalign.data.layout import ImageProgress, ProgressListener
    from viewalign.data.settings import Limits
    from viewalign.data.sources import Exclusion

CONFIGURATIONS = ("onemmiso", "median", "noresample")
_PLANNERS = ("ExperimentPlanner",)


class Parser(argparse.ArgumentParser):
    """Rejects unknown flags; argparse would read `-pre x` as `-p re` and an argument `x`."""

    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.flags: list[str] = ["-h", "--help"]

    def flag(self, *names: str, **settings: Any) -> None:
        """Add a flag."""
        self.flags += names
        self.add_argument(*names, **settings)

    def reject_unknown(self, arguments: Sequence[str]) -> None:
        """Exit with a message if an argument looks like a flag but is not one."""
        for argument in arguments:
            word = argument.partition("=")[0]
            if word.startswith("-") and word not in self.flags and not _is_number(word):
                self.error(f"there is no flag {word}{similar(word, self.flags)}")


def _is_number(word: str) -> bool:
    return word[1:].replace(".", "", 1).isdecimal()


def execute(parser: Parser, do: Callable[[argparse.Namespace], int], arguments: Sequence[str] | None) -> None:
    """Run a command line; a `UserError` is printed and ends with exit code 1."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    show_progress()
    words = sys.argv[1:] if arguments is None else arguments
    parser.reject_unknown(words)
    try:
        with report_os_errors():
            code = do(parser.parse_args(words))
    except UserError as problem:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("Stopped. Completed work is kept.", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if code:
        sys.exit(code)


def add_datasets(parser: Parser, several: bool = True) -> None:
    """Add `-d` for datasets."""
    count: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.flag("-d", required=True, metavar="ID", help="id or name, such as 745 or Dataset745_OpenMind", **count)


def add_configurations(parser: Parser) -> None:
    """Add `-c` for configurations and `-np` for processes."""
    parser.flag("-c", nargs="+", default=["onemmiso"], choices=CONFIGURATIONS, help="configurations; default onemmiso")
    parser.flag(
        "-np",
        nargs="+",
        type=at_least(0),
        metavar="N",
        help="processes: one number for all configurations, or one for each; default one per core, at most 8",
    )


def add_planner(parser: Parser) -> None:
    """Add `-pl` for the planner."""
    parser.flag("-pl", default="ExperimentPlanner", choices=_PLANNERS, help="planner; only this one")


def add_limits(parser: Parser) -> None:
    """Add limits per file, so that one huge or hanging file does not stop the others."""
    parser.flag("--time_limit", type=at_least(1), default=900, metavar="SECONDS",
                help="exclude files that take longer; default 900, none with 0 processes")  # fmt: skip
    parser.flag("--max_voxels", type=at_least(8), metavar="N",
                help="exclude larger images; default as many as fit into this machine's memory")  # fmt: skip


def limits_of(options: argparse.Namespace) -> Limits:
    """Return the limits per file."""
    from viewalign.data.settings import Limits, voxels_that_fit

    return Limits(options.time_limit, options.max_voxels or voxels_that_fit())


def at_least(lowest: int) -> Callable[[str], int]:
    """Return a parser of integers with a minimum."""

    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"needs {lowest} or more, not {text}")
        return int(text)

    number.__name__ = "int"
    return number


def default_processes(at_most: int = 8) -> int:
    """Return the default number of processes: `nnUNet_def_n_proc`, or one per core."""
    from viewalign.data.worker_pool import default_workers

    written = os.environ.get("nnUNet_def_n_proc", "")  # noqa: SIM112 (nnU-Net's name)
    if not written:
        return min(at_most, default_workers())
    if not written.isdecimal():
        raise UserError(f"The environment variable nnUNet_def_n_proc is {written!r}; it must be a number of processes.")
    return int(written)


def preprocessed_root(make: bool = False) -> Path:
    """Return nnssl's folder of preprocessed data, and report if another variable replaces it."""
    from viewalign.compat.nnssl.folders import REPLACEMENT, variable_folder

    if os.environ.get(REPLACEMENT):
        say(f"{REPLACEMENT} is set and replaces nnssl_preprocessed.")
    return variable_folder("nnssl_preprocessed", make)


def raw_dataset(dataset: str) -> tuple[Path, Collection]:
    """Return the folder of a raw dataset and its catalogue.

    Raises:
        UserError: an unset variable, no such dataset, or a catalogue that cannot be read.
    """
    from viewalign.compat.nnssl.folders import CATALOGUE, find_dataset, variable_folder
    from viewalign.data.catalogue import read_catalogue

    folder = find_dataset(variable_folder("nnssl_raw"), dataset, "nnssl_raw")
    return folder, read_catalogue(folder / CATALOGUE)


@contextmanager
def shown(what: str, verbose: bool) -> Iterator[ProgressListener]:
    """Show a progress bar; `verbose` prints a line for each file."""
    from viewalign.utils.console import stages

    with stages() as report:

        def listen(progress: ImageProgress) -> None:
            report(progress.words(what), progress.done, progress.total)
            if verbose:
                print(f"{progress.file}: {progress.reason or 'done'}", flush=True)

        yield listen


def report_excluded(excluded: Sequence[Exclusion]) -> None:
    """Print excluded files with reasons."""
    from rich.console import Console

    from viewalign.utils.console import show_excluded

    show_excluded(Console(), [(exclusion.file, exclusion.reason) for exclusion in excluded])


def say(text: str) -> None:
    """Print a line, once per machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, flush=True)
