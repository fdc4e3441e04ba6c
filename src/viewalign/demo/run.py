"""Run the demo: data, pretraining, probe, export and report."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from viewalign.data.catalogue import read_catalogue, write_catalogue
from viewalign.data.settings import PrepareSettings
from viewalign.demo.cohort import NOTE, CohortSettings, make_cohort, require_extras
from viewalign.demo.probe import Holdout, hold_out, without
from viewalign.errors import UserError
from viewalign.methods.health import MEASURES
from viewalign.recipes import loading
from viewalign.utils.io import write_json
from viewalign.utils.outputs import check_folder
from viewalign.utils.progress import progress_bar
from viewalign.utils.text import counted
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import RunFolder, read_log

_log = logging.getLogger(__name__)

RECIPE = "cva-resenc-xs"
_STATE = "demo.json"


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo.

    Attributes:
        out: output folder.
        data: a folder of images, or None for the synthetic cohort.
        steps: of pretraining.
        spacing: voxel size of the store in mm; default that of the cohort, or 1 mm for other images.
        cohort: settings of the synthetic cohort.
        overrides: further `key=value` settings of the recipe.
    """

    out: Path
    data: Path | None = None
    steps: int = 240
    spacing: float | None = None
    cohort: CohortSettings = field(default_factory=CohortSettings)
    overrides: tuple[str, ...] = ()

    def preparation(self) -> PrepareSettings:
        """Return the preprocessing of images."""
        default = self.cohort.spacing if self.data is None else 1.0
        side = default if self.spacing is None else self.spacing
        return PrepareSettings(spacing=(side, side, side))

    def as_json(self) -> dict[str, Any]:
        """Return the settings that must not change when a demo is resumed."""
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
    """Result of a demo.

    Attributes:
        report: the HTML report; None if the demo was stopped.
        figures: three lines of text.
        exit_code: 0, or 128 + the number of the signal that stopped pretraining.
        fresh: false if the demo was already complete.
    """

    report: Path | None
    figures: list[str] = field(default_factory=list)
    exit_code: int = 0
    fresh: bool = True


def run_demo(settings: DemoSettings) -> DemoResult:
    """Run the demo, or resume it.

    Raises:
        UserError: missing packages or images, or a folder with other contents.
    """
    require_extras()
    finished = _open(settings)
    if finished is not None:
        return finished
    run = RunFolder(settings.out / "run")
    if settings.data is None:
        _make_cohort(settings)
    held = _index(settings)
    _prepare(settings)
    stopped = _pretrain(settings, run)
    if stopped is not None:
        return DemoResult(None, exit_code=stopped)
    note = _describe_data(settings, held)
    (run.root / "data_note.txt").write_text(note + "\n", encoding="utf-8")
    if held:
        _probe(settings, held, run)
    report = _export_and_report(run)
    result = DemoResult(report, summarise(run))
    _write_state(settings, result)
    return result


def _open(settings: DemoSettings) -> DemoResult | None:
    """Create the folder, or return the result if the demo in it is complete.

    Raises:
        UserError: the folder has other contents, or a demo with other settings.
    """
    out, path = settings.out, settings.out / _STATE
    if path.is_file():
        state = json.loads(path.read_text())
        wanted = json.loads(json.dumps(settings.as_json()))
        if state["settings"] != wanted:
            changed = next(key for key in wanted if state["settings"].get(key) != wanted[key])
            raise UserError(
                f"{out} contains a demo with {changed} = {state['settings'].get(changed)}, not {wanted[changed]}. "
                "Use the same settings to resume it, or another folder with -o."
            )
        report = RunFolder(out / "run").report
        if state["finished"] and report.is_file():
            return DemoResult(report, state["figures"], fresh=False)
        return None
    check_folder(out, "demo", False)
    out.mkdir(parents=True, exist_ok=True)
    _write_state(settings, None)
    return None


def _write_state(settings: DemoSettings, result: DemoResult | None) -> None:
    figures = [] if result is None else result.figures
    state = {"settings": settings.as_json(), "finished": result is not None, "figures": figures}
    write_json(settings.out / _STATE, state)


def _make_cohort(settings: DemoSettings) -> None:
    wanted = settings.cohort
    _log.info(
        f"1 Images: {wanted.unlabelled} without and {wanted.labelled} with labels, generated from one template brain "
        "(MNI152) by random deformations, contrasts, bias fields and noise."
    )
    with progress_bar("Generating images") as bar:
        make_cohort(settings.out, wanted, on_subject=bar)


def _index(settings: DemoSettings) -> Holdout:
    """Write the catalogue for pretraining, and return the images that are held out for the probe."""
    from viewalign.data.indexing import index_sources, write_excluded

    path = settings.out / "catalogue.json"
    images = settings.out / "images" if settings.data is None else settings.data
    if settings.data is not None:
        _log.info(f"1 Images: {images}.")
    with progress_bar("Reading headers") as bar:
        found = index_sources([str(images.absolute())], on_file=bar)
    if found.images == 0:
        first = f" First excluded file: {found.excluded[0].file}: {found.excluded[0].reason}." if found.excluded else ""
        raise UserError(f"No volumes were found in {images}.{first}")
    held = hold_out(found.collection.records(settings.out.absolute()), settings.cohort.seed)
    kept = without(found.collection, held.subjects)
    write_catalogue(kept, path)
    write_excluded(path, found.excluded)
    _log.info(
        f"2 Catalogue: {counted(found.images, 'image')} of {counted(found.subjects(), 'subject')}, "
        f"{len(held.subjects)} of which are labelled and held out for the probe; "
        f"{counted(len(found.excluded), 'file')} excluded."
    )
    if not held:
        _log.info(f"  {NO_PROBE}")
    return held


NO_PROBE = (
    "The probe is skipped: it needs label maps (x_seg.nii.gz next to x.nii.gz, or labels/ next to images/) of at least "
    "four subjects, and twice as many subjects in total."
)


def _prepare(settings: DemoSettings) -> None:
    from viewalign.data.indexing import read_excluded
    from viewalign.data.prepare import prepare_records

    catalogue, store = settings.out / "catalogue.json", settings.out / "store"
    records = read_catalogue(catalogue).records(catalogue.absolute().parent)
    preparation = settings.preparation()
    _log.info(f"3 Store: oriented, cropped, {preparation.describe()}.")
    with progress_bar("Preparing") as bar:
        report = prepare_records(
            records, store, preparation, None, read_excluded(catalogue), lambda at: bar(at.done, at.total)
        )
    if report.prepared == 0:
        raise UserError(f"None of the images could be used; see {store / 'report.json'}.")
    if report.excluded:
        _log.info(f"  {counted(len(report.excluded), 'image')} excluded; see {store / 'report.json'}.")


def recipe_settings(settings: DemoSettings) -> list[str]:
    """Return the settings that let the demo's recipe run within minutes on two cores.

    `align_first` projects 343 vectors per view instead of 4,096, in little more than half the time per step.
    """
    part = max(1, settings.steps // 6)
    return [
        f"data={json.dumps(str(settings.out / 'store'), ensure_ascii=False)}",
        f"out={json.dumps(str(settings.out / 'run'), ensure_ascii=False)}",
        f"steps={settings.steps}",
        "batch=4",
        "objectives.order=align_first",
        f"validate.every={part}",
        "validate.batches=4",
        f"checkpoint.every={part}",
        *settings.overrides,
    ]


def _pretrain(settings: DemoSettings, run: RunFolder) -> int | None:
    """Pretrain; return an exit code if a signal was received."""
    from viewalign.training.run import pretrain

    if checkpoints.steps(run.checkpoints)[-1:] == [settings.steps]:
        _log.info("4 Pretraining: already complete.")
        return None
    _log.info(f"4 Pretraining: {RECIPE}, {counted(settings.steps, 'step')}.")
    outcome = pretrain(loading.load(RECIPE, recipe_settings(settings)), resume=run.config.is_file())
    return outcome.stops_caller


def _describe_data(settings: DemoSettings, held: Holdout) -> str:
    if settings.data is None:
        return NOTE
    return "The images were provided by the user." + ("" if held else f" {NO_PROBE}")


def _probe(settings: DemoSettings, held: Holdout, run: RunFolder) -> None:
    from viewalign.demo.probe import probe_run

    if (run.root / "probe.json").is_file():
        _log.info("5 Probe: already complete.")
        return
    _log.info(
        f"5 Probe: a linear classifier on frozen features, {counted(len(held.train), 'labelled training volume')} and "
        f"{counted(len(held.test), 'test volume')}."
    )
    probe_run(run, held, settings.preparation(), settings.data is None)


def _export_and_report(run: RunFolder) -> Path:
    from viewalign.reports.run import write_report
    from viewalign.weights.export import export_run

    _log.info("6 Export and report.")
    export_run(run.root)
    return Path(write_report(run.root))


def summarise(run: RunFolder) -> list[str]:
    """Return three lines: loss, effective rank with its level, and probe."""
    rows = read_log(run.log)
    return [_loss(rows), _rank(rows), _probe_figure(run)]


def _loss(rows: list[dict[str, Any]]) -> str:
    kind = "validation" if any(row["kind"] == "validation" for row in rows) else "train"
    values = [row for row in rows if row["kind"] == kind and "loss" in row]
    if not values:
        return "Loss: not logged."
    first, last = values[0], values[-1]
    where = "on held-out subjects" if kind == "validation" else "in training"
    return f"Loss {where}: {first['loss']:.2f} at step {first['step']} → {last['loss']:.2f} at step {last['step']}"


def _rank(rows: list[dict[str, Any]]) -> str:
    values = [row["effective_rank"] for row in rows if row["kind"] == "health" and "effective_rank" in row]
    if not values:
        return "Effective rank of the features: not measured."
    level = next(measure for measure in MEASURES if measure.name == "effective_rank").level(values[-1])
    return f"Effective rank of the features: {values[-1]:.1f} ({level})"


def _probe_figure(run: RunFolder) -> str:
    path = run.root / "probe.json"
    if not path.is_file():
        return "Probe: none (no labels)."
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
