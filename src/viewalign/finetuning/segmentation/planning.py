"""Plan and preprocess a dataset by stock nnU-Net, with an encoder and our choices in the plan."""

from __future__ import annotations

import filecmp
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import encoders, plans
from viewalign.finetuning.segmentation.dataset import Case, Dataset
from viewalign.finetuning.segmentation.environment import Folders
from viewalign.finetuning.segmentation.nnunet import Model
from viewalign.finetuning.segmentation.schedule import Schedule
from viewalign.utils.io import write_json
from viewalign.weights import files, sources

BASE_PLANNER, BASE_PLANS = "nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"
_COMPLETE = "{}.complete.json"
"""Written next to a folder of preprocessed cases when all are complete. nnU-Net reads all files inside as cases."""
_REFERENCES = "gt_segmentations"


@dataclass(frozen=True)
class Planned:
    """A written plan.

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
        """Its only configuration."""
        configuration: dict[str, Any] = self.plan["configurations"][plans.CONFIGURATION]
        return configuration


def base_plan(dataset: Dataset, folders: Folders, processes: int, name: str | None = None) -> dict[str, Any]:
    """Return nnU-Net's own plan for a dataset, creating it if necessary; `name` is that of an existing plan.

    Raises:
        UserError: the named plan does not exist, or nnU-Net cannot plan the dataset.
    """
    folder = folders.preprocessed / dataset.name
    file = folder / f"{name or BASE_PLANS}.json"
    if not file.is_file():
        if name is not None:
            raise UserError(f"There is no plan {file}; omit base_plans to create one.")
        _create_base_plan(dataset, folder, processes)
    plan: dict[str, Any] = json.loads(file.read_text())
    return plan


def _create_base_plan(dataset: Dataset, folder: Path, processes: int) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    if not (folder / "dataset_fingerprint.json").is_file():
        api.extract_fingerprints([dataset.id], num_processes=processes, show_progress_bar=False)
    api.plan_experiments([dataset.id], BASE_PLANNER)


def check_start(model: Model, source: sources.Source, from_scratch: bool) -> None:
    """Check that existing folds of a model were trained from the same weights, as the plan's name has only their path.

    Args:
        model: with the plan's name.
        source: the encoder.
        from_scratch: train without the encoder.

    Raises:
        UserError: they were trained from other weights. A plan that records no weights is accepted.
    """
    if not any(model.folder.glob("fold_*")):
        return
    written = model.folder / "plans.json"  # nnU-Net's copy at the start of training
    file = written if written.is_file() else model.folders.preprocessed / model.dataset / f"{model.plans}.json"
    block = files.read_json(file).get(plans.BLOCK) or {}
    if "encoder" not in block or (block["encoder"] and "digest" not in block["encoder"]):
        return
    before = block["encoder"]["digest"] if block["encoder"] else None
    now = None if from_scratch else encoders.digest_of(source)
    if before != now:
        started, starts = ("from scratch" if one is None else f"from weights {one[:8]}" for one in (before, now))
        what = "" if from_scratch else f" of {source.file}"
        raise UserError(
            f"{model.folder} was trained {started}, not {starts}{what}, and has the same plan name. Train under "
            f"another name (plans=NAME) in another folder (-o), or remove {model.folder} to train it again."
        )


def write_plan(
    dataset: Dataset,
    folders: Folders,
    base: dict[str, Any],
    source: sources.Source,
    choices: plans.Choices,
    schedule: Schedule,
    min_share: float,
    from_scratch: bool,
) -> Planned:
    """Write a plan where nnU-Net reads it, and the encoder next to it.

    Args:
        dataset: for which to plan.
        folders: of nnU-Net.
        base: from `base_plan`.
        source: the encoder.
        choices: see `plans.make_plan`.
        schedule: of the training.
        min_share: fraction of the encoder that must be loaded.
        from_scratch: train the same plan without the encoder, as a baseline.

    Raises:
        UserError: an encoder without a plan, or invalid choices; nothing is written then.
    """
    folder = folders.preprocessed / dataset.name
    plan = plans.make_plan(base, source.plan, choices, source.file, dataset.channels)
    encoder = encoders.store(folder, source, Path(source.file).stem, min_share)
    plan[plans.BLOCK] = {"version": 1, "encoder": None if from_scratch else encoder, "schedule": schedule.as_json()}
    if not from_scratch:
        file = folder / encoder["file"]
        plan["pretrain_info"] = plans.pretrain_info(source.plan, str(file), file.stem, source.cited())
    write_json(folder / f"{choices.name}.json", plan)
    return Planned(choices.name, plan, folder)


def preprocess(dataset: Dataset, planned: Planned, processes: int) -> list[str]:
    """Preprocess all cases unless they are complete and their files are the same.

    Returns:
        Cases whose images, labels or classes have changed since they were preprocessed.
    """
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    target = planned.folder / str(planned.configuration["data_identifier"])
    complete = target.with_name(_COMPLETE.format(target.name))
    record = files.read_json(complete) if target.is_dir() else {}
    known = record.get("files", {})
    contents = {case.name: _contents(case, known.get(case.name, {})) for case in dataset.cases}
    outdated = _outdated(dataset, planned.folder / _REFERENCES)
    described = {"cases": list(contents), "labels": dataset.description["labels"], "files": contents}
    if record.get("labels", described["labels"]) != described["labels"]:
        changed = [name for name in contents if name in record["cases"]]
    elif record and not known:  # of a version that recorded no files
        changed = [case.name for case in outdated if case.name in record.get("cases", ())]
    else:
        changed = [name for name, entry in contents.items() if known.get(name, entry)["digests"] != entry["digests"]]
    if changed or record.get("cases") != list(contents):
        complete.unlink(missing_ok=True)
        _remove(target)
        write_json(planned.folder / "dataset.json", dataset.description)  # nnU-Net's copy, which training reads
        api.preprocess_dataset(
            dataset.id,
            planned.name,
            configurations=[plans.CONFIGURATION],
            num_processes=[processes],
            show_progress_bar=False,
        )
    (planned.folder / _REFERENCES).mkdir(exist_ok=True)
    for case in outdated:  # nnU-Net replaces only those that are older than the labels
        shutil.copyfile(case.labels, planned.folder / _REFERENCES / case.labels.name)
    if not complete.is_file() or record != described:
        write_json(complete, described)
    return changed


def _contents(case: Case, known: dict[str, Any]) -> dict[str, Any]:
    """Return sizes, times of change and digests of a case's files; the known ones if sizes and times are the same."""
    paths = (*case.images, case.labels)
    stamps = [[status.st_size, status.st_mtime_ns] for status in (path.stat() for path in paths)]
    if known.get("stamps") == stamps:
        return known
    return {"stamps": stamps, "digests": [files.sha256_of(path) for path in paths]}


def _outdated(dataset: Dataset, references: Path) -> list[Case]:
    """Return the cases whose copy of the labels for evaluation is missing or differs from them."""
    copies = [(case, references / case.labels.name) for case in dataset.cases]
    return [case for case, copy in copies if not copy.is_file() or not filecmp.cmp(copy, case.labels, shallow=False)]


def _remove(folder: Path) -> None:
    """Remove a folder, or a link to one that others use."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
