"""What a fine-tuning is, what it came to, and how it is told: in sentences, as nnU-Net's commands, as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from viewalign.evaluation.results import Evaluation
from viewalign.evaluation.segmentation_metrics import Rules
from viewalign.finetuning.segmentation import environment, splits
from viewalign.finetuning.segmentation import nnunet as running
from viewalign.finetuning.segmentation import plans as nnunet
from viewalign.finetuning.segmentation import settings as asked
from viewalign.finetuning.segmentation.dataset import Dataset
from viewalign.finetuning.segmentation.environment import Folders
from viewalign.finetuning.segmentation.nnunet import Machine, Model
from viewalign.finetuning.segmentation.planning import Planned
from viewalign.finetuning.segmentation.schedule import Schedule
from viewalign.finetuning.segmentation.settings import FinetuneSettings
from viewalign.utils.io import atomic_write
from viewalign.weights import sources

RESULTS, LOG, EVALUATIONS, PREDICTIONS = "results.json", "nnunet.log", "evaluation", "predictions"
Bar = Callable[[int, int], None]


class Teller(Protocol):
    """How a fine-tuning tells a person what it does."""

    def say(self, text: str) -> None:
        """Write a line that stays."""

    def bar(self, what: str) -> AbstractContextManager[Bar]:
        """Show a long piece of work."""


class SilentTeller:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Leave a line out."""

    def bar(self, what: str) -> AbstractContextManager[Bar]:  # noqa: ARG002
        """Show nothing."""
        return nullcontext(lambda done, total: None)  # noqa: ARG005


@dataclass(frozen=True)
class EvaluatedFold:
    """Predictions of one split or folder, and what they came to.

    Attributes:
        name: of the split, or "test images".
        fold: nnU-Net's number of it; None where it is no fold.
        predictions, references, images: folders.
        evaluation: None where there are no references.
        folder: where the evaluation is written.
    """

    name: str
    fold: int | str | None
    predictions: Path
    references: Path | None
    images: Path
    evaluation: Evaluation | None
    folder: Path | None


@dataclass
class Finetuning:
    """A fine-tuning as it goes on; the steps below fill it in.

    Attributes:
        settings: what was asked for.
        out: its folder.
        machine: what is computed on.
        folders: nnU-Net's.
        dataset: the labelled data.
        source: the encoder.
        schedule: of the training.
        rules: how predictions are judged.
        judged: what came out.
    """

    settings: FinetuneSettings
    out: Path
    machine: Machine
    folders: Folders
    dataset: Dataset
    source: sources.Source
    schedule: Schedule
    rules: Rules
    judged: list[EvaluatedFold] = field(default_factory=list)


def summary(run: Finetuning, planned: Planned, model: Model) -> str:
    """Say in a sentence what will be trained, and where nnU-Net puts it."""
    configuration, schedule = planned.configuration, run.schedule
    sizes = ["×".join(f"{n:g}" for n in configuration[key]) for key in ("patch_size", "spacing")]
    start = "from scratch" if run.settings.from_scratch else f"from {run.settings.encoder}"
    return (
        f"Plan {planned.name}: patch {sizes[0]}, batch {configuration['batch_size']}, {sizes[1]} mm, "
        f"{schedule.epochs} epochs of {schedule.iterations} steps {start}, on {run.machine.device}.\n"
        f"nnU-Net's results: {model.folder}"
    )


def write_commands(run: Finetuning, planned: Planned, numbers: Sequence[tuple[splits.Split | None, int | str]]) -> None:
    """Write nnU-Net's own commands for what is done here."""
    lines = [environment.as_shell(environment.variables(run.folders))]
    common = f"-p {planned.name} -tr {running.TRAINER}"
    device = "" if run.machine.device == "cuda" else f" -device {run.machine.device}"
    lines += [
        f"nnUNetv2_train {run.dataset.id} {nnunet.CONFIGURATION} {number} {common}{device}" for _, number in numbers
    ]
    folds = " ".join(str(number) for _, number in numbers)
    lines.append(
        f"nnUNetv2_predict -d {run.dataset.id} -i IMAGES -o OUT -c {nnunet.CONFIGURATION} {common} -f {folds}{device}"
    )
    (run.out / "commands.sh").write_text("\n".join(lines) + "\n")


def slug(name: str) -> str:
    """Return a name as a folder's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def write_results(run: Finetuning, planned: Planned) -> None:
    """Write what came out so far, whole or not at all."""
    rows = []
    for one in run.judged:
        row: dict[str, Any] = {"name": one.name, "fold": one.fold, "predictions": str(one.predictions)}
        row |= {"images": str(one.images), "references": str(one.references)}
        if one.evaluation is not None and one.folder is not None:
            row["evaluation"] = str(one.folder.relative_to(run.out))
            row |= {metric: one.evaluation.summary(metric).mean for metric in ("dice", "nsd")}
        rows.append(row)
    tree = {
        "dataset": run.dataset.name,
        "labels": {name: list(values) for name, values in run.dataset.labels.items()},
        "plans": planned.name,
        "trainer": running.TRAINER,
        "model": str(Model(run.dataset.name, planned.name, run.folders).folder),
        "encoder": None if run.settings.from_scratch else asked.encoder_name(run.settings.encoder),
        "patch": planned.configuration["patch_size"],
        "spacing": planned.configuration["spacing"],
        "schedule": run.schedule.as_json(),
        "results": rows,
    }
    with atomic_write(run.out / RESULTS) as partial:
        partial.write_text(json.dumps(tree, indent=1) + "\n")
