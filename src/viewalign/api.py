"""The command line's steps as Python calls, with the same settings, checks and sentences."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from viewalign.errors import UserError, report_disk_full
from viewalign.utils.memory import reported_out_of_memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from viewalign.config import Recipe
    from viewalign.data.prepare import PrepareReport
    from viewalign.data.store import Store
    from viewalign.evaluation.embedding import Embeddings
    from viewalign.evaluation.linear_probe import LinearProbeScore
    from viewalign.finetuning.segmentation.nnunet import Machine
    from viewalign.finetuning.segmentation.record import Finetuning, Teller
    from viewalign.tasks.manifest import TaskCase
    from viewalign.tasks.spec import TaskSpec
    from viewalign.training.run import RunResult

Listener = Callable[[int, int], None]
"""Takes how many are done and how many there are."""


@dataclass(frozen=True)
class TaskOutcome:
    """What a fine-tuning for classification or regression came to.

    Attributes:
        folder: its folder; `predict` takes it.
        score: figures over all held-out cases (`values`, and 95 % `intervals` over subjects).
        refused: name and reason of each case that could not be used.
        report: the page, `report.html`.
    """

    folder: Path
    score: LinearProbeScore
    excluded: list[tuple[str, str]]
    report: Path


@dataclass(frozen=True)
class Predictions:
    """What a fine-tuned model says of cases.

    Attributes:
        columns: what the numbers are: `p_<class>` each, or `value`; none for a segmentation.
        values: by case, (K,) probabilities or (1,) value in the target's own unit; none for a segmentation.
        masks: by case, the file of a segmentation's mask, on the voxels of the case's first image.
        refused: name and reason of each case that could not be used.
    """

    columns: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    masks: dict[str, Path]
    excluded: list[tuple[str, str]]


@report_disk_full()
def prepare(
    source: str | Path,
    out: str | Path,
    *,
    spacing: float | Sequence[float] | Literal["median"] | None = 1.0,
    workers: int | None = None,
    on_progress: Listener | None = None,
    **settings: Any,
) -> PrepareReport:
    """Orient, crop, resample and normalise images into a store; what is there already is left alone.

    Args:
        source: a folder of images (NIfTI, NRRD, MetaImage, DICOM) or a catalogue of `viewalign index`.
        out: the store's folder.
        spacing: voxel size in mm, one number or (D, H, W); `"median"` of the images, or None to keep each one's own.
        workers: processes; default one a core, 0 works in this process.
        on_progress: called after each image.
        **settings: of `viewalign.data.settings.PrepareSettings`: normalise, window, dtype, view, frames …

    Returns:
        Counts, and `refused`: file and reason of each image that was set aside.

    Raises:
        UserError: settings that do not fit, no images, none that can be used, or a folder that holds something else.

    Example:
        ```python
        report = viewalign.prepare("scans", "store", spacing=1.5)
        for file in report.excluded:
            print(file.file, file.reason)
        ```
    """
    from viewalign.data.inputs import catalogue_of, median_spacing, settings_from
    from viewalign.data.prepare import prepare_records
    from viewalign.data.settings import Limits, voxels_that_fit

    size = [spacing] * 3 if isinstance(spacing, int | float) else spacing
    asked = settings_from({**settings, "spacing": None if size == "median" else size})
    found = catalogue_of(Path(source), asked.frames != "refuse")
    if size == "median":
        asked = asked.model_copy(update={"spacing": median_spacing(found.records)})
    report = prepare_records(
        found.records,
        Path(out),
        asked,
        workers,
        found.excluded,
        on_progress=None if on_progress is None else lambda step: on_progress(step.done, step.total),
        quality=found.quality,
        limits=Limits(max_voxels=voxels_that_fit()),
    )
    if report.prepared == 0:
        reasons = Path(out) / "report.json"
        raise UserError(f"None of the {len(report.excluded)} images could be used. The reasons are in {reasons}.")
    return report


@report_disk_full()
def pretrain(
    recipe: str | Path | Recipe,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    resume: Literal["auto"] | bool = False,
    store: Store | None = None,
    **settings: Any,
) -> RunResult:
    """Pretrain an encoder without labels, to the end or to the next Ctrl-C or SIGTERM.

    Args:
        recipe: a recipe's name (`viewalign recipes`), a YAML file, or a `Recipe`.
        data: a prepared store.
        out: the run's folder.
        resume: whether to go on from the newest checkpoint in `out`.
        store: opened already, in place of `data`.
        **settings: any of the recipe's, in groups: `steps=500, optim={"lr": 1e-3}`.

    Returns:
        How the run ended: `folder.root`, `step` of `steps`, `finished`.

    Raises:
        UserError: something about recipe, settings, store or folder does not fit; said before any work begins.

    Example:
        ```python
        run = viewalign.pretrain("cva-resenc-xs", data="store", out="run", steps=500, views={"size": (32, 32, 32)})
        print(run.finished, run.folder.root)
        ```
    """
    from viewalign.config import Recipe
    from viewalign.recipes.loading import change, load
    from viewalign.training import run

    places = {name: str(value) for name, value in (("data", data), ("out", out)) if value is not None}
    asked: Mapping[str, Any] = {**settings, **places}
    if not isinstance(recipe, Recipe):
        recipe = load(str(recipe), settings=asked, say=warnings.warn)
    elif asked:
        recipe = change(recipe, asked)
    return run.pretrain(recipe, resume, store)


@report_disk_full()
def embed(
    encoder: str | Path,
    cases: str | Path | Sequence[str | Path],
    *,
    size: int | Sequence[int] | None = None,
    spacing: Literal["pretraining"] | float | Sequence[float] | None = "pretraining",
    pool: Literal["multistage", "average", "pretrained"] = "multistage",
    maps: bool = False,
    device: str = "auto",
    on_progress: Listener | None = None,
    workers: int | None = None,
) -> Embeddings:
    """Describe each case by one vector; nothing is random.

    Args:
        encoder: a run, an export, an nnssl checkpoint, `hf:OWNER/NAME`, or `untrained:NAME`.
        cases: image files of one channel (named by their file names), or a task's folder or manifest.
        size: field of view (D, H, W) in voxels, or one number; default the views of pretraining.
        spacing: voxel size in mm, (D, H, W) or one number; as in pretraining, or None for each image's own.
        pool: how feature maps become a vector.
        maps: whether to keep the coarsest map (C, d, h, w) of each case.
        device: `auto`, `cuda` or `cpu`.
        on_progress: called after each case.
        workers: processes that prepare cases; default one a core, and this one alone for few cases.

    Returns:
        `cases` (N names), `features` (N, C) float32, perhaps `maps`, and `refused`: name and reason.

    Raises:
        UserError: no encoder there, an option that does not fit, or not one case that can be used.

    Example:
        ```python
        found = viewalign.embed("run", ["a.nii.gz", "b.nii.gz"], size=96)
        print(found.cases, found.features.shape)
        ```
    """
    from viewalign.evaluation.embedding import embed as embed_cases
    from viewalign.evaluation.encoders import encoder_and_preprocessor

    spec, given = _cases_of(cases)
    voxels = None if size is None else _joined(size)
    millimetres = "none" if spacing is None else _joined(spacing)
    backbone, preprocessor = encoder_and_preprocessor(str(encoder), spec, voxels, millimetres, pool)
    return embed_cases(backbone, preprocessor, given, pool, maps, device, on_progress, workers=workers)


def _joined(value: str | float | Sequence[float]) -> str:
    """Write one number or several as a command line has them."""
    return str(value) if isinstance(value, str | int | float) else ",".join(str(one) for one in value)


def _cases_of(cases: str | Path | Sequence[str | Path]) -> tuple[TaskSpec, list[TaskCase]]:
    from viewalign.tasks.manifest import TaskCase, read_manifest
    from viewalign.tasks.spec import TaskSpec, read_spec

    if isinstance(cases, str | Path):
        spec = read_spec(cases)
        return spec, read_manifest(cases, spec, targets=False)
    if not cases:
        raise UserError("There are no cases to embed: the list is empty.")
    spec = TaskSpec.model_validate({"name": "images", "kind": "regression", "channels": [{"name": "image"}]})
    return spec, [TaskCase(str(one), str(one), {"image": Path(one)}) for one in cases]


@overload
def finetune(
    kind: Literal["segmentation"], data: str | Path, encoder: str | Path, out: str | Path, **settings: Any
) -> Finetuning: ...
@overload
def finetune(
    kind: Literal["classification", "regression"],
    data: str | Path,
    encoder: str | Path,
    out: str | Path,
    **settings: Any,
) -> TaskOutcome: ...
@report_disk_full()
def finetune(kind: str, data: str | Path, encoder: str | Path, out: str | Path, **settings: Any) -> Any:
    """Carry an encoder to a task with labels; the same call goes on where it was stopped.

    Args:
        kind: `segmentation` (by nnU-Net, extra `nnunet`), `classification` or `regression` (extra `tasks`).
        data: nnU-Net's number, name or folder of a dataset; else the folder of task.yaml and its manifest.
        encoder: a run, an export, an nnssl checkpoint, `hf:OWNER/NAME`; for a task also `untrained:NAME`.
        out: the fine-tuning's folder.
        **settings: as `viewalign finetune KIND --help` has them. Segmentation: those of `FinetuneSettings`, and
            `device`, `gpus`, `processes`. Else: those of `TaskTraining`, `recipe`, `say` (takes lines of progress),
            `cache` (a folder that keeps prepared cases) and `workers` (processes that prepare them).

    Returns:
        For segmentation everything that came out (`judged` has the scores; the page is `report.html`), else a
        `TaskOutcome`.

    Raises:
        UserError: a missing extra, or anything of data, encoder or settings that does not fit; said before training.

    Example:
        ```python
        viewalign.finetune("segmentation", 4, "run", "liver", shots=(5, 10), epochs=50)
        tuned = viewalign.finetune("classification", "task", "run", "tuned", epochs=50)
        print(tuned.score.values)
        ```
    """
    if kind == "segmentation":
        return _segmentation(str(data), str(encoder), Path(out), settings)
    if kind in ("classification", "regression"):
        return _one_answer(kind, data, str(encoder), Path(out), settings)
    raise UserError(f"finetune takes segmentation, classification or regression, not '{kind}'.")


def _segmentation(dataset: str, encoder: str, out: Path, settings: Mapping[str, Any]) -> Finetuning:
    from viewalign.finetuning.segmentation import environment

    environment.check_installed()
    from viewalign.finetuning.segmentation.finetune import finetune as run
    from viewalign.finetuning.segmentation.nnunet import Machine
    from viewalign.finetuning.segmentation.record import SilentTeller
    from viewalign.finetuning.segmentation.settings import check
    from viewalign.reports.segmentation import write_page

    rest = dict(settings)
    machine = Machine.choose(rest.pop("device", "auto"), rest.pop("gpus", 1), rest.pop("processes", None))
    teller: Teller = rest.pop("teller", None) or SilentTeller()
    done = run(check({**rest, "dataset": dataset, "encoder": encoder}), out, machine, teller)
    write_page(done.out)
    return done


def _one_answer(kind: str, task: str | Path, encoder: str, out: Path, settings: Mapping[str, Any]) -> TaskOutcome:
    from viewalign.evaluation.encoders import check_installed

    check_installed()
    from viewalign.finetuning.classification.finetune import finetune as run
    from viewalign.finetuning.classification.settings import load_training
    from viewalign.reports.task import write_page
    from viewalign.tasks.spec import read_spec

    found = read_spec(task).kind
    if (found == "regression") != (kind == "regression"):
        other = "regression" if found == "regression" else "classification"
        raise UserError(f"{task} is a {found} task; use `viewalign finetune {other}` (in Python: finetune('{other}')).")
    rest = dict(settings)
    say, recipe = rest.pop("say", None) or (lambda _: None), rest.pop("recipe", None)
    overrides = rest.pop("overrides", ())
    cache, workers = rest.pop("cache", None), rest.pop("workers", None)
    training = load_training(recipe, overrides, rest)
    kept = None if cache is None else Path(cache)
    score, excluded = run(task, encoder, out, training, say, cache=kept, workers=workers)
    return TaskOutcome(out, score, excluded, write_page(out))


@report_disk_full()
@reported_out_of_memory("cases were predicted", "Take device=cpu, or fewer workers where the CPU's memory ran out.")
def predict(
    model: str | Path,
    cases: str | Path,
    out: str | Path | None = None,
    *,
    flips: bool = False,
    device: str = "auto",
    on_progress: Listener | None = None,
    workers: int | None = None,
) -> Predictions:
    """Predict classes, values or masks of new cases, averaged over a fine-tuning's folds.

    Args:
        model: the folder of a fine-tuning or one of its folds, an exported `.onnx`, or nnU-Net's folder of a model.
        cases: a manifest (CSV or JSON lines) or a task's folder; targets are not needed. For a segmentation a manifest
            or a folder of `CASE_0000.nii.gz`.
        out: a CSV to write; for a segmentation the folder of masks, which must be given.
        flips: whether to average over mirrored images too.
        device: `auto`, `cpu` or `cuda`; an `.onnx` runs on the CPU.
        on_progress: called after each case of a classification or regression.
        workers: processes that prepare its cases; default one a core, and this one alone for few cases.

    Returns:
        The numbers or masks by case, and the cases that could not be used.

    Raises:
        UserError: no model there, or cases that cannot be used.

    Example:
        ```python
        said = viewalign.predict("tuned", "new/manifest.csv", "predictions.csv")
        print(said.columns, said.values)
        ```
    """
    from viewalign.finetuning.segmentation.nnunet import Machine
    from viewalign.finetuning.segmentation.predict import is_segmentation

    machine = Machine.choose(device, 1, 1)
    if is_segmentation(Path(model)):
        return _masks(Path(model), Path(cases), out, machine, flips)
    from viewalign.finetuning.classification import predict as predicting

    table = None if out is None else Path(out)
    said = predicting.predict(Path(model), cases, table, machine.device, flips, on_progress, workers)
    return Predictions(said.columns, said.values, {}, said.excluded)


def _masks(model: Path, cases: Path, out: str | Path | None, machine: Machine, flips: bool) -> Predictions:
    from viewalign.finetuning.segmentation import predict as predicting

    if out is None:
        raise UserError(f"{model} is a segmentation: say with `out` which folder its masks go to.")
    trained = predicting.read_trained(model)
    given = predicting.cases_in(cases, trained)
    excluded = predicting.predict(trained, given, Path(out), machine, flips)
    failed = {name for name, _ in excluded}
    masks = {case.case: Path(out) / f"{case.case}{trained.ending}" for case in given if case.case not in failed}
    return Predictions((), {}, masks, excluded)
