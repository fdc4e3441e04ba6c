"""Estimates of the cost of preparation and pretraining, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from viewalign.config import Recipe
from viewalign.data.settings import PrepareOptions
from viewalign.utils.settings import Names, checked, nested
from viewalign.utils.text import counted, size_text

if TYPE_CHECKING:
    from viewalign.data.inputs import Catalogue
    from viewalign.data.settings import PrepareSettings
    from viewalign.training.throughput import Card
    from viewalign.utils.precision import Precision

_EFFICIENCY = 0.75  # of bare convolutions; 155 of 200 GFLOP/s in the released code's steps
_SIMULATED = "tensors of one step counted on a simulated GPU (plus an assumed 1.5 GB for CUDA and cuDNN)"
_TRIED_SECONDS = 8.0  # a step that takes less is timed instead of computed


@dataclass(frozen=True)
class Line:
    """One line of the estimate: quantity, value in words, and basis."""

    what: str
    value: str
    source: str


class EstimateSettings(Recipe):
    """What is estimated."""

    gpu: Names = Field(("rtx4090", "a100", "h100"), description="GPUs to estimate for, besides this machine.")
    prepare: PrepareOptions = PrepareOptions()


@dataclass(frozen=True)
class Estimate:
    """An estimate of the cost.

    Attributes:
        settings: of the preparation, in words.
        preparation, pretraining: lines to print.
        facts: all figures as plain data.
    """

    settings: str
    preparation: list[Line]
    pretraining: list[Line]
    facts: dict[str, Any]


def estimate(source: Path, recipe: str, values: Mapping[str, Any], report: Callable[..., Any]) -> Estimate:
    """Estimate disk, memory and hours.

    Args:
        source: a catalogue or a folder of images.
        recipe: a recipe's name or file.
        values: settings of `EstimateSettings`.
        report: called with the current work, the number done, and the total.

    Raises:
        UserError: invalid settings, no images, or a GPU of unknown speed.
    """
    from viewalign.data.exclusions import ExclusionList
    from viewalign.data.inputs import catalogue_of, stored_settings, without
    from viewalign.recipes.loading import load
    from viewalign.training.throughput import card

    rest = nested(values)
    own: dict[str, Any] = {name: rest.pop(name) for name in ("gpu", "prepare") if name in rest}
    chosen = load(recipe, settings=rest, warn=True)
    wanted = checked(EstimateSettings, own)
    cards = [card(name) for name in wanted.gpu]
    preparing = wanted.prepare
    found = catalogue_of(source, preparing.frames != "exclude", lambda *counts: report("Reading headers", *counts))
    lists = ExclusionList.read(map(Path, preparing.exclude))
    found = without(found, lists, preparing.channels, preparing.frames == "volumes")
    settings = stored_settings(preparing, found.records, report)
    lines, preparation = _preparation(found, settings, preparing.workers, chosen.views.patch_size, report)
    more, pretraining = _pretraining(chosen, cards)
    facts = {"preparation": preparation, "pretraining": pretraining}
    return Estimate(settings.describe(), lines, more, facts)


def _preparation(
    found: Catalogue,
    settings: PrepareSettings,
    workers: int | None,
    view: tuple[int, int, int],
    report: Callable[..., Any],
) -> tuple[list[Line], dict[str, Any]]:
    from viewalign.data import estimate as estimating
    from viewalign.data.channels import stacked
    from viewalign.data.settings import worker_bytes
    from viewalign.data.worker_pool import default_workers
    from viewalign.utils.console import duration
    from viewalign.utils.memory import memory_bytes

    records, unused = stacked(found.records, settings.channels)
    survey = estimating.survey(records, settings, lambda *counts: report("Reading headers", *counts))
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
        "excluded": round(estimating.excluded_in_all(survey, trial, [*found.excluded, *unused])),
        "reasons": [reason for reason, _ in survey.excluded.most_common(5)] + sorted(set(trial.excluded))[:3],
        "smaller_than_view": round(survey.smaller_than(view)),
    }
    headers = "all headers" if survey.factor == 1 else f"{counted(survey.looked_at, 'header')} at random"
    tried = f"{counted(trial.images, 'image')} prepared in memory" if trial.images else "no image could be prepared"
    memory = f"{size_text(facts['worker_memory_bytes'])} per worker, {size_text(memory_bytes())} on this machine"
    sides = "×".join(map(str, view))
    reasons = [Line("", reason, "") for reason in facts["reasons"]]
    return [
        Line("Images", f"{survey.images:,}, {size_text(facts['source_bytes'])}", headers),
        Line("Store", size_text(facts["disk_bytes"]), tried),
        Line("Preparation", f"{duration(facts['seconds'])} with {counted(count, 'worker')}", tried),
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
    step, source = seconds_per_step(recipe, flops, precision)
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
    basis = "counted on the recipe's networks" + ("" if recipe.method == "cva" else ", without the method's own heads")
    lines = [
        Line("Step", f"{flops / 1e12:.2f} TFLOP, {counted(recipe.steps, 'step')}", basis),
        Line(f"On {where}", _time(facts["here"]["seconds"]), source),
        Line("", f"{size_text(peaks[precision])} of memory ({precision})", _SIMULATED),
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
    words = f"{size_text(peaks[precision])} of memory ({precision})"
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


def seconds_per_step(
    recipe: Recipe, flops: float, precision: Precision, device: str | None = None, volumes: int | None = None
) -> tuple[float, str]:
    """Return the seconds of a step on a device of this machine, by default the fastest, and their basis.

    Args:
        recipe: with its whole batch.
        flops: floating-point operations of the step.
        precision, device: of the machine.
        volumes: of the step, if it is a part of the batch.
    """
    from viewalign.training.throughput import measured_flops, measured_step

    bare = measured_flops(precision, device=device)
    computed = flops / (_EFFICIENCY * bare)
    if computed < _TRIED_SECONDS:
        return measured_step(
            recipe, precision, device=device, volumes=volumes
        ), f"steps of this recipe timed, {precision}"
    words = f"{bare / 1e12:.2f} TFLOP/s {precision} of bare convolutions timed, of which {_EFFICIENCY:.0%} are expected"
    return computed, words


def _time(seconds: float) -> str:
    from viewalign.utils.console import duration

    days = f" ({seconds / 86400:.1f} days)" if seconds > 2 * 86400 else ""
    return f"{duration(seconds)}{days}"
