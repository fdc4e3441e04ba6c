"""The three figures that the demo ends with, read from the run's own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from viewalign.data.catalogue import read_catalogue, write_catalogue
from viewalign.data.settings import PrepareSettings
from viewalign.demo.cohort import NOTE, CohortSettings, make_cohort, require_extras
from viewalign.demo.probe import Holdout, hold_out, without
from viewalign.errors import UserError
from viewalign.methods.health import MEASURES
from viewalign.recipes import loading
from viewalign.utils.io import atomic_write
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import RunFolder, read_log


def summarise(run: RunFolder) -> list[str]:
    """Return three lines: loss, effective rank with its verdict, and probe."""
    rows = read_log(run.log)
    return [_loss(rows), _rank(rows), _probe_figure(run)]


def _loss(rows: list[dict[str, Any]]) -> str:
    kind = "validation" if any(row["kind"] == "validation" for row in rows) else "train"
    seen = [row for row in rows if row["kind"] == kind and "loss" in row]
    if not seen:
        return "Loss: not logged."
    first, last = seen[0], seen[-1]
    whose = "on held-out subjects" if kind == "validation" else "in training"
    return f"Loss {whose}: {first['loss']:.2f} at step {first['step']} → {last['loss']:.2f} at step {last['step']}"


def _rank(rows: list[dict[str, Any]]) -> str:
    seen = [row["effective_rank"] for row in rows if row["kind"] == "health" and "effective_rank" in row]
    if not seen:
        return "Effective rank of the features: not measured."
    level = next(measure for measure in MEASURES if measure.name == "effective_rank").level(seen[-1])
    return f"Effective rank of the features: {seen[-1]:.1f} ({level})"


def _probe_figure(run: RunFolder) -> str:
    path = run.root / "probe.json"
    if not path.is_file():
        return "Probe: none, for there are no labels."
    result = json.loads(path.read_text(encoding="utf-8"))
    return (
        f"Probe (mean Dice): pretrained {_with_interval(result, 'pretrained')}, "
        f"untrained {_with_interval(result, 'untrained')}, "
        f"intensities alone {result['baselines']['intensity']:.3f}"
    )


def _with_interval(result: dict[str, Any], name: str) -> str:
    interval = result["interval"].get(name)
    text = f"{result[name]:.3f}"
    return text if interval is None else f"{text} ({interval[0]:.3f} to {interval[1]:.3f})"


RECIPE = "cva-resenc-xs"
_STATE = "demo.json"


class Teller(Protocol):
    """Tells whoever watches how far the demo is."""

    def say(self, text: str) -> None:
        """Write a line that stays."""

    def bar(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show a long piece of work; the context is a function of (done, total)."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        out: its folder.
        data: a folder of images, or None for the synthetic cohort.
        steps: of pretraining.
        spacing: voxel size of the store in mm; None takes the cohort's, or 1 mm for given images.
        cohort: what is made where no images are given.
        overrides: further `key=value` settings of the recipe.
    """

    out: Path
    data: Path | None = None
    steps: int = 240
    spacing: float | None = None
    cohort: CohortSettings = field(default_factory=CohortSettings)
    overrides: tuple[str, ...] = ()

    def preparation(self) -> PrepareSettings:
        """Return how images are prepared."""
        usual = self.cohort.spacing if self.data is None else 1.0
        side = usual if self.spacing is None else self.spacing
        return PrepareSettings(spacing=(side, side, side))

    def as_json(self) -> dict[str, Any]:
        """Return what must be the same for a demo to be continued."""
        data = None if self.data is None else str(self.data.absolute())
        return {
            "data": data,
            "steps": self.steps,
            "spacing": self.preparation().spacing,
            "cohort": asdict(self.cohort) if self.data is None else None,
            "overrides": list(self.overrides),
        }


@dataclass(frozen=True)
class DemoResult:
    """How a demo ended.

    Attributes:
        report: the page; None where the demo was stopped before.
        figures: three lines.
        exit_code: 0, or 128 + the number of the signal that stopped pretraining.
        fresh: whether anything was done, and the result not only read.
    """

    report: Path | None
    figures: list[str] = field(default_factory=list)
    exit_code: int = 0
    fresh: bool = True


def run_demo(settings: DemoSettings, teller: Teller) -> DemoResult:
    """Run the demo, or what is missing of it.

    Raises:
        UserError: extras are missing, no images, or a folder that holds something else.
    """
    require_extras()
    finished = _claim(settings)
    if finished is not None:
        return finished
    run = RunFolder(settings.out / "run")
    if settings.data is None:
        _make_cohort(settings, teller)
    held = _index(settings, teller)
    _prepare(settings, teller)
    stopped = _pretrain(settings, run, teller)
    if stopped is not None:
        return DemoResult(None, exit_code=stopped)
    note = _describe_data(settings, held)
    (run.root / "data_note.txt").write_text(note + "\n", encoding="utf-8")
    if held:
        _probe(settings, held, run, teller)
    report = _export_and_report(run, teller)
    result = DemoResult(report, summarise(run))
    _write_state(settings, result)
    return result


def _claim(settings: DemoSettings) -> DemoResult | None:
    """Make the folder ours; return the result of a demo that is complete there.

    Raises:
        UserError: the folder holds something else, or a demo with other settings.
    """
    out, path = settings.out, settings.out / _STATE
    if path.is_file():
        state = json.loads(path.read_text())
        wanted = json.loads(json.dumps(settings.as_json()))
        if state["settings"] != wanted:
            changed = next(key for key in wanted if state["settings"].get(key) != wanted[key])
            raise UserError(
                f"{out} holds a demo with {changed} = {state['settings'].get(changed)}, not {wanted[changed]}. "
                "Use the same settings to resume it, or another folder with -o."
            )
        report = RunFolder(out / "run").report
        if state["finished"] and report.is_file():
            return DemoResult(report, state["figures"], fresh=False)
        return None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and holds no demo. Name another folder with -o.")
    out.mkdir(parents=True, exist_ok=True)
    _write_state(settings, None)
    return None


def _write_state(settings: DemoSettings, result: DemoResult | None) -> None:
    state = {
        "settings": settings.as_json(),
        "finished": result is not None,
        "figures": [] if result is None else result.figures,
    }
    with atomic_write(settings.out / _STATE) as partial:
        partial.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_cohort(settings: DemoSettings, teller: Teller) -> None:
    wanted = settings.cohort
    teller.say(
        f"1 Images: {wanted.unlabelled} without labels and {wanted.labelled} with labels, made from one template brain "
        "(MNI152) by random deformations, contrasts, bias fields and noise."
    )
    with teller.bar("Making images") as bar:
        make_cohort(settings.out, wanted, on_subject=bar)


def _index(settings: DemoSettings, teller: Teller) -> Holdout:
    """Write the catalogue of what pretraining may see, and return what is kept for the probe."""
    from viewalign.data.indexing import index_sources, write_refused

    path = settings.out / "catalogue.json"
    images = settings.out / "images" if settings.data is None else settings.data
    if settings.data is not None:
        teller.say(f"1 Images: those in {images}.")
    with teller.bar("Reading headers") as bar:
        found = index_sources([str(images.absolute())], on_file=bar)
    if found.images == 0:
        first = (
            f" The first that was set aside: {found.excluded[0].file}: {found.excluded[0].reason}."
            if found.excluded
            else ""
        )
        raise UserError(f"No volumes were found in {images}.{first}")
    held = hold_out(found.collection.records(settings.out.absolute()), settings.cohort.seed)
    kept = without(found.collection, held.subjects)
    write_catalogue(kept, path)
    write_refused(path, found.excluded)
    subjects = found.subjects()
    teller.say(
        f"2 Catalogue: {found.images} images of {subjects} subjects, {len(held.subjects)} of which are labelled and "
        f"kept for the probe; {len(found.excluded)} set aside."
    )
    if not held:
        teller.say(f"  {NO_PROBE}")
    return held


NO_PROBE = (
    "There will be no probe: it needs label maps (x_seg.nii.gz beside x.nii.gz, or labels/ beside images/) of at least "
    "four subjects, and twice as many subjects in all."
)


def _prepare(settings: DemoSettings, teller: Teller) -> None:
    from viewalign.data.indexing import read_refused
    from viewalign.data.prepare import prepare_records

    catalogue, store = settings.out / "catalogue.json", settings.out / "store"
    records = list(read_catalogue(catalogue).records(catalogue.absolute().parent))
    preparation = settings.preparation()
    teller.say(f"3 Store: oriented, cropped, {preparation.describe()}.")
    with teller.bar("Preparing") as bar:
        report = prepare_records(
            records, store, preparation, None, read_refused(catalogue), lambda at: bar(at.done, at.total)
        )
    if report.prepared == 0:
        raise UserError(f"None of the images could be used. The reasons are in {store / 'report.json'}.")
    if report.excluded:
        teller.say(f"  {len(report.excluded)} images were set aside; the reasons are in {store / 'report.json'}.")


def recipe_settings(settings: DemoSettings) -> list[str]:
    """Return the demo's changes to its recipe, which are there to keep it within minutes on two cores.

    Aligning first projects 343 vectors a view instead of 4,096: a step takes little more than half the time.
    """
    part = max(1, settings.steps // 6)
    return [
        f"data={json.dumps(str(settings.out / 'store'))}",
        f"out={json.dumps(str(settings.out / 'run'))}",
        f"steps={settings.steps}",
        "batch=4",
        "objectives.order=align_first",
        f"validate.every={part}",
        "validate.batches=4",
        f"checkpoint.every={part}",
        *settings.overrides,
    ]


def _pretrain(settings: DemoSettings, run: RunFolder, teller: Teller) -> int | None:
    """Train to the end; return an exit code if a signal came."""
    from viewalign.training.run import pretrain

    if checkpoints.steps(run.checkpoints)[-1:] == [settings.steps]:
        teller.say("4 Pretraining: done before.")
        return None
    teller.say(f"4 Pretraining: {RECIPE}, {settings.steps} steps.")
    outcome = pretrain(loading.load(RECIPE, recipe_settings(settings)), resume=run.config.is_file())
    return outcome.stops_caller


def _describe_data(settings: DemoSettings, held: Holdout) -> str:
    if settings.data is None:
        return NOTE
    return "The images were given by the user." + ("" if held else f" {NO_PROBE}")


def _probe(settings: DemoSettings, held: Holdout, run: RunFolder, teller: Teller) -> None:
    from viewalign.demo.probe import probe_run

    if (run.root / "probe.json").is_file():
        teller.say("5 Probe: done before.")
        return
    teller.say(
        f"5 Probe: a linear classifier on frozen features, {len(held.train)} labelled volumes to fit it, "
        f"{len(held.test)} others to judge it."
    )
    probe_run(run, held, settings.preparation(), settings.data is None, teller.say)


def _export_and_report(run: RunFolder, teller: Teller) -> Path:
    from viewalign.reports.run import write_report
    from viewalign.weights.export import export_run

    teller.say("6 Export and report.")
    export_run(run.root)
    return Path(write_report(run.root))
