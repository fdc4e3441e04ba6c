"""A trained fold as it is kept: weights, and beside them everything that prediction needs. No pickle, no path."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from viewalign.utils.io import atomic_write, write_tensors

WEIGHTS, FACTS = "model.safetensors", "model.json"
FORMAT = "viewalign-task-model"


def write_model(
    folder: Path,
    network: GlobalNetwork,
    name: str,
    spec: TaskSpec,
    preprocessor: Preprocessor,
    scale: tuple[float, float],
) -> None:
    """Write a model's two files, weights last."""
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
    }
    with atomic_write(folder / FACTS) as partial:
        partial.write_text(json.dumps(facts, indent=1))
    write_tensors(dict(network.named_parameters()), folder / WEIGHTS)


@dataclass
class TaskModel:
    """One trained fold."""

    network: GlobalNetwork
    spec: TaskSpec
    preprocessor: Preprocessor
    scale: tuple[float, float]
    facts: dict[str, Any]


def read_model(folder: Path) -> TaskModel:
    """Read a model; every weight must be there and fit.

    Raises:
        UserError: no model, or one whose weights do not fit what it says it is.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as problem:
        raise UserError(f"{folder} holds no model that can be read: {problem}.") from None
    if facts.get("format") != FORMAT or facts.get("version") != 1:
        raise UserError(f"{folder / FACTS} is of format {facts.get('format')!r}, version {facts.get('version')}.")
    spec = check_spec(facts["task"], str(folder / FACTS))
    preprocessor = Preprocessor.from_json(facts["preprocessing"])
    backbone = build_backbone(facts["network"], preprocessor.size, len(spec.channels))
    backbone.drop_decoder()
    network = GlobalNetwork(backbone, spec.outputs, facts["pool"], 0.0, [0.0] * spec.outputs)
    own = dict(network.named_parameters())
    odd = sorted(set(own) ^ set(state)) or [k for k in own if own[k].shape != state[k].shape]
    if odd:
        raise UserError(
            f"The weights in {folder} do not fit the network they name; the first that does not is {odd[0]}."
        )
    for name, value in state.items():
        own[name].data.copy_(value)
    return TaskModel(network.eval(), spec, preprocessor, (facts["target_mean"], facts["target_deviation"]), facts)


class Predictor:
    """Predicts new cases by the mean over a fine-tuning's folds.

    Args:
        folder: of a fine-tuning, or of one of its folds.
        device: where networks compute.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        given = Path(folder)
        folders = [given] if (given / FACTS).is_file() else sorted(p.parent for p in given.glob(f"fold_*/{FACTS}"))
        if not folders:
            raise UserError(f"{given} holds no trained model: no fold_*/{FACTS}.")
        self.models = [read_model(one) for one in folders]
        self.device = device
        for one in self.models:
            one.network.to(device)
        self.spec, self.preprocessor = self.models[0].spec, self.models[0].preprocessor
        if any(
            m.preprocessor.fingerprint() != self.preprocessor.fingerprint() or m.spec != self.spec for m in self.models
        ):
            raise UserError(f"The folds of {given} were trained for different tasks or behind different preprocessing.")

    def predict(self, case: TaskCase, flips: bool = False) -> NDArray[np.float64]:
        """Return a case's probabilities (K,), or its value (1,).

        Raises:
            UserError: the case cannot be prepared.
        """
        return self.answer(self.preprocessor(case.images, case.mask), flips)

    def answer(self, sample: Sample, flips: bool = False) -> NDArray[np.float64]:
        """Return the same of a case that is prepared."""
        found = [predict_sample(m.network, sample, self.spec, m.scale, self.device, flips) for m in self.models]
        mean: NDArray[np.float64] = np.mean(found, axis=0)
        return mean


def prediction_columns(spec: TaskSpec) -> list[str]:
    """Return the columns of a table of predictions."""
    return ["value"] if spec.kind == "regression" else [f"p_{name}" for name in spec.classes]


def in_words(predicted: Sequence[float]) -> list[str]:
    """Return numbers as a table holds them: with all their digits, never cut to whole ones."""
    return [repr(float(value)) for value in predicted]
