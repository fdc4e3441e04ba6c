"""From a dataset and an encoder to a plan and preprocessed cases, by stock nnU-Net with our choices in the plan."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import encoders
from viewalign.finetuning.segmentation import plans as nnunet
from viewalign.finetuning.segmentation.dataset import Dataset
from viewalign.finetuning.segmentation.environment import Folders
from viewalign.finetuning.segmentation.schedule import Schedule
from viewalign.utils.io import atomic_write
from viewalign.weights import sources

BASE_PLANNER, BASE_PLANS = "nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"
_DONE = "{}.complete.json"
"""Written beside a folder of preprocessed cases when all are there; an interrupted run leaves none. Inside the folder
nnU-Net would take it for a case."""


@dataclass(frozen=True)
class Planned:
    """A plan in its place.

    Attributes:
        name: of the plan, for `-p`.
        plan: its contents.
        folder: `nnUNet_preprocessed/DatasetXXX_NAME`.
    """

    name: str
    plan: dict[str, Any]
    folder: Path

    @property
    def configuration(self) -> dict[str, Any]:
        """The one configuration."""
        found: dict[str, Any] = self.plan["configurations"][nnunet.CONFIGURATION]
        return found


def base_plan(dataset: Dataset, folders: Folders, processes: int, asked: str | None = None) -> dict[str, Any]:
    """Return nnU-Net's own plan for a dataset, made where there is none.

    Raises:
        UserError: a plan was asked for by name and is not there, or nnU-Net cannot plan the dataset.
    """
    folder = folders.preprocessed / dataset.name
    file = folder / f"{asked or BASE_PLANS}.json"
    if asked is not None and not file.is_file():
        raise UserError(f"There is no plan {file}; leave base_plans out to have one made.")
    if not file.is_file():
        _make_base_plan(dataset, folder, processes)
    plan: dict[str, Any] = json.loads(file.read_text())
    return plan


def _make_base_plan(dataset: Dataset, folder: Path, processes: int) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    if not (folder / "dataset_fingerprint.json").is_file():
        api.extract_fingerprints([dataset.id], num_processes=processes, show_progress_bar=False)
    api.plan_experiments([dataset.id], BASE_PLANNER)


def write_plan(
    dataset: Dataset,
    folders: Folders,
    base: dict[str, Any],
    source: sources.Source,
    choices: nnunet.Choices,
    schedule: Schedule,
    min_share: float,
    from_scratch: bool,
) -> Planned:
    """Write our plan, with the encoder beside it; the same plan without its encoder is the baseline from scratch.

    Raises:
        UserError: an encoder without a plan, or choices that do not fit; nothing is written then.
    """
    folder = folders.preprocessed / dataset.name
    plan = nnunet.make_plan(base, source.plan, choices, source.file, dataset.channels)
    told = encoders.store(folder, source, Path(source.file).stem, min_share)
    block = {"version": 1, "encoder": None if from_scratch else told, "schedule": schedule.as_json()}
    plan[nnunet.BLOCK] = block
    if not from_scratch:
        plan["pretrain_info"] = nnunet.pretrain_info(source.plan, str(folder / told["file"]), Path(told["file"]).stem)
    return Planned(choices.name, write(folder, plan), folder)


def write(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Write a plan where nnU-Net looks for it, whole or not at all, and return it."""
    file = folder / f"{plan['plans_name']}.json"
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(plan, indent=2))
    return plan


def preprocess(dataset: Dataset, planned: Planned, processes: int) -> bool:
    """Preprocess all cases as the plan says, unless that was done; return whether there was anything to do."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    target = planned.folder / str(planned.configuration["data_identifier"])
    names = [case.name for case in dataset.cases]
    if _is_complete(target, names) and _has_references(planned.folder, dataset):
        return False
    _done(target).unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    api.preprocess_dataset(
        dataset.id,
        planned.name,
        configurations=[nnunet.CONFIGURATION],
        num_processes=[processes],
        show_progress_bar=False,
    )
    _done(target).write_text(json.dumps({"cases": names}))
    return True


def _is_complete(target: Path, names: list[str]) -> bool:
    done = _done(target)
    return done.is_file() and target.is_dir() and json.loads(done.read_text()).get("cases") == names


def _done(target: Path) -> Path:
    return target.with_name(_DONE.format(target.name))


def _has_references(folder: Path, dataset: Dataset) -> bool:
    return all((folder / "gt_segmentations" / case.labels.name).is_file() for case in dataset.cases)
