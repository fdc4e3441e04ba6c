"""`viewalign fetch`: example data, subsets of public datasets, and published weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.grammar import settings_of
from viewalign.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def fetch(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME | weights NAME",
            help="A dataset ([b]hippocampus[/b], [b]openmind[/b], [b]fomo60k[/b], hf:OWNER/NAME), or [b]weights[/b] "
            "and a name, hf:OWNER/NAME or zenodo:RECORD. Without it, the known names are listed.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Destination. Default: NAME.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the licence without confirmation.")] = False,
) -> None:
    """Download data or weights.

    The licence and the size are shown first. Interrupted downloads are resumed,
    every file is checked against its checksum, and nothing is written outside
    FOLDER.

    [b]Examples[/b]

    viewalign fetch hippocampus

    viewalign fetch openmind -o openmind pattern='OpenMind/ds001486/*'

    viewalign fetch weights openmind-mae-resenc-l

    viewalign fetch weights hf:MIC-DKFZ/ResEncL-OpenMind-MAE -o weights
    """
    from rich.console import Console

    from viewalign.data.settings import FetchSettings
    from viewalign.utils.settings import checked

    console, names = Console(), what or []
    pattern = checked(FetchSettings, settings_of(context)).pattern
    if not names:
        _list(console)
    elif names[0] == "weights" and len(names) == 2:
        _fetch_weights(console, names[1], out, pattern, yes)
    elif len(names) == 1 and names[0] != "weights":
        _fetch_data(console, names[0], out, list(pattern), yes)
    else:
        raise UserError(
            "Set one NAME, or `weights` and one name. `viewalign fetch` without arguments lists the known names."
        )


def _list(console: Console) -> None:
    from viewalign.data.fetch.datasets import DATASETS
    from viewalign.weights.published import ENCODERS

    for name, dataset in DATASETS.items():
        console.print(f"[b]{name}[/b]  {dataset.about}. {dataset.licence}", highlight=False)
    for name, encoder in ENCODERS.items():
        console.print(f"[b]weights {name}[/b]  {encoder.source}. {encoder.licence}", highlight=False)


def _fetch_data(console: Console, name: str, out: Path | None, patterns: list[str], yes: bool) -> None:
    from viewalign.data.fetch import datasets, hub
    from viewalign.utils.progress import progress_bar

    folder = out or Path(name.removeprefix("hf:").rpartition("/")[2])
    if name.startswith("hf:"):
        selection = hub.select(name.removeprefix("hf:"), "dataset", patterns or ["*"])
        _consent(
            console,
            f"{selection.repository}: {len(selection.files)} files",
            selection.licence,
            "",
            selection.bytes,
            yes,
        )
    else:
        dataset = datasets.known(name)
        if isinstance(dataset, datasets.Archive):
            _consent(console, dataset.about, dataset.licence, dataset.cite, dataset.size, yes)
            with progress_bar("Fetching, MB") as bar:
                new = datasets.fetch_archive(dataset, folder, _in_megabytes(bar))
            _end(console, folder, "fetched and unpacked" if new else "there already")
            return
        selection = datasets.subset(dataset, patterns)
        about = f"{dataset.repository}: {len(selection.files)} files"
        _consent(console, about, dataset.licence, dataset.cite, selection.bytes, yes)
    with progress_bar("Fetching, MB") as bar:
        count = hub.fetch(selection, folder, _in_megabytes(bar))
    _end(console, folder, f"{count} files fetched, {len(selection.files) - count} already present")


def _fetch_weights(console: Console, name: str, out: Path | None, patterns: tuple[str, ...], yes: bool) -> None:
    from viewalign.utils.progress import progress_bar
    from viewalign.weights.remote import ZenodoRecord, fetch_weights, find_weights

    found = find_weights(name, patterns)
    folder = out or Path("weights") / name.replace(":", "-").replace("/", "-")
    about = found.title if isinstance(found, ZenodoRecord) else found.repository
    _consent(console, f"{about}: {len(found.files)} files", found.licence, "", found.bytes, yes)
    with progress_bar("Fetching, MB") as bar:
        count = fetch_weights(found, folder, _in_megabytes(bar))
    console.print(f"{folder}: {count} files fetched or checked.", highlight=False, markup=False, soft_wrap=True)
    weights = next((file for kind in ("*.safetensors", "*.pth", "*.ckpt") for file in sorted(folder.rglob(kind))), None)
    if weights:
        command = f"viewalign pretrain RECIPE store -o run init={weights}"
        console.print(f"Next: {command}", highlight=False, markup=False, soft_wrap=True)


def _consent(console: Console, about: str, licence: str, cite: str, size: int, yes: bool) -> None:
    """Show description, licence and size, and ask for confirmation."""
    from viewalign.data.summary import size_text

    for what, text in (("What", about), ("Licence", licence), ("Cite", cite), ("Size", size_text(size))):
        if text:
            console.print(f"{what + ':':<9}{text}", highlight=False, markup=False, soft_wrap=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("The licence cannot be accepted without a terminal: add --yes if you accept it.")
    typer.confirm("Download it under this licence?", abort=True)


def _in_megabytes(bar: Callable[[int, int], None]) -> Callable[[int, int], None]:
    return lambda done, total: bar(done // 10**6, max(total // 10**6, 1))


def _end(console: Console, folder: Path, done: str) -> None:
    console.print(f"{folder}: {done}.", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Next: viewalign index {folder} -o catalogue.json", highlight=False, markup=False, soft_wrap=True)
