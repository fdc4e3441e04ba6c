"""Fine-tuning: `finetune` and `predict`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from viewalign.api.data import stage
from viewalign.errors import UserError, report_os_errors
from viewalign.utils.main_guard import check_main_guard
from viewalign.utils.memory import reported_out_of_memory
from viewalign.utils.outputs import check_file
from viewalign.utils.settings import checked, nested

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from viewalign.api.data import Listener
    from viewalign.evaluation.task_metrics import TaskScore
    from viewalign.finetuning.segmentation.nnunet import Machine
    from viewalign.finetuning.segmentation.record import Finetuning


@dataclass(frozen=True)
class TaskOutcome:
    """Result of a fine-tuning for classification or regression.

    Attributes:
        folder: its folder, the input of `predict`.
        score: metrics over all held-out cases (`values`, and 95 % `intervals` over subjects).
        excluded: name and reason of each unusable case.
        report: the page, `report.html`.
    """

    folder: Path
    score: TaskScore
    excluded: list[tuple[str, str]]
    report: Path


@dataclass(frozen=True)
class Predictions:
    """Predictions of a fine-tuned model.

    Attributes:
        columns: names of the values: `p_<class>`, or `value`; none for a segmentation.
        values: by case, (K,) probabilities or (1,) value in the target's unit; none for a segmentation.
        masks: by case, the mask file of a segmentation, on the voxel grid of the case's first image.
        excluded: name and reason of each unusable case.
    """

    columns: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    masks: dict[str, Path]
    excluded: list[tuple[str, str]]


@overload
def finetune(
    kind: Literal["segmentation"],
    data: str | Path,
    encoder: str | Path,
    out: str | Path,
    **settings: Any,
) -> Finetuning: ...
@overload
def finetune(
    kind: Literal["classification", "regression"],
    data: str | Path,
    encoder: str | Path,
    out: str | Path,
    **settings: Any,
) -> TaskOutcome: ...
@report_os_errors()
def finetune(
    kind: str,
    data: str | Path,
    encoder: str | Path,
    out: str | Path,
    **settings: Any,
) -> Any:
    """Fine-tune an encoder on labelled data; the same call resumes an interrupted fine-tuning.

    Args:
        kind: `segmentation` (by nnU-Net, extra `nnunet`), `classification` or `regression` (extra `tasks`).
        data: nnU-Net's number, name or folder of a dataset; else the folder of task.yaml and its manifest.
        encoder: what `load_encoder` takes; for a task also `untrained:NAME`.
        out: the fine-tuning's folder.
        **settings: those of `viewalign settings finetune KIND`.

    Returns:
        For segmentation its result (`results` has the scores; the page is `report.html`), otherwise a
        `TaskOutcome`.

    Raises:
        UserError: a missing extra, or invalid data, encoder or settings; raised before training.

    Example:
        ```python
        viewalign.finetune("segmentation", 2, "run", "heart", shots=(5, 10), epochs=50)
        tuned = viewalign.finetune("classification", "task", "run", "tuned", epochs=50)
        print(tuned.score.values)
        ```
    """
    if kind == "segmentation":
        return _segmentation(str(data), str(encoder), Path(out), settings)
    if kind in ("classification", "regression"):
        return _one_answer(kind, data, str(encoder), Path(out), settings)
    raise UserError(f"finetune supports segmentation, classification and regression, not '{kind}'.")


def _segmentation(dataset: str, encoder: str, out: Path, values: Mapping[str, Any]) -> Finetuning:
    from viewalign.finetuning.segmentation import environment

    environment.check_installed()
    check_main_guard("viewalign.finetune")
    from viewalign.finetuning.segmentation.finetune import finetune as run
    from viewalign.finetuning.segmentation.nnunet import Machine
    from viewalign.finetuning.segmentation.settings import FinetuneSettings, SegmentationOptions
    from viewalign.reports.segmentation import write_page

    wanted = checked(SegmentationOptions, {**values, "dataset": dataset, "encoder": encoder})
    kept = {name: getattr(wanted, name) for name in FinetuneSettings.model_fields}
    machine = Machine.choose(wanted.device, wanted.gpus, wanted.workers)
    done = run(FinetuneSettings.model_validate(kept), out, machine)
    write_page(done.out)
    return done


def _one_answer(kind: str, task: str | Path, encoder: str, out: Path, values: Mapping[str, Any]) -> TaskOutcome:
    from viewalign.evaluation.encoders import check_installed

    check_installed()
    from viewalign.finetuning.classification.finetune import finetune as run
    from viewalign.finetuning.classification.settings import TaskOptions, TaskTraining, load_training
    from viewalign.reports.task import write_page
    from viewalign.tasks.spec import read_spec

    wanted = checked(TaskOptions, values)
    own = {key: value for key, value in nested(values).items() if key in TaskTraining.model_fields}
    training = load_training(wanted.recipe, own)
    found = read_spec(task).kind
    if (found == "regression") != (kind == "regression"):
        other = "regression" if found == "regression" else "classification"
        raise UserError(f"{task} is a {found} task; use `viewalign finetune {other}` (in Python: finetune('{other}')).")
    cache = None if wanted.cache is None else Path(wanted.cache)
    score, excluded = run(task, encoder, out, training, cache=cache, workers=wanted.workers)
    return TaskOutcome(out, score, excluded, write_page(out))


@report_os_errors()
@reported_out_of_memory("cases were predicted", "Use device=cpu, or fewer workers if the CPU's memory ran out.")
def predict(
    model: str | Path,
    cases: str | Path,
    out: str | Path | None = None,
    *,
    on_progress: Listener | None = None,
    **settings: Any,
) -> Predictions:
    """Predict classes, values or masks of new cases, averaged over a fine-tuning's folds.

    Args:
        model: the folder of a fine-tuning or one of its folds, an exported `.onnx`, or a model folder of nnU-Net.
        cases: a manifest (CSV or JSON lines) or a task's folder; targets are not needed. For a segmentation a manifest
            or a folder of `CASE_0000.nii.gz`.
        out: CSV file to write; for a segmentation the folder of masks, which is required.
        on_progress: called after each case of a classification or regression.
        **settings: those of `viewalign settings predict`: `tta`, `device`, `workers`.

    Returns:
        The values or masks by case, and the unusable cases.

    Raises:
        UserError: no model, or unusable cases.

    Example:
        ```python
        found = viewalign.predict("tuned", "new/manifest.csv", "predictions.csv")
        print(found.columns, found.values)
        ```
    """
    from viewalign.finetuning.segmentation.nnunet import Machine
    from viewalign.finetuning.segmentation.predict import is_segmentation
    from viewalign.finetuning.settings import PredictSettings

    wanted = checked(PredictSettings, settings)
    machine = Machine.choose(wanted.device, 1, 1)
    if is_segmentation(Path(model)):
        return _masks(Path(model), Path(cases), out, machine, wanted.tta)
    from viewalign.evaluation.predictions import is_prediction_table
    from viewalign.finetuning.classification import predict as predicting

    table, listener = None if out is None else Path(out), stage(on_progress, "Predicting")
    if table is not None:
        check_file(table, "table of predictions", (".csv",), is_prediction_table)
    found = predicting.predict(Path(model), cases, table, machine.device, wanted.tta, listener, wanted.workers)
    return Predictions(found.columns, found.values, {}, found.excluded)


def _masks(model: Path, cases: Path, out: str | Path | None, machine: Machine, tta: bool) -> Predictions:
    from viewalign.finetuning.segmentation import predict as predicting

    if out is None:
        raise UserError(f"{model} is a segmentation: set the folder of its masks with `out`.")
    check_main_guard("viewalign.predict")
    trained = predicting.read_trained(model)
    given = predicting.cases_in(cases, trained)
    excluded = predicting.predict(trained, given, Path(out), machine, tta)
    failed = {name for name, _ in excluded}
    masks = {case.case: Path(out) / f"{case.case}{trained.ending}" for case in given if case.case not in failed}
    return Predictions((), {}, masks, excluded)
