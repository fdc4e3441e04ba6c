"""A probe while pretraining goes on: what a linear learner tells from the encoder of the moment, on a small task.

It draws nothing from the generators that training may use and changes nothing in the network: with or without it a run
is the same to the last bit (`tests/evaluation/test_online_probe.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from viewalign.config import Recipe
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store
from viewalign.errors import UserError
from viewalign.evaluation.embedding import Pooling
from viewalign.evaluation.linear_probe import probe
from viewalign.evaluation.probe import judged_folds
from viewalign.networks.backbone import Backbone
from viewalign.tasks.cases import prepare_cases
from viewalign.tasks.manifest import TaskCase, read_manifest
from viewalign.tasks.preprocessing import Preprocessor, Sample
from viewalign.tasks.spec import TaskSpec, read_spec

_DRAWS = 200


class OnlineProbe:
    """Embeds the task's cases with an encoder and judges a linear learner over folds.

    Args:
        spec: the task.
        cases: with targets.
        preprocessor: field of view and preparation of the pretraining.
        folds: how many, where no case is marked as test.
        seed: of folds and intervals.
    """

    def __init__(
        self, spec: TaskSpec, cases: list[TaskCase], preprocessor: Preprocessor, folds: int, seed: int
    ) -> None:
        self.spec, self.cases, self.preprocessor, self.seed = spec, cases, preprocessor, seed
        self.folds = judged_folds(cases, spec, folds, seed)
        self._samples: dict[str, Sample] | None = None

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        """Return the task's first figure, and the ends of its interval where there is one.

        Raises:
            UserError: a case cannot be prepared (told at the first call, before any step).
        """
        if self._samples is None:
            self._samples, excluded = prepare_cases(self.cases, self.preprocessor)
            if excluded:
                raise UserError(f"validate.probe: case {excluded[0][0]} cannot be used: {excluded[0][1]}.")
        with untouched(backbone):
            rows = np.stack([_vector(backbone, self._samples[case.case]) for case in self.cases])
            score = probe(rows, self.cases, self.folds, self.spec, "linear", _DRAWS, self.seed)
        name = self.spec.figure
        told = {name: score.values[name]}
        ends = score.intervals[name]
        return told if ends is None else told | {f"{name}_low": ends[0], f"{name}_high": ends[1]}


@torch.no_grad()
def _vector(backbone: Backbone, sample: Sample) -> np.ndarray:
    parameter = next(backbone.parameters())
    image = torch.from_numpy(np.array(sample.image))[None].to(parameter.device, parameter.dtype)
    valid = torch.from_numpy(np.array(sample.valid))[None].to(parameter.device)
    vector: np.ndarray = Pooling(backbone, "multistage")(backbone, image, valid)[0].float().cpu().numpy()
    return vector


@contextmanager
def untouched(backbone: Backbone) -> Iterator[None]:
    """Leave every generator's state and the network's mode as they were."""
    training = {module: module.training for module in backbone.modules()}
    python, plain = random.getstate(), np.random.get_state()
    devices = [parameter.device for parameter in backbone.parameters() if parameter.is_cuda][:1]
    with torch.random.fork_rng(devices):
        backbone.eval()
        backbone.sample_drop_path(None)
        try:
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
            random.setstate(python)
            np.random.set_state(plain)


def make_probe(recipe: Recipe) -> OnlineProbe | None:
    """Read the task of a recipe's `validate.probe`; None where it names none.

    Raises:
        UserError: no such task, or channels that the network does not have.
    """
    settings = recipe.validate_.probe
    if settings is None:
        return None
    spec = read_spec(settings.task)
    cases = read_manifest(settings.task, spec)
    if len(spec.channels) != recipe.network.channels:
        raise UserError(
            f"validate.probe: {spec.name} has {len(spec.channels)} channels, the network {recipe.network.channels}."
        )
    told = Store.open(recipe.data).recipe if recipe.data else {}
    kept = {key: value for key, value in told.items() if key in ("spacing", "normalise")}
    preprocessor = Preprocessor(spec.channels, recipe.views.patch_size, PrepareSettings.model_validate(kept))
    return OnlineProbe(spec, cases, preprocessor, settings.folds, recipe.seed)
