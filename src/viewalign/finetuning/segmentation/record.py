"""The state and results of a fine-tuning, as text, as nnU-Net's commands and as JSON."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viewalign.evaluation.results import Evaluation
from viewalign.evaluation.segmentation_metrics import Rules
from viewalign.finetuning.segmentation import environment
from viewalign.finetuning.segmentation.dataset import Dataset
from viewalign.finetuning.segmentation.environment import Folders
from viewalign.finetuning.segmentation.nnunet import TRAINER, Machine, Model
from viewalign.finetuning.segmentation.planning import Planned
from viewalign.finetuning.segmentation.plans import CONFIGURATION
from viewalign.finetuning.segmentation.schedule import Schedule
from viewalign.finetuning.segmentation.settings import FinetuneSettings, encoder_name
from viewalign.utils.io import write_json, write_text
from viewalign.weights import sources

RESULTS, LOG, EVALUATIONS, PREDICTIONS = "results.json", "nnunet.log", "evaluation", "predictions"


@dataclass(frozen=True)
class EvaluatedFold:
    """Predictions of one split or folder with their evaluation.

    Attributes:
        name: of the split, or "test images".
        fold: nnU-Net's fold number, or None.
        predictions, references, images: folders.
        evaluation: scores.
        folder: of the written evaluation.
    """

    name: str
    fold: int | str | None
    predictions: Path
    references: Path
    images: Path
    evaluation: Evaluation
    folder: Path


@dataclass
class Finetuning:
    """A fine-tuning for segmentation.

    Attributes:
        settings: of the fine-tuning.
        out: the output folder.
        machine: devices and processes.
        folders: of nnU-Net.
        dataset: the labelled data.
        source: the encoder.
        schedule: of the training.
        rules: how predictions are scored.
        results: evaluated folds and predictions, filled during the run.
    """

    settings: FinetuneSettings
    out: Path
    machine: Machine
    folders: Folders
    dataset: Dataset
    source: sources.Source
    schedule: Schedule
    rules: Rules
    results: list[EvaluatedFold] = field(default_factory=list)


def summary(run: Finetuning, planned: Planned, model: Model) -> str:
    """Describe what is trained and where nnU-Net writes its results."""
    configuration, schedule = planned.configuration, run.schedule
    patch, spacing = ("×".join(f"{n:g}" for n in configuration[key]) for key in ("patch_size", "spacing"))
    start = "from scratch" if run.settings.from_scratch else f"from {run.settings.encoder}"
    return (
        f"Plan {planned.name}: patch {patch}, batch {configuration['batch_size']}, {spacing} mm, "
        f"{schedule.epochs} epochs of {schedule.iterations} steps {start}, on {run.machine.device}.\n"
        f"nnU-Net's results: {model.folder}"
    )


def write_commands(run: Finetuning, planned: Planned, numbers: Sequence[int | str]) -> None:
    """Write the equivalent commands of nnU-Net to `commands.sh`, from preprocessing to prediction.

    The images to predict are those of `predict`, else `imagesTs` of the dataset, else its training images.
    """
    device = "" if run.machine.device == "cuda" else f" -device {run.machine.device}"
    common, folds = f"-p {planned.name} -tr {TRAINER}", " ".join(str(number) for number in numbers)
    dataset, root, wanted = run.dataset.id, run.dataset.root, run.settings.predict
    test = root / "imagesTs"
    images = Path(wanted) if wanted not in (None, "imagesTs") else test if test.is_dir() else run.dataset.images
    places = f"-i {shlex.quote(str(images.absolute()))} -o {shlex.quote(str((run.out / PREDICTIONS).absolute()))}"
    preprocess = f"nnUNetv2_preprocess -d {dataset} -plans_name {planned.name} -c {CONFIGURATION}"
    lines = [
        environment.as_shell(environment.variables(run.folders)),
        f"{preprocess} -np {run.machine.processes}",
        *(f"nnUNetv2_train {dataset} {CONFIGURATION} {number} {common}{device}" for number in numbers),
        f"nnUNetv2_predict -d {dataset} {places} -c {CONFIGURATION} {common} -f {folds}{device}",
    ]
    write_text(run.out / "commands.sh", "\n".join(lines) + "\n")


def slug(name: str) -> str:
    """Convert a name to a folder name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def write_results(run: Finetuning, planned: Planned) -> None:
    """Write the results so far to `results.json`."""
    rows: list[dict[str, Any]] = [
        {
            "name": result.name,
            "fold": result.fold,
            "predictions": _place(result.predictions, run.out),
            "images": _place(result.images, run.out),
            "references": _place(result.references, run.out),
            "evaluation": str(result.folder.relative_to(run.out)),
            "dice": result.evaluation.summary("dice").mean,
            "nsd": result.evaluation.summary("nsd").mean,
        }
        for result in run.results
    ]
    tree = {
        "dataset": run.dataset.name,
        "labels": {name: list(values) for name, values in run.dataset.labels.items()},
        "plans": planned.name,
        "trainer": TRAINER,
        "model": _place(Model(run.dataset.name, planned.name, run.folders).folder, run.out),
        "encoder": None if run.settings.from_scratch else encoder_name(run.settings.encoder),
        "patch": planned.configuration["patch_size"],
        "spacing": planned.configuration["spacing"],
        "schedule": run.schedule.as_json(),
        "results": rows,
    }
    write_json(run.out / RESULTS, tree)


def _place(folder: Path, out: Path) -> str:
    """Return a folder relative to the results if it is inside them: they may be moved, or copied elsewhere."""
    folder, out = folder.absolute(), out.absolute()
    return folder.relative_to(out).as_posix() if folder.is_relative_to(out) else str(folder)
