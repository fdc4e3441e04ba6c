"""Studies: `study`, `gain` and `compare_methods`."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import StoppedError, UserError, report_os_errors
from viewalign.utils import outputs
from viewalign.utils.settings import checked

if TYPE_CHECKING:
    from viewalign.studies.cells import Grid
    from viewalign.studies.settings import CompareMethodsSettings, Study

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyPlan:
    """A checked study that has not run yet.

    Attributes:
        study: its settings.
        folder: of its cells and tables.
        minutes: start no further cell after this time; None for no limit.
        shard: the part of the cells that this process runs, `i/n`.
        command: the command line that runs it again, without `shard`; empty for `gain` and `compare_methods`.
    """

    study: Study
    folder: Path
    minutes: float | None = None
    shard: str = "1/1"
    command: tuple[str, ...] = ()

    def cells(self, only: str | None = None) -> dict[str, str]:
        """Return the name and state of each cell; `only` is a pattern of names. Nothing is written."""
        chosen = [cell for grid in self._grids(prepare=False) for cell in self._chosen(grid, only)]
        return {cell.name: str(cell.record.get("status", "to do")) for cell in chosen}

    def run(self, only: str | None = None) -> int:
        """Run all unfinished cells, then write the table and the page.

        Args:
            only: a pattern of cell names; cells that these depend on are run too.

        Returns:
            0 if all cells are finished, 3 if some failed, 4 if some are left.

        Raises:
            StoppedError: a signal stopped a pretraining, whose state is saved; a `KeyboardInterrupt`.
        """
        from viewalign.reports.study import write_page
        from viewalign.studies import table
        from viewalign.studies.run import run_study
        from viewalign.utils.locks import locked

        began, code = time.monotonic(), 0

        def has_time() -> bool:
            return self.minutes is None or time.monotonic() - began < 60 * self.minutes

        grids = []
        for grid in self._grids():
            grids.append(grid)
            chosen = self._chosen(grid, only)
            if not chosen:
                _log.info("shard=%s has none of the cells; other parts run them.", self.shard)
            code = code or run_study(grid, has_time, chosen)
        with locked(grid.out / ".table.lock", math.inf):  # other parts of the study write the same
            summary = self.summarise(grids)
            _log.info("%s", table.write(grid, summary))
            _log.info("Tables: %s/table.md, .csv, .json\nPage: %s", grid.out, write_page(grid.out))
        if code > 128:
            raise StoppedError(f"{grid.out} is saved; running it again continues.", None, code)
        if summary is not None:
            _log.info("Learning rate: %s.\n%s", summary["about"]["Learning rate"], summary["headline"])
        return code

    def summarise(self, grids: Sequence[Grid]) -> dict[str, Any] | None:  # noqa: ARG002
        """Return sentences for the top of the page; None for a plain study."""
        return None

    def _grids(self, prepare: bool = True) -> Iterator[Grid]:
        """Yield the grids to run, each after the one before was run; the table is that of the last."""
        from viewalign.studies.cells import Grid

        yield Grid(self.study, self.folder, prepare)

    def write_slurm(self, script: str | Path, only: str | None = None) -> Path:
        """Write a SLURM array script that runs the study in parts; return the folder of its logs.

        Args:
            script: the file to write.
            only: a pattern of cell names, as of `run`.

        Raises:
            UserError: the plan is of `gain` or `compare_methods`, which run in one job, or of a `shard`, or another
                file is there, or the study cannot run, since data are missing or a setting is invalid.
        """
        from viewalign.studies.cells import slurm_script

        if not self.command:
            raise UserError(
                "Only a plan of `study` can write a job script. Set shard=i/n in each job of `compare-methods`, and "
                "run `gain` in one job."
            )
        if self.shard != "1/1":
            raise UserError(f"shard={self.shard}: a job script sets shard for each of its tasks; leave it out.")
        script = Path(script)
        outputs.check_file(script, "job script of a study", ours=outputs.contains("-m viewalign"))
        self.cells(only)  # an error of the study is reported now, not by each job
        logs = self.folder.absolute() / "slurm"
        logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "viewalign", *self.command, "-o", str(self.folder.absolute())]
        command += [] if only is None else ["--only", only]
        script.write_text(slurm_script(self.study, command, str(logs / "%A_%a.log")))
        return logs

    def _chosen(self, grid: Grid, only: str | None) -> list[Any]:
        from viewalign.studies import cells

        chosen = grid.cells if only is None else cells.only(grid.cells, only)
        return chosen if self.shard == "1/1" else cells.share(grid.study, chosen, self.shard)  # may be empty


@report_os_errors()
def study(
    study: str | Path, data: str | Path | None = None, out: str | Path | None = None, **settings: Any
) -> StudyPlan:
    """Check a study: a resumable grid of arms × seeds × evaluations.

    Args:
        study: the name of a shipped study, or a YAML file.
        data: the folder of its data (`data.root`).
        out: the study's folder; default its name.
        **settings: those of `viewalign settings study`, such as `seeds=8`.

    Returns:
        The plan; its `run()` runs all unfinished cells.

    Raises:
        UserError: an unknown study or setting, or an invalid value.

    Example:
        ```python
        plan = viewalign.study("geometry-laptop", "hippocampus", "geometry", minutes=60)
        print(len(plan.cells()))
        ```
    """
    from viewalign.studies import loading
    from viewalign.studies.settings import ShareSettings
    from viewalign.utils.settings import merged, nested

    changes = nested(settings)
    own: dict[str, Any] = {key: changes.pop(key) for key in ("minutes", "shard") if key in changes}
    share = checked(ShareSettings, own)
    if data is not None:
        changes = merged({"data": {"root": str(Path(data).absolute())}}, changes)
    chosen = loading.load(str(study), changes)
    named = str(Path(study).absolute()) if Path(study).is_file() else str(study)
    limit = () if share.minutes is None else (f"minutes={share.minutes:g}",)
    command = ("study", named, *loading.flatten(changes), *limit)
    return StudyPlan(chosen, _study_folder(out or chosen.name), share.minutes, share.shard, command)


@dataclass(frozen=True)
class GainPlan(StudyPlan):
    """A checked `gain` that has not run yet.

    Attributes:
        rates: the study by which learning rates are chosen first; None for one rate.
    """

    rates: Study | None = None

    def estimate(self) -> float:
        """Return the expected seconds of all unfinished cells; a training step is timed for it."""
        from viewalign.studies.gain_cost import estimate_seconds

        return estimate_seconds(list(self._grids()))

    def result(self) -> dict[str, Any]:
        """Return `headline`, `level`, `cost`, `about`, `comparisons` of finished cells, and the `rates` tried."""
        return self.summarise(list(self._grids()))

    def summarise(self, grids: Sequence[Grid]) -> dict[str, Any]:
        """Return sentences for the top of the page."""
        from viewalign.studies.gain_rates import choose_rates
        from viewalign.studies.gain_results import compare_arms, described, summary

        *before, grid = grids
        cells = {cell.folder: cell for each in grids for cell in each.cells}.values()
        seconds = sum(float(cell.record.get("seconds", 0.0)) for cell in cells)
        choices = [choice for each in before for choice in choose_rates(each)]
        comparisons = compare_arms(grid) if choices or not before else []  # others have not the chosen rates
        found = summary(comparisons, seconds, all(cell.done for cell in cells))
        return {
            **found,
            "about": described(grid, choices if before else None),
            "rates": [one.plain() for one in choices],
        }

    def _grids(self, prepare: bool = True) -> Iterator[Grid]:
        """Yield the grid by which rates are chosen, then the comparison at these rates."""
        from viewalign.studies.cells import Grid
        from viewalign.studies.gain_rates import choose_rates, with_rates

        study = self.study
        if self.rates is not None:
            grid = Grid(self.rates, self.folder, prepare)
            yield grid
            study = with_rates(study, choose_rates(grid))
        yield Grid(study, self.folder, prepare)

    def _chosen(self, grid: Grid, only: str | None) -> list[Any]:
        return super()._chosen(grid, None if grid.study is self.rates else only)  # every cell needs its rate


@report_os_errors()
def gain(store: str | Path, labelled: str | Path, out: str | Path = "gain", **settings: Any) -> GainPlan:
    """Plan the measurement of what a pretraining gains: fine-tuned against training from scratch, few and all labels.

    Args:
        store: a prepared store to pretrain on.
        labelled: a dataset in nnU-Net's raw layout (folder, name or number), or the folder of a task.
        out: the folder of all results.
        **settings: those of `viewalign settings gain`, such as `steps=1000`, or `encoder="run"` to evaluate a finished
            run.

    Returns:
        The plan; `estimate()` returns the expected seconds, `run()` runs all unfinished cells and writes the page.

    Raises:
        UserError: no usable data, too few cases, or an invalid setting.

    Example:
        ```python
        plan = viewalign.gain("store", labelled="nnUNet_raw/Dataset004_Hippocampus", out="gain", seeds=3)
        print(len(plan.cells()))
        ```
    """
    from viewalign.studies.gain import gain_study
    from viewalign.studies.gain_rates import rates_study
    from viewalign.studies.settings import GainSettings
    from viewalign.utils.settings import nested

    wanted = checked(GainSettings, nested(settings))
    folder = _study_folder(out)
    chosen = gain_study(Path(store), str(labelled), folder, wanted)
    rates = rates_study(chosen, folder, wanted.rates) if wanted.rates else None
    return GainPlan(chosen, folder, wanted.minutes, rates=rates)


@report_os_errors()
def compare_methods(
    store: str | Path,
    images: str | Path,
    labels: str | Path,
    out: str | Path | None = None,
    **settings: Any,
) -> StudyPlan:
    """Plan a study that compares pretraining methods, with all other settings equal.

    Args:
        store: prepared images to pretrain on.
        images: folder of images to evaluate on.
        labels: folder of their label maps, of the same names.
        out: the study's folder; default `methods-NETWORK`.
        **settings: those of `viewalign settings compare-methods`; `learn` and `test` are required.

    Returns:
        The plan; its `run()` runs all unfinished cells.

    Raises:
        UserError: no recipe for a method, or an invalid setting.

    Example:
        ```python
        cases = {"learn": "hippocampus_0*", "test": "hippocampus_2*"}
        plan = viewalign.compare_methods("store", "hippocampus/images", "hippocampus/labels", methods=["mae"], **cases)
        print(plan.folder)
        ```
    """
    from viewalign.studies.loading import comparison, finetuning_evaluations
    from viewalign.studies.settings import CompareMethodsSettings

    wanted = checked(CompareMethodsSettings, settings)
    places = {"images": str(Path(images).absolute()), "labels": str(Path(labels).absolute())}
    labelled = {**places, "learn": list(wanted.learn), "test": list(wanted.test)}
    evaluations = {"voxels": {"kind": "voxel_probe", "shots": wanted.shots}, "places": {"kind": "retrieval"}}
    chosen = comparison(
        wanted.network,
        {"store": str(Path(store).absolute()), "labelled": labelled},
        wanted.methods,
        wanted.common,
        steps=wanted.steps,
        seeds=wanted.seeds,
        threads=wanted.threads,
        evaluations=evaluations | finetuning_evaluations(wanted.network, _tuned(wanted), wanted.finetune),
    )
    return StudyPlan(chosen, _study_folder(out or chosen.name), wanted.minutes, wanted.shard)


def _study_folder(out: str | Path) -> Path:
    """Return the folder of a study, which must be new, empty or that of a study."""
    from viewalign.tasks.copies import CACHE

    folder = Path(out)
    planned = {"data", "slurm", "task", ".table.lock", CACHE} | {path.name for path in folder.glob("task-*")}
    outputs.check_folder(folder, "study", (folder / "cells").is_dir(), planned)
    return folder


def _tuned(wanted: CompareMethodsSettings) -> tuple[int, ...]:
    """Return the numbers of fine-tuning cases; by default those of the probe, if nnU-Net is installed."""
    from viewalign.finetuning.segmentation import environment

    if wanted.finetune_shots is not None:
        return () if wanted.finetune_shots == "none" else wanted.finetune_shots
    try:
        environment.check_installed()
    except UserError as lacking:
        _log.warning("Encoders are evaluated frozen only. %s", lacking)
        return ()
    return (wanted.shots,)
