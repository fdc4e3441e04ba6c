"""`viewalign fetch` and `encoders`: example data, subsets of public datasets, and published weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.grammar import Result, command, settings_of
from viewalign.errors import UserError
from viewalign.utils.text import counted, size_text

if TYPE_CHECKING:
    from viewalign.weights.published import PublishedEncoder


def fetch(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="A dataset ([b]hippocampus[/b], [b]openmind[/b], [b]fomo60k[/b], [b]fomo300k[/b], hf:OWNER/NAME), or "
            "[b]weights[/b] and a name, hf:OWNER/NAME or zenodo:RECORD. Without it, the known names are listed.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Destination. Default: NAME.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Accept the licence without confirmation.")] = False,
) -> Result:
    """Download data or weights.

    The licence and the size are shown first. Interrupted downloads are resumed,
    every file is checked against its checksum, and nothing is written outside
    FOLDER. A file there that differs from the Hub's is kept as NAME.replaced.

    [b]Examples[/b]

    viewalign fetch hippocampus

    viewalign fetch openmind -o openmind pattern='OpenMind/ds001486/*'

    viewalign fetch weights openmind-mae-resenc-l

    viewalign fetch weights hf:MIC-DKFZ/ResEncL-OpenMind-MAE -o weights
    """
    from viewalign.data.settings import FetchSettings
    from viewalign.utils.settings import checked

    names = what or []
    pattern = checked(FetchSettings, settings_of(context)).pattern
    if not names:
        return _list()
    if names[0] == "weights" and len(names) == 2:
        return _fetch_weights(names[1], out, pattern, yes)
    if len(names) == 1 and names[0] != "weights":
        return _fetch_data(names[0], out, list(pattern), yes)
    raise UserError(
        "Set one NAME, or `weights` and one name. `viewalign fetch` without arguments lists the known names."
    )


def _list() -> Result:
    from viewalign.data.fetch.datasets import DATASETS
    from viewalign.weights.published import ENCODERS

    bold = partial(typer.style, bold=True)
    lines = [f"{bold(name)}  {dataset.about}. {dataset.licence}" for name, dataset in DATASETS.items()]
    lines += [f"{bold(f'weights {name}')}  {each.source}. {each.licence}" for name, each in ENCODERS.items()]
    return Result({"datasets": DATASETS, "weights": ENCODERS}, "\n".join(lines))


def _fetch_data(name: str, out: Path | None, patterns: list[str], yes: bool) -> Result:
    from viewalign.data.fetch import datasets, hub
    from viewalign.utils.progress import progress_bar

    folder = out or Path(name.removeprefix("hf:").rpartition("/")[2])
    if name.startswith("hf:"):
        selection = hub.select(name.removeprefix("hf:"), "dataset", patterns or ["*"])
        licence, cite = selection.licence, ""
    else:
        dataset = datasets.known(name)
        if isinstance(dataset, datasets.Archive):
            _consent(dataset.about, dataset.licence, dataset.cite, dataset.size, yes)
            with progress_bar("Fetching, MB") as bar:
                new = datasets.fetch_archive(dataset, folder, _in_megabytes(bar))
            return _fetched(folder, "fetched and unpacked" if new else "there already", {"new": new})
        selection = datasets.subset(dataset, patterns)
        licence, cite = dataset.licence, dataset.cite
    files = len(selection.files)
    _consent(f"{selection.repository}: {counted(files, 'file')}", licence, cite, selection.bytes, yes)
    with progress_bar("Fetching, MB") as bar:
        count = hub.fetch(selection, folder, _in_megabytes(bar))
    text = f"{counted(count, 'file')} fetched, {files - count:,} already present"
    return _fetched(folder, text, {"files": files, "fetched": count})


def _fetched(folder: Path, text: str, facts: dict[str, int]) -> Result:
    return Result(
        {"folder": folder, **facts}, f"{folder}: {text}.\nNext: {command('index', folder, '-o', 'catalogue.json')}"
    )


def _fetch_weights(name: str, out: Path | None, patterns: tuple[str, ...], yes: bool) -> Result:
    from viewalign.utils.progress import progress_bar
    from viewalign.weights.remote import ZenodoRecord, fetch_weights, find_weights

    found = find_weights(name, patterns)
    folder = out or Path("weights") / name.replace(":", "-").replace("/", "-")
    about = found.title if isinstance(found, ZenodoRecord) else found.repository
    _consent(f"{about}: {counted(len(found.files), 'file')}", found.licence, "", found.bytes, yes)
    with progress_bar("Fetching, MB") as bar:
        count = fetch_weights(found, folder, _in_megabytes(bar))
    text = f"{folder}: {counted(count, 'file')} fetched or checked."
    weights = next((file for kind in ("*.safetensors", "*.pth", "*.ckpt") for file in sorted(folder.rglob(kind))), None)
    if weights:
        text += f"\nNext: {command('pretrain', 'RECIPE', 'store', '-o', 'run', f'init={weights}')}"
    return Result({"folder": folder, "files": count, "weights": weights}, text)


def _consent(about: str, licence: str, cite: str, size: int, yes: bool) -> None:
    """Show description, licence and size, and ask for confirmation."""
    for what, text in (("What", about), ("Licence", licence), ("Cite", cite), ("Size", size_text(size))):
        if text:
            typer.echo(f"{what + ':':<9}{text}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("The licence cannot be accepted without a terminal: add --yes if you accept it.")
    typer.confirm("Download it under this licence?", abort=True)


def _in_megabytes(bar: Callable[[int, int], None]) -> Callable[[int, int], None]:
    return lambda done, total: bar(done // 10**6, max(total // 10**6, 1))


def encoders(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show one of them in full.", show_default=False)
    ] = None,
) -> Result:
    """List public 3D encoders that every command and `load_encoder` take by name.

    They are fetched when they are first used, into the cache of the Hugging Face
    Hub, or into the folder that the environment variable VIEWALIGN_CACHE names. Where
    nothing may be fetched, copy that folder and use `viewalign --offline`.

    [b]Examples[/b]

    viewalign encoders openmind-mae-resenc-l

    viewalign probe task openmind-mae-resenc-l

    viewalign fetch weights openmind-mae-resenc-l -o weights
    """
    from viewalign.weights.published import ENCODERS, published

    if name is None:
        return Result(ENCODERS, partial(_print_table, ENCODERS))
    entry = published(name)
    return Result({"name": name, **asdict(entry)}, partial(_print, entry))


def _print_table(entries: dict[str, PublishedEncoder]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "network", "method", "licence", box=None, pad_edge=False)
    for key, entry in entries.items():
        table.add_row(key, entry.network or "several", entry.method, entry.licence or "see its page")
    Console(highlight=False).print(table)


def _print(entry: PublishedEncoder) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    voxels = "each image's own" if entry.spacing is None else " x ".join(f"{mm:g}" for mm in entry.spacing) + " mm"
    rows = {
        "source": entry.source,
        "network": entry.network or "several files; name one as SOURCE/FILE",
        "method": entry.method,
        "data": entry.data,
        "voxel size": voxels,
        "preparation": entry.preparation,
        "licence": entry.licence or "see its page",
        "cite": entry.cite,
        "SHA-256": entry.sha256 or "not recorded",
        "tried": entry.tried,
    }
    for key, value in rows.items():
        console.print(f"[b]{key + ':':<13}[/b]{value}", soft_wrap=True)
