"""Linear probe of the encoder during pretraining, on a small task.

It does not use the random generators of training and does not change the network: a run is bit-identical with or
without it (`tests/evaluation/test_online_probe.py`).
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
from viewalign.evaluation.probe import evaluation_folds
from viewalign.networks.backbone import Backbone
from viewalign.tasks.cases import prepare_cases
from viewalign.tasks.folds import join_copies
from viewalign.tasks.manifest import TaskCase, read_manifest
from viewalign.tasks.preprocessing import Preprocessor, Sample
from viewalign.tasks.spec import TaskSpec, read_spec
from viewalign.utils.text import counted
from viewalign.weights.adaptation_plan import PREPARATION_KEYS

_BOOTSTRAP_SAMPLES = 200


class OnlineProbe:
    """Embeds the task's cases with an encoder and evaluates a linear probe over folds.

    Args:
        spec: the task.
        cases: with targets.
        preprocessor: with the field of view and preprocessing of the pretraining.
        folds: number of folds, if there are no test cases.
        seed: of folds and intervals.
    """

    def __init__(
        self, spec: TaskSpec, cases: list[TaskCase], preprocessor: Preprocessor, folds: int, seed: int
    ) -> None:
        self.spec, self.cases, self.preprocessor, self.seed = spec, cases, preprocessor, seed
        self._count = folds
        self.folds = evaluation_folds(cases, spec, folds, seed)
        self._samples: dict[str, Sample] | None = None

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        """Return the primary metric, and the ends of its interval if it has one.

        Raises:
            UserError: a case cannot be used (at the first call, before any training step).
        """
        if self._samples is None:
            self._samples, excluded = prepare_cases(self.cases, self.preprocessor)
            if excluded:
                raise UserError(f"validate.probe: case {excluded[0][0]} cannot be used: {excluded[0][1]}.")
            fingerprints = {name: sample.fingerprint for name, sample in self._samples.items()}
            joined = join_copies(self.cases, fingerprints)
            self.folds = evaluation_folds(joined, self.spec, self._count, self.seed)
        with preserved_state(backbone):
            rows = np.stack([_embed(backbone, self._samples[case.case]) for case in self.cases])
            score = probe(rows, self.cases, self.folds, self.spec, "linear", _BOOTSTRAP_SAMPLES, self.seed)
        name = self.spec.figure
        ends = score.intervals[name]
        interval = {} if ends is None else {f"{name}_low": ends[0], f"{name}_high": ends[1]}
        return {name: score.values[name], **interval}


@torch.no_grad()
def _embed(backbone: Backbone, sample: Sample) -> np.ndarray:
    parameter = next(backbone.parameters())
    image = torch.from_numpy(np.array(sample.image))[None].to(parameter.device, parameter.dtype)
    valid = torch.from_numpy(np.array(sample.valid))[None].to(parameter.device)
    vector: np.ndarray = Pooling(backbone, "multistage")(backbone, image, valid)[0].float().cpu().numpy()
    return vector


@contextmanager
def preserved_state(backbone: Backbone) -> Iterator[None]:
    """Switch a network to evaluation, and restore its modes and all random generators at the end."""
    training = {module: module.training for module in backbone.modules()}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [parameter.device for parameter in backbone.parameters() if parameter.is_cuda][:1]
    with torch.random.fork_rng(devices):
        backbone.eval()
        backbone.sample_drop_path(None)
        try:
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def make_probe(recipe: Recipe, store: Store | None = None) -> OnlineProbe | None:
    """Build the probe of a recipe's `validate.probe`, or None if it has none.

    Args:
        recipe: all settings.
        store: an open store whose preprocessing the cases get, instead of `data`.

    Raises:
        UserError: no such task, or another number of channels than the network.
    """
    settings = recipe.validate_.probe
    if settings is None:
        return None
    spec = read_spec(settings.task)
    cases = read_manifest(settings.task, spec)
    if len(spec.channels) != recipe.network.channels:
        raise UserError(
            f"validate.probe: {spec.name} has {counted(len(spec.channels), 'channel')}, "
            f"the network {recipe.network.channels}."
        )
    if store is None and recipe.data:
        store = Store.open(recipe.data)
    preparation = {} if store is None else store.recipe
    used = {key: value for key, value in preparation.items() if key in PREPARATION_KEYS}
    preprocessor = Preprocessor(spec.channels, recipe.views.patch_size, PrepareSettings.model_validate(used))
    return OnlineProbe(spec, cases, preprocessor, settings.folds, recipe.seed)
