"""The evaluation `segmentation`: fine-tune an encoder by stock nnU-Net in a separate process.

nnU-Net reads its folders from the environment when it is imported, so it runs in a process with the study's folders.
Cells with equal voxel size and normalisation share one preprocessed dataset.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.evaluation.folders import tolerances_of
from viewalign.finetuning.segmentation import encoders, environment
from viewalign.finetuning.segmentation.settings import FinetuneSettings
from viewalign.studies import labelled as labels
from viewalign.studies.external import ExternalEncoder
from viewalign.studies.labelled import Labelled, LabelledCase
from viewalign.studies.settings import MACHINE, SegmentationEvaluation, digest_of, without_machine
from viewalign.utils.io import write_json
from viewalign.utils.locks import locked
from viewalign.utils.precision import DEVICES
from viewalign.utils.settings import checked

_DATASET = "Dataset900_Study"
_SET_BY_STUDY = {
    "dataset",
    "encoder",
    "from_scratch",
    "plans",
    "seed",
    "folds",
    "shots",
    "seeds",
    "training",
    "validation",
}
_SET_BY_STUDY |= {"patient", "predict", "postprocess"}
"""Settings that follow from arms, seeds, shots and cases of the study."""
_WORKER = "viewalign.studies.segmentation_worker"


@dataclass(frozen=True)
class SegmentationEvaluator:
    """Evaluates encoders by fine-tuning for segmentation.

    Attributes:
        evaluation: its settings.
        labelled: cases with their classes.
        preparation: of the pretraining store.
        out: the study's folder.
        threads: of the CPU; 0 for torch's default.
        device: auto, cpu or cuda; the evaluation's settings may name another.
    """

    evaluation: SegmentationEvaluation
    labelled: Labelled
    preparation: Mapping[str, Any]
    out: Path
    threads: int
    device: str

    @property
    def machine(self) -> dict[str, Any]:
        """Devices and processes; by default the study's device, and as many workers as threads."""
        chosen = {"device": self.device, "gpus": 1, "workers": self.threads or None}
        return {**chosen, **{key: value for key, value in self.evaluation.settings.items() if key in MACHINE}}

    def settings(self, encoder: str, seed: int, **more: Any) -> dict[str, Any]:
        """Return the settings of a fine-tuning."""
        return {
            **without_machine(self.evaluation.settings),
            "dataset": _DATASET,
            "encoder": encoder,
            "seed": seed,
            **more,
        }

    def check(self, recipes: Sequence[Recipe], external: Sequence[ExternalEncoder]) -> None:
        """Check the settings.

        Args:
            recipes: of every arm that is pretrained or untrained.
            external: encoders of the other arms.

        Raises:
            UserError: nnU-Net is not installed, or invalid settings.
        """
        environment.check_installed()
        odd = sorted(_SET_BY_STUDY & self.evaluation.settings.keys())
        if odd:
            raise UserError(f"settings.{odd[0]} is set by the study (arms, seeds, shots, data.labelled)")
        if self.machine["device"] not in DEVICES:
            raise UserError(f"settings.device must be {', '.join(DEVICES)}, not {self.machine['device']!r}")
        settings = checked(FinetuneSettings, self.settings("encoder", 0))
        # Without names of classes, the labels are not read yet.
        named = [part.partition("=")[0].strip() for part in settings.tolerance.split(",") if "=" in part]
        tolerances_of(settings.tolerance, self.labelled.classes or named)
        plans = [(encoders.plan_of(recipe, self.preparation), recipe.network.name) for recipe in recipes]
        for plan, name in (*plans, *((one.plan, one.path) for one in external)):
            encoders.check_before(settings, plan, name)
        self.labelled.shots(self.evaluation.shots, self.evaluation.draw, 0)

    def evaluate(
        self, cell: Path, run: Path | None, recipe: Recipe, external: ExternalEncoder | None, seed: int
    ) -> dict[str, Any]:
        """Fine-tune and evaluate, resuming an interrupted fine-tuning.

        Args:
            cell: the cell's folder.
            run: of the pretraining; None to train from scratch.
            recipe: of the pretraining.
            external: an encoder to use instead of `run`.
            seed: of the sampled cases, the decoder's initial weights and the patches.

        Returns:
            `measures`, and `cases`: Dice and surface Dice of each test case.

        Raises:
            UserError: an error of the fine-tuning.
        """
        shared = self.shared(recipe, external)
        cell.mkdir(parents=True, exist_ok=True)
        learn = self.labelled.shots(self.evaluation.shots, self.evaluation.draw, seed)
        encoder = external.path if external else str(run.absolute()) if run else self._untrained(recipe, cell)
        training = _write_names(cell / "training.txt", learn)
        validation = _write_names(cell / "validation.txt", self.labelled.test)
        scratch = run is None and external is None
        settings = self.settings(encoder, seed, from_scratch=scratch, training=training, validation=validation)
        _remove_outdated(cell, settings)
        _link(shared / "preprocessed" / _DATASET, cell / "nnunet" / "preprocessed" / _DATASET)
        result = self._run_worker(cell, {"do": "finetune", "settings": settings}, shared / "raw", cell / "nnunet")
        if not self.evaluation.keep:
            shutil.rmtree(cell / "nnunet")
            (cell / "untrained.pth").unlink(missing_ok=True)
        return result

    def _untrained(self, recipe: Recipe, folder: Path) -> str:
        return str(encoders.write_untrained(recipe, self.preparation, folder / "untrained.pth").absolute())

    def shared(self, recipe: Recipe, external: ExternalEncoder | None = None) -> Path:
        """Return the folder of the preprocessed dataset, creating it if necessary."""
        files = [[str(case.image.absolute()), *case.identity] for case in self.labelled.all]
        described = external.plan if external else encoders.plan_of(recipe, self.preparation)
        plan = copy.deepcopy(described["pretrain_plan"])
        for configuration in plan["configurations"].values():
            configuration.pop("patch_size", None)
        own = [self.evaluation.settings.get(key) for key in ("spacing", "normalise", "base_plans")]
        place = self.out / "data" / f"nnunet-{digest_of([files, self.labelled.classes, plan, own])}"
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.with_name(f".{place.name}.lock"), math.inf):
            if not place.is_dir():
                self._prepare(place.with_name(f".writing-{place.name}"), recipe, external).replace(place)
        return place

    def _prepare(self, place: Path, recipe: Recipe, external: ExternalEncoder | None) -> Path:
        shutil.rmtree(place, ignore_errors=True)
        (place / "raw").mkdir(parents=True)
        labels.write_dataset(place / "raw" / _DATASET, self.labelled.all, self.labelled.classes)
        encoder = external.path if external else self._untrained(recipe, place)
        settings = self.settings(encoder, 0, from_scratch=True)
        self._run_worker(place, {"do": "prepare", "settings": settings}, place / "raw", place)
        folder = place / "preprocessed" / _DATASET
        for plan in folder.glob("viewalign_*.json"):  # of the untrained network; every cell writes its own
            if not plan.name.endswith(".complete.json"):
                plan.unlink()
        shutil.rmtree(folder / "viewalign_encoders", ignore_errors=True)
        return place

    def _run_worker(self, folder: Path, job: dict[str, Any], raw: Path, own: Path) -> dict[str, Any]:
        """Run a job of nnU-Net in another process and return its result."""
        answer = folder / "answer.json"
        answer.unlink(missing_ok=True)
        machine = {"machine": self.machine, "threads": self.threads}
        write_json(folder / "job.json", {**job, "out": str(folder / "tuning"), **machine})
        clean = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
        places = {"raw": raw, "preprocessed": own / "preprocessed", "results": own / "results"}
        clean |= {f"nnUNet_{name}": str(path.absolute()) for name, path in places.items()}
        with (folder / "worker.log").open("w") as log:
            code = _wait([sys.executable, "-m", _WORKER, str(folder / "job.json"), str(answer)], clean, log)
        if not answer.is_file():
            tail = (folder / "worker.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"nnU-Net's process ended with code {code}: {' '.join(tail) or 'no output'}")
        result: dict[str, Any] = json.loads(answer.read_text())
        if "error" in result:
            raise UserError(result["error"])
        return result


def _wait(command: list[str], variables: dict[str, str], log: Any) -> int:
    """Run a process in its own group, which ends with this process."""
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=variables, start_new_session=True
    )
    try:
        return child.wait()
    finally:
        if child.stdin is not None:
            child.stdin.close()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _write_names(file: Path, cases: Sequence[LabelledCase]) -> str:
    file.write_text("\n".join(case.name for case in cases) + "\n")
    return str(file.absolute())


def _remove_outdated(cell: Path, settings: Mapping[str, Any]) -> None:
    """Remove a fine-tuning with other settings, such as that of a study that was moved."""
    before = json.loads((cell / "job.json").read_text()).get("settings") if (cell / "job.json").is_file() else None
    if before != json.loads(json.dumps(settings)):
        for name in ("tuning", "nnunet"):
            shutil.rmtree(cell / name, ignore_errors=True)


def _link(shared: Path, own: Path) -> None:
    """Link shared files into a cell's folder, to which plans, splits and encoders are added."""
    own.mkdir(parents=True, exist_ok=True)
    for path in shared.iterdir():
        link = own / path.name
        if not os.path.lexists(link):
            link.symlink_to(os.path.relpath(path, own.resolve()))
