"""The judge `segmentation`: an encoder fine-tuned by stock nnU-Net, in a process of its own.

nnU-Net reads its folders from the environment when it is imported. So it is imported in a process that has this study's
alone, and what the user has set changes nothing. All cells of one voxel size and normalisation share one dataset that
is laid out and preprocessed once.
"""

from __future__ import annotations

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
from viewalign.finetuning.segmentation import encoders as untrained
from viewalign.finetuning.segmentation import environment
from viewalign.finetuning.segmentation.settings import FinetuneSettings
from viewalign.studies import labelled as labels
from viewalign.studies.labelled import Labelled, LabelledCase
from viewalign.studies.settings import SegmentationEvaluation, digest_of
from viewalign.utils.locks import locked
from viewalign.utils.precision import DEVICES
from viewalign.utils.settings import checked

_DATASET = "Dataset900_Study"
_MACHINE = {"device", "gpus", "workers"}
_DECIDED = {
    "dataset",
    "encoder",
    "from_scratch",
    "plans",
    "seed",
    "folds",
    "fold",
    "shots",
    "seeds",
    "training",
    "validation",
}
_DECIDED |= {"patient", "predict", "postprocess"}
"""What the study settles by its arms, seeds, shots and cases."""
_WORKER = "viewalign.studies.segmentation_worker"


@dataclass(frozen=True)
class SegmentationEvaluator:
    """What all cells of a judge share.

    Attributes:
        judge: its settings.
        labelled: cases with their classes.
        preparation: of the store that was pretrained on.
        out: the study's folder.
        threads: of the CPU; 0 for torch's own choice.
    """

    judge: SegmentationEvaluation
    labelled: Labelled
    preparation: Mapping[str, Any]
    out: Path
    threads: int

    @property
    def machine(self) -> dict[str, Any]:
        """What to compute on; as many workers as threads by default."""
        chosen = {"device": "auto", "gpus": 1, "workers": self.threads or None}
        return {**chosen, **{key: value for key, value in self.judge.settings.items() if key in _MACHINE}}

    def settings(self, encoder: Path, seed: int, **more: Any) -> dict[str, Any]:
        """Return the settings of one fine-tuning."""
        own = {key: value for key, value in self.judge.settings.items() if key not in _MACHINE}
        return {**own, "dataset": _DATASET, "encoder": str(encoder.absolute()), "seed": seed, **more}

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Check everything that can be known before anything is trained.

        Raises:
            UserError: nnU-Net is not there, or settings that do not fit.
        """
        environment.check_installed()
        odd = sorted(_DECIDED & self.judge.settings.keys())
        if odd:
            raise UserError(f"settings.{odd[0]} is settled by the study itself (arms, seeds, shots, data.labelled)")
        if self.machine["device"] not in DEVICES:
            raise UserError(f"settings.device is {', '.join(DEVICES)}, not {self.machine['device']!r}")
        asked = checked(FinetuneSettings, self.settings(Path("encoder"), 0))
        tolerances_of(asked.tolerance, self.labelled.classes or self._tolerated(asked))
        for recipe in recipes:
            untrained.check_before(asked, recipe, self.preparation)
        self.labelled.shots(self.judge.shots, self.judge.draw, 0)

    def _tolerated(self, asked: FinetuneSettings) -> list[str]:
        """Return the classes that tolerances name, where the labels are not read yet."""
        return [part.partition("=")[0].strip() for part in asked.tolerance.split(",") if "=" in part]

    def judge_cell(self, cell: Path, run: Path | None, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Fine-tune and judge; go on where that was stopped.

        Args:
            cell: the cell's folder.
            run: of the pretraining; None to train from scratch.
            recipe: of the pretraining.
            seed: of the draw of cases, the decoder's first weights and the patches.

        Returns:
            `measures`, and `cases`: Dice and surface Dice of each test case.

        Raises:
            UserError: whatever keeps nnU-Net from it.
        """
        shared = self.shared(recipe)
        cell.mkdir(parents=True, exist_ok=True)
        learn = self.labelled.shots(self.judge.shots, self.judge.draw, seed)
        encoder = untrained.write_untrained(recipe, self.preparation, cell / "untrained.pth") if run is None else run
        sides = {"training": _listed(cell / "training.txt", learn)}
        sides |= {"validation": _listed(cell / "validation.txt", self.labelled.test)}
        settings = self.settings(encoder, seed, from_scratch=run is None, **sides)
        _forget_others(cell, settings)
        _link(shared / "preprocessed" / _DATASET, cell / "nnunet" / "preprocessed" / _DATASET)
        told = self._work(cell, {"do": "finetune", "settings": settings}, shared / "raw", cell / "nnunet")
        if not self.judge.keep:
            shutil.rmtree(cell / "nnunet")
            (cell / "untrained.pth").unlink(missing_ok=True)
        return told

    def shared(self, recipe: Recipe) -> Path:
        """Return the folder of the dataset laid out and preprocessed, made where it is not there."""
        files = [[str(case.image.absolute()), *case.identity] for case in self.labelled.all]
        plan = untrained.plan_of(recipe, self.preparation)["pretrain_plan"]
        for configuration in plan["configurations"].values():
            configuration.pop("patch_size", None)
        own = [self.judge.settings.get(key) for key in ("spacing", "normalise", "base_plans")]
        place = self.out / "data" / f"nnunet-{digest_of([files, self.labelled.classes, plan, own])}"
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.with_name(f".{place.name}.lock"), math.inf):
            if not place.is_dir():
                self._prepare(place.with_name(f".writing-{place.name}"), recipe).replace(place)
        return place

    def _prepare(self, place: Path, recipe: Recipe) -> Path:
        shutil.rmtree(place, ignore_errors=True)
        (place / "raw").mkdir(parents=True)
        labels.write_dataset(place / "raw" / _DATASET, self.labelled.all, self.labelled.classes)
        encoder = untrained.write_untrained(recipe, self.preparation, place / "untrained.pth")
        settings = self.settings(encoder, 0, from_scratch=True)
        self._work(place, {"do": "prepare", "settings": settings}, place / "raw", place)
        folder = place / "preprocessed" / _DATASET
        for plan in folder.glob("viewalign_*.json"):  # that of the untrained network; every cell makes its own
            if not plan.name.endswith(".complete.json"):
                plan.unlink()
        shutil.rmtree(folder / "viewalign_encoders", ignore_errors=True)
        return place

    def _work(self, folder: Path, job: dict[str, Any], raw: Path, own: Path) -> dict[str, Any]:
        """Let another process do a job that nnU-Net is needed for, and return what it came to."""
        answer = folder / "answer.json"
        answer.unlink(missing_ok=True)
        told = {**job, "out": str(folder / "tuning"), "machine": self.machine, "threads": self.threads}
        (folder / "job.json").write_text(json.dumps(told, indent=1))
        clean = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
        places = {"raw": raw, "preprocessed": own / "preprocessed", "results": own / "results"}
        clean |= {f"nnUNet_{name}": str(path.absolute()) for name, path in places.items()}
        with (folder / "worker.log").open("w") as log:
            code = _wait([sys.executable, "-m", _WORKER, str(folder / "job.json"), str(answer)], clean, log)
        if not answer.is_file():
            tail = (folder / "worker.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"nnU-Net's process ended with code {code}: {' '.join(tail) or 'it said nothing'}")
        result: dict[str, Any] = json.loads(answer.read_text())
        if "error" in result:
            raise UserError(result["error"])
        return result


def _wait(command: list[str], variables: dict[str, str], log: Any) -> int:
    """Run a process in a group of its own, which ends with this process or with whatever interrupts it."""
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


def _listed(file: Path, cases: Sequence[LabelledCase]) -> str:
    file.write_text("\n".join(case.name for case in cases) + "\n")
    return str(file.absolute())


def _forget_others(cell: Path, settings: Mapping[str, Any]) -> None:
    """Remove what a fine-tuning with other settings left, such as one from before the study was moved."""
    before = json.loads((cell / "job.json").read_text()).get("settings") if (cell / "job.json").is_file() else None
    if before != json.loads(json.dumps(settings)):
        for name in ("tuning", "nnunet"):
            shutil.rmtree(cell / name, ignore_errors=True)


def _link(shared: Path, own: Path) -> None:
    """Show a cell what is shared; plans, splits and encoders are its own."""
    own.mkdir(parents=True, exist_ok=True)
    for path in shared.iterdir():
        link = own / path.name
        if not os.path.lexists(link):
            link.symlink_to(os.path.relpath(path, own.resolve()))
