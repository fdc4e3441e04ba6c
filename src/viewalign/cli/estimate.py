"""`viewalign estimate`: disk, memory and hours, before anything is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viewalign.cli.prepare import (
    CataloguePath,
    InterpolationName,
    Normalise,
    NumberTypeName,
    Percentiles,
    Spacing,
    View,
    Window,
    Workers,
    catalogue_of,
    choices_of,
    settings_of,
)

if TYPE_CHECKING:
    from viewalign.config import Recipe
    from viewalign.data.inputs import Catalogue
    from viewalign.data.settings import PrepareSettings
    from viewalign.training.throughput import Card
    from viewalign.utils.precision import Precision

_EFFICIENCY = 0.75  # of bare convolutions; 155 of 200 GFLOP/s in the released code's steps
_SIMULATED = (
    "tensors of one step counted on a simulated GPU (what CUDA and cuDNN need beside, taken as 1.5 GB, is not measured)"
)
_TRIED_SECONDS = 8.0  # a step that takes less is tried instead of computed


@dataclass(frozen=True)
class Line:
    """One line of the estimate: what, how much in words, and where it comes from."""

    what: str
    value: str
    source: str


def estimate(
    catalogue: CataloguePath,
    recipe: Annotated[str, typer.Argument(help="The pretraining recipe (see `viewalign recipes`).")] = "cva-resenc-l",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe, as for pretrain.")
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also for this GPU, such as a100 or rtx4090; repeatable.")
    ] = None,
    spacing: Spacing = "1,1,1",
    interpolation: InterpolationName = "linear",
    normalise: Normalise = "zscore",
    percentiles: Percentiles = "0.5,99.5",
    window: Window = None,
    dtype: NumberTypeName = "float32",
    view: View = None,
    workers: Workers = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.json", help="Write it as JSON too.")] = None,
) -> None:
    """Say what preparation and pretraining will cost, before anything is written.

    Headers tell the sizes; a few images are prepared in memory, and arithmetic
    is timed for some seconds, and a step's memory is counted on a simulated GPU:
    about a minute in all.

    [b]Examples[/b]

    viewalign estimate catalogue.json

    viewalign estimate catalogue.json cva-primus-m batch=8 --gpu a100 --gpu h100

    viewalign estimate ~/scans cva-resenc-xs --spacing 1.5 --dtype int16
    """
    from viewalign.recipes.loading import load
    from viewalign.training.throughput import card

    chosen = load(recipe, overrides or [], say=partial(typer.echo, err=True))
    cards = [card(name) for name in gpu or ["rtx4090", "a100", "h100"]]
    found = catalogue_of(catalogue)
    settings = settings_of(
        spacing, choices_of(interpolation, normalise, percentiles, window, dtype, view), found.records
    )
    lines, facts = _preparation(found, settings, workers, chosen.views.size)
    more, training = _pretraining(chosen, cards)
    _print(lines, more, settings.describe(), recipe)
    if out is not None:
        out.write_text(json.dumps({"preparation": facts, "pretraining": training}, indent=1) + "\n")
        typer.echo(f"Written to {out}.")


def _preparation(
    found: Catalogue, settings: PrepareSettings, workers: int | None, view: tuple[int, int, int]
) -> tuple[list[Line], dict[str, Any]]:
    from viewalign.data import estimate as estimating
    from viewalign.data.settings import worker_bytes
    from viewalign.data.worker_pool import default_workers
    from viewalign.utils.console import duration, progress_bar
    from viewalign.utils.memory import memory_bytes

    with progress_bar("Reading headers") as report:
        survey = estimating.survey(found.records, settings, report)
    trial = estimating.try_some(survey.sizes, settings)
    count = workers or default_workers()
    facts: dict[str, Any] = {
        "images": survey.images,
        "headers_read": survey.looked_at,
        "prepared_in_memory": trial.images,
        "disk_bytes": round(estimating.disk_bytes(survey, trial)),
        "source_bytes": round(survey.factor * sum(size.bytes for size in survey.sizes)),
        "worker_memory_bytes": worker_bytes(survey.largest),
        "workers": count,
        "seconds": estimating.core_seconds(survey, trial) / count,
        "excluded": round(estimating.refused_in_all(survey, trial, found.excluded)),
        "reasons": [reason for reason, _ in survey.excluded.most_common(5)] + sorted(set(trial.excluded))[:3],
        "smaller_than_view": round(survey.smaller_than(view)),
    }
    headers = "all headers" if survey.factor == 1 else f"{survey.looked_at:,} headers at random"
    tried = f"{trial.images} images prepared in memory" if trial.images else "no image could be prepared"
    memory = f"{_bytes(facts['worker_memory_bytes'])} a worker, {_bytes(memory_bytes())} here"
    sides = "×".join(map(str, view))
    reasons = [Line("", reason, "") for reason in facts["reasons"]]
    return [
        Line("Images", f"{survey.images:,}, {_bytes(facts['source_bytes'])}", headers),
        Line("Store", _bytes(facts["disk_bytes"]), tried),
        Line("Preparation", f"{duration(facts['seconds'])} with {count} workers", tried),
        Line("Memory, at most", memory, "600 MB + 6 × the largest image as float32"),
        Line("Refused, about", f"{facts['excluded']:,}", f"{headers}, {tried}"),
        *reasons,
        Line(f"Smaller than {sides}", f"{facts['smaller_than_view']:,} or more; padded", f"{headers}, before cropping"),
    ], facts


def _pretraining(recipe: Recipe, cards: list[Card]) -> tuple[list[Line], dict[str, Any]]:
    import torch

    from viewalign.training.cost import step_flops
    from viewalign.training.simulation import simulated_peak
    from viewalign.utils.precision import choose_device, settle

    flops, device = step_flops(recipe), choose_device()
    precision = settle(recipe.runtime.precision, device).precision
    where = torch.cuda.get_device_name() if device == "cuda" else "this machine's CPU"
    step, source = _step_here(recipe, flops, precision)
    peaks: dict[str, int] = {precision: simulated_peak(recipe, precision)}
    facts: dict[str, Any] = {
        "steps": recipe.steps,
        "flops_per_step": flops,
        "memory_source": _SIMULATED,
        "here": {
            "name": where,
            "precision": precision,
            "seconds": recipe.steps * step,
            "source": source,
            "memory_bytes": peaks[precision],
        },
        "gpus": {},
    }
    counted = "counted on the recipe's networks" + (
        "" if recipe.method == "cva" else ", the method's own heads left out"
    )
    lines = [
        Line("Step", f"{flops / 1e12:.2f} TFLOP, {recipe.steps:,} of them", counted),
        Line(f"On {where}", _time(facts["here"]["seconds"]), source),
        Line("", f"{_bytes(peaks[precision])} of memory ({precision})", _SIMULATED),
    ]
    for gpu in cards:
        more, facts["gpus"][gpu.name] = _on_gpu(recipe, gpu, flops, peaks)
        lines += more
    return lines, facts


def _on_gpu(recipe: Recipe, gpu: Card, flops: float, peaks: dict[str, int]) -> tuple[list[Line], dict[str, Any]]:
    """Return the lines and facts of one GPU; `peaks` holds the memory of each precision that was simulated."""
    from viewalign.training.simulation import RESERVED, simulated_peak
    from viewalign.training.throughput import rate_of

    precision = gpu.half if recipe.runtime.precision == "auto" else recipe.runtime.precision
    if precision not in peaks:
        peaks[precision] = simulated_peak(recipe, precision)
    rate, source = rate_of(gpu, recipe.network.name)
    seconds, fits = recipe.steps * flops / rate, peaks[precision] + RESERVED <= gpu.memory * 1e9
    words = f"{_bytes(peaks[precision])} of memory ({precision})"
    if not fits:
        words += "; too much, see runtime.recompute and runtime.accumulate"
    facts = {
        "seconds": seconds,
        "precision": precision,
        "memory_bytes": peaks[precision],
        "fits": fits,
        "source": source,
    }
    return [Line(f"On one {gpu.name}", _time(seconds), source), Line("", words, _SIMULATED)], facts


def _step_here(recipe: Recipe, flops: float, precision: Precision) -> tuple[float, str]:
    """Return the seconds of a step on this machine and how they are known."""
    from viewalign.training.throughput import measured_flops, measured_step

    bare = measured_flops(precision)
    computed = flops / (_EFFICIENCY * bare)
    if computed < _TRIED_SECONDS:
        return measured_step(recipe, precision), f"steps of this recipe timed, {precision}"
    words = f"{bare / 1e12:.2f} TFLOP/s {precision} of bare convolutions timed, of which {_EFFICIENCY:.0%} are expected"
    return computed, words


def _time(seconds: float) -> str:
    from viewalign.utils.console import duration

    days = f" ({seconds / 86400:.1f} days)" if seconds > 2 * 86400 else ""
    return f"{duration(seconds)}{days}"


def _print(preparation: list[Line], pretraining: list[Line], settings: str, recipe: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    notes: list[str] = []
    for title, lines in ((f"Preparation: {settings}", preparation), (f"Pretraining: {recipe}", pretraining)):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for line in lines:
            if line.source and line.source not in notes:
                notes.append(line.source)
            mark = f"[{notes.index(line.source) + 1}]" if line.source else ""
            table.add_row(line.what, line.value, mark.replace("[", r"\["))
        console.print(table)
        console.print()
    for number, note in enumerate(notes):
        console.print(f"[{number + 1}] {note}.", highlight=False, markup=False)


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
