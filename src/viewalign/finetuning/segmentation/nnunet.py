"""Call stock nnU-Net's training, validation and prediction in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from viewalign.data.worker_pool import default_workers
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import environment
from viewalign.finetuning.segmentation.environment import Folders
from viewalign.finetuning.segmentation.plans import CONFIGURATION
from viewalign.utils.precision import choose_device
from viewalign.weights import files

TRAINER = "ViewalignTrainer"
_RESUMABLE = ("checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Machine:
    """Devices and processes.

    Attributes:
        device: "cuda", "cpu" or "mps".
        gpus: number of GPUs that train together.
        processes: for preprocessing, data loading and export.
    """

    device: str
    gpus: int = 1
    processes: int = 1

    @classmethod
    def choose(cls, device: str, gpus: int, workers: int | None) -> Machine:
        """Resolve defaults: a GPU if there is one, and one process per core, at most eight. nnU-Net checks `mps`.

        Raises:
            UserError: the device is not available.
        """
        device = device if device == "mps" else choose_device(device)
        if gpus > 1 and device != "cuda":
            raise UserError(f"nnU-Net trains on several GPUs only with CUDA, not on {device}; omit gpus.")
        return cls(device, gpus, workers or min(8, default_workers()))


@dataclass(frozen=True)
class Model:
    """A model in nnU-Net's folder of results, trained or not."""

    dataset: str
    plans: str
    folders: Folders

    @property
    def folder(self) -> Path:
        """`nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`."""
        return self.folders.results / self.dataset / f"{TRAINER}__{self.plans}__{CONFIGURATION}"

    def fold(self, number: int | str) -> Path:
        """Return the folder of a fold."""
        return self.folder / f"fold_{number}"

    def is_trained(self, number: int | str) -> bool:
        """Return whether the training of a fold is complete."""
        return (self.fold(number) / files.CHECKPOINT).is_file()

    def is_validated(self, number: int | str) -> bool:
        """Return whether the validation cases of a fold are predicted."""
        return (self.fold(number) / "validation" / "summary.json").is_file()


def train(model: Model, fold: int | str, machine: Machine, probabilities: bool = False) -> None:
    """Train a fold, or resume its training, and predict its validation cases.

    Args:
        model: the model to train.
        fold: nnU-Net's fold number, or "all".
        machine: devices and processes.
        probabilities: keep the softmax of the validation, for choosing ensembles.
    """
    from nnunetv2.run.run_training import run_training

    done = model.is_trained(fold)
    resumes = not done and any((model.fold(fold) / name).is_file() for name in _RESUMABLE)
    with _loaders(machine):
        run_training(
            model.dataset,
            CONFIGURATION,
            str(fold),
            TRAINER,
            model.plans,
            num_gpus=machine.gpus,
            export_validation_probabilities=probabilities,
            continue_training=resumes,
            only_run_validation=done,
            device=torch.device(machine.device),
        )


@contextlib.contextmanager
def _loaders(machine: Machine) -> Iterator[None]:
    """Set the number of nnU-Net's data loading processes for training."""
    before = os.environ.get(environment.LOADERS)
    os.environ[environment.LOADERS] = str(environment.loaders(machine.processes, machine.device))
    try:
        yield
    finally:
        if before is not None:
            os.environ[environment.LOADERS] = before


def predict(
    model: Path,
    images: Path,
    out: Path,
    folds: Sequence[int | str],
    machine: Machine,
    mirror: bool = True,
    probabilities: bool = False,
) -> None:
    """Predict a folder of images with the mean of some folds.

    Args:
        model: a folder of nnU-Net's results, `TRAINER__PLANS__CONFIGURATION`.
        images: folder of `CASE_0000.nii.gz` etc., with the dataset's channels.
        out: folder for label maps.
        folds: whose networks are averaged.
        machine: devices and processes.
        mirror: average over mirrored images, if training used mirroring.
        probabilities: keep the softmax.

    Raises:
        UserError: a model that could run code, see `weights.files.check_model`.
    """
    files.check_model(model, folds)
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = torch.device(machine.device)
    predictor = nnUNetPredictor(
        use_mirroring=mirror, perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model), tuple(folds))
    out.mkdir(parents=True, exist_ok=True)
    if machine.device == "cpu" or machine.processes == 1:
        predictor.predict_from_files_sequential(str(images), str(out), save_probabilities=probabilities)
        return
    predictor.predict_from_files(
        str(images),
        str(out),
        save_probabilities=probabilities,
        num_processes_preprocessing=machine.processes,
        num_processes_segmentation_export=machine.processes,
    )


@contextlib.contextmanager
def quietly(log: Path) -> Iterator[None]:
    """Redirect what nnU-Net prints in this process to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def accumulate(model: Model, folds: Sequence[int], processes: int) -> tuple[Path, list[Any], list[Any]]:
    """Collect the predictions of a cross-validation and determine the postprocessing that improves them.

    Returns:
        The folder of collected predictions, and nnU-Net's postprocessing functions with their arguments.
    """
    from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

    merged = model.folder / f"crossval_results_folds_{'_'.join(str(fold) for fold in folds)}"
    accumulate_cv_results(str(model.folder), str(merged), list(folds), processes)
    references = model.folders.preprocessed / model.dataset / "gt_segmentations"
    functions, arguments = determine_postprocessing(
        str(merged), str(references), str(merged / "plans.json"), str(merged / "dataset.json"), processes, True
    )
    return merged, list(functions), list(arguments)


def postprocess(predictions: Path, out: Path, functions: list[Any], arguments: list[Any], processes: int) -> None:
    """Apply the postprocessing found by `accumulate` to a folder of predictions."""
    from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing_to_folder

    files = (str(predictions / "plans.json"), str(predictions / "dataset.json"))
    apply_postprocessing_to_folder(str(predictions), str(out), functions, arguments, *files, num_processes=processes)
