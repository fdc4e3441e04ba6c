"""Trained models on disk: weights in safetensors, and a JSON file with everything that prediction needs."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

import viewalign
from viewalign.errors import UserError
from viewalign.finetuning.classification.network import GlobalNetwork
from viewalign.finetuning.classification.training import predict_sample
from viewalign.networks.registry import build_backbone
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Preprocessor, Sample
from viewalign.tasks.spec import TaskSpec, check_spec
from viewalign.utils.io import write_json, write_tensors

WEIGHTS, FACTS = "model.safetensors", "model.json"
FORMAT = "viewalign-task-model"
_log = logging.getLogger(__name__)


@dataclass
class TaskModel:
    """The model of one fold.

    Attributes:
        network: in evaluation mode.
        spec: the task.
        preprocessor: for images of new cases.
        scale: mean and standard deviation of a regression target.
        facts: contents of `model.json`.
    """

    network: GlobalNetwork
    spec: TaskSpec
    preprocessor: Preprocessor
    scale: tuple[float, float]
    facts: dict[str, Any]


def write_model(
    folder: Path,
    network: GlobalNetwork,
    name: str,
    spec: TaskSpec,
    preprocessor: Preprocessor,
    scale: tuple[float, float],
    mirrored: bool = False,
) -> None:
    """Write a model's two files, weights last.

    `name` is that of its network, `mirrored` whether its training images were; the others are as in `TaskModel`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "format": FORMAT,
        "version": 1,
        "viewalign_version": viewalign.__version__,
        "network": name,
        "pool": network.pooling.kind,
        "task": spec.model_dump(mode="json"),
        "preprocessing": preprocessor.as_json(),
        "target_mean": scale[0],
        "target_deviation": scale[1],
        "mirrored": mirrored,
    }
    write_json(folder / FACTS, facts)
    write_tensors(dict(network.named_parameters()), folder / WEIGHTS)


def read_model(folder: Path) -> TaskModel:
    """Read a model with all its weights.

    Raises:
        UserError: no model, or weights that do not match its network.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as problem:
        raise UserError(f"{folder} has no readable model: {problem}.") from None
    if facts.get("format") != FORMAT or facts.get("version") != 1:
        raise UserError(f"{folder / FACTS} has format {facts.get('format')!r}, version {facts.get('version')}.")
    spec = check_spec(facts["task"], str(folder / FACTS))
    preprocessor = Preprocessor.from_json(facts["preprocessing"])
    backbone = build_backbone(facts["network"], preprocessor.size, len(spec.channels))
    backbone.drop_decoder()
    network = GlobalNetwork(backbone, spec.outputs, facts["pool"], 0.0, [0.0] * spec.outputs)
    own = dict(network.named_parameters())
    mismatched = sorted(set(own) ^ set(state)) or [k for k in own if own[k].shape != state[k].shape]
    if mismatched:
        raise UserError(f"The weights in {folder} do not match their network; the first mismatch is {mismatched[0]}.")
    for name, value in state.items():
        own[name].data.copy_(value)
    return TaskModel(network.eval(), spec, preprocessor, (facts["target_mean"], facts["target_deviation"]), facts)


def _planned_folds(root: Path) -> int:
    """Return the number of folds that a fine-tuning has when it is complete; 0 for other folders."""
    try:
        return len(json.loads((root / "folds.json").read_text(encoding="utf-8"))["folds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


class Predictor:
    """Predicts new cases by the mean over the folds of a fine-tuning.

    Args:
        folder: of a fine-tuning, or of one of its folds.
        device: where the networks run.

    Raises:
        UserError: no models, or models of different tasks.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        root = Path(folder)
        folders = [root] if (root / FACTS).is_file() else sorted(p.parent for p in root.glob(f"fold_*/{FACTS}"))
        if not folders:
            raise UserError(f"{root} has no trained model: no fold_*/{FACTS}.")
        planned = _planned_folds(root)
        if planned > len(folders):
            _log.warning("%s has %d of %d folds: its fine-tuning is not complete.", root, len(folders), planned)
        self.models = [read_model(path) for path in folders]
        self.device = device
        self.spec, self.preprocessor = self.models[0].spec, self.models[0].preprocessor
        fingerprint = self.preprocessor.fingerprint()
        for model in self.models:
            model.network.to(device)
            if model.preprocessor.fingerprint() != fingerprint or model.spec != self.spec:
                raise UserError(f"The folds of {root} were trained for different tasks or preprocessing.")

    @property
    def mirrored(self) -> bool:
        """Whether all models were trained on mirrored images too; earlier versions did not record it."""
        return all(model.facts.get("mirrored", not self.spec.laterality) for model in self.models)

    def predict(self, case: TaskCase, flips: bool = False) -> NDArray[np.float64]:
        """Return a case's probabilities (K,), or its value (1,); with `flips` the mean over all eight mirrorings.

        Raises:
            UserError: the case cannot be used.
        """
        return self.predict_sample(self.preprocessor(case.images, case.mask), flips)

    def predict_sample(self, sample: Sample, flips: bool = False) -> NDArray[np.float64]:
        """Return the same for a prepared case."""
        values = [predict_sample(m.network, sample, self.spec, m.scale, self.device, flips) for m in self.models]
        mean: NDArray[np.float64] = np.mean(values, axis=0)
        return mean
