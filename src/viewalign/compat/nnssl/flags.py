"""What nnssl's command lines share: flags that are refused where they are unknown, datasets by id, sentences."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from viewalign.errors import UserError
from viewalign.utils.overrides import similar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from viewalign.data.catalogue import Collection
    from viewalign.data.layout import ProgressListener
    from viewalign.data.settings import Limits
    from viewalign.data.sources import Exclusion

CONFIGURATIONS = ("onemmiso", "median", "noresample")
_PLANNERS = ("ExperimentPlanner",)


class Parser(argparse.ArgumentParser):
    """Refuses flags it does not know; argparse would take `-pre x` for `-p re` and a stray `x`."""

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
        """Add a flag and remember its names."""
        self.flags += names
        self.add_argument(*names, **settings)

    def refuse_unknown(self, arguments: Sequence[str]) -> None:
        """End with a sentence where an argument looks like a flag and is none."""
        for argument in arguments:
            word = argument.partition("=")[0]
            if word.startswith("-") and word not in self.flags and not _is_number(word):
                self.error(f"there is no flag {word}{similar(word, self.flags)}")


def _is_number(word: str) -> bool:
    return word[1:].replace(".", "", 1).isdecimal()


def execute(parser: Parser, do: Callable[[argparse.Namespace], int], arguments: Sequence[str] | None) -> None:
    """Run a command line; a user's mistake ends in a sentence and exit code 1, never in a traceback."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    given = sys.argv[1:] if arguments is None else arguments
    parser.refuse_unknown(given)
    try:
        code = do(parser.parse_args(given))
    except UserError as problem:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("Stopped. What is done stays.", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if code:
        sys.exit(code)


def add_datasets(parser: Parser, several: bool = True) -> None:
    """Add `-d`, which names datasets."""
    count: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.flag("-d", required=True, metavar="ID", help="id or name, such as 745 or Dataset745_OpenMind", **count)


def add_configurations(parser: Parser) -> None:
    """Add `-c` and `-np`, which say what to prepare and with how many processes."""
    parser.flag("-c", nargs="+", default=["onemmiso"], choices=CONFIGURATIONS, help="configurations; default onemmiso")
    parser.flag(
        "-np",
        nargs="+",
        type=at_least(0),
        metavar="N",
        help="processes: one number for all configurations, or one for each; default one per core, at most 8",
    )


def add_planner(parser: Parser) -> None:
    """Add `-pl`, which has one choice."""
    parser.flag("-pl", default="ExperimentPlanner", choices=_PLANNERS, help="planner; there is this one")


def add_limits(parser: Parser) -> None:
    """Add what one file may ask for; ours, for one huge or hanging file must not stop the rest."""
    parser.flag("--time_limit", type=at_least(1), default=900, metavar="SECONDS",
                help="set a file aside that takes longer; default 900, none with 0 processes")  # fmt: skip
    parser.flag("--max_voxels", type=at_least(8), metavar="N",
                help="set larger images aside; default what this machine's memory allows")  # fmt: skip


def limits_of(options: argparse.Namespace) -> Limits:
    """Return the limits that were given."""
    from viewalign.data.settings import Limits, voxels_that_fit

    return Limits(options.time_limit, options.max_voxels or voxels_that_fit())


def at_least(lowest: int) -> Callable[[str], int]:
    """Return a reader of whole numbers that refuses smaller ones."""

    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"needs {lowest} or more, not {text}")
        return int(text)

    number.__name__ = "int"
    return number


def default_processes(at_most: int = 8) -> int:
    """Return how many processes prepare data where nothing is said: `nnUNet_def_n_proc`, or one per core."""
    from viewalign.data.worker_pool import default_workers

    written = os.environ.get("nnUNet_def_n_proc", "")  # noqa: SIM112 (nnU-Net's name)
    if not written:
        return min(at_most, default_workers())
    if not written.isdecimal():
        raise UserError(f"The environment variable nnUNet_def_n_proc is {written!r}; it must be a number of processes.")
    return int(written)


def preprocessed_root(make: bool = False) -> Path:
    """Return nnssl's folder of preprocessed data; say so where another variable stands for it."""
    from viewalign.compat.nnssl.folders import REPLACEMENT, variable_folder

    if os.environ.get(REPLACEMENT):
        say(f"{REPLACEMENT} is set and stands for nnssl_preprocessed.")
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
    """Show how far a piece of work is; `verbose` prints a line for each file."""
    from viewalign.data.layout import Progress
    from viewalign.utils.console import progress_bar

    latest: list[Progress] = []

    def note() -> str:
        counts = [(latest[-1].skipped, "already there"), (latest[-1].excluded, "set aside")] if latest else []
        return ", ".join(f"{count} {what}" for count, what in counts if count)

    with progress_bar(what, note) as bar:

        def listen(progress: Progress) -> None:
            latest[:] = [progress]
            bar(progress.done, progress.total)
            if verbose:
                print(f"{progress.file}: {progress.reason or 'done'}", flush=True)

        yield listen


def tell_refused(excluded: Sequence[Exclusion]) -> None:
    """Print which files were set aside, and why."""
    from rich.console import Console

    from viewalign.utils.console import show_refused

    show_refused(Console(), [(exclusion.file, exclusion.reason) for exclusion in excluded])


def say(text: str) -> None:
    """Print a line, once where one machine runs several processes."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, flush=True)
