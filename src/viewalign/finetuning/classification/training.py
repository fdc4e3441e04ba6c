"""Training of one fold: augmentation, optimizer, schedule and checkpoints.

Augmentation uses the transforms of the pretraining views, on the device of the network.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.errors import UserError
from viewalign.finetuning.classification import adapters
from viewalign.finetuning.classification.network import (
    GlobalNetwork,
    case_losses,
    class_weights,
    predictions_from_outputs,
)
from viewalign.finetuning.classification.settings import TaskTraining, settings_that_differ
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Sample, sample_tensors
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.precision import autocast, choose_device, gradient_scaler, settle
from viewalign.utils.rng import derive_seed, make_rng, make_torch_generator
from viewalign.utils.settings import checked
from viewalign.views import intensity as transforms
from viewalign.views import resampling, sampling
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.sampling import ViewSamplingConfig
from viewalign.weights import checkpoints

_log = logging.getLogger(__name__)

_NO_DECAY = ("pos_embed",)


def augment(
    image: Tensor,
    valid: Tensor,
    present: np.ndarray,
    rng: np.random.Generator,
    geometry: ViewSamplingConfig,
    intensity: IntensityConfig,
    channel_dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Apply a random transform to a case; return image and valid voxels.

    Args:
        image: float32 (C, D, H, W), on any device.
        valid: bool (1, D, H, W), on the same device.
        present: bool (C,), channels that the case has; at least one of them is kept.
        rng: generator of the sample.
        geometry: mirroring, rotation and scale.
        intensity: intensity transforms, sampled for each channel.
        channel_dropout: probability of setting a channel to 0.
    """
    size = (image.shape[1], image.shape[2], image.shape[3])
    affine = sampling.sample_affine(rng, size, geometry)
    moved = resampling.resample(image, affine, size)
    inside = resampling.resample(valid.float(), affine, size) > 0.5
    channels = np.flatnonzero(present)
    dropped = rng.random(len(present)) < channel_dropout
    dropped[int(rng.choice(channels))] = False
    out = torch.zeros_like(moved)
    for channel in channels:
        parameters = transforms.sample_intensity_parameters(rng, intensity)
        noise = make_torch_generator(image.device, int(rng.integers(2**31)))
        if not dropped[channel]:
            view = transforms.intensity_transform(moved[channel : channel + 1], inside, parameters)
            out[channel] = transforms.degradation_transform(view, inside, parameters, noise)[0]
    return out, inside


def target_scale(cases: Sequence[TaskCase], spec: TaskSpec) -> tuple[float, float]:
    """Return mean and standard deviation of regression targets, or 0 and 1 for other tasks."""
    if spec.kind != "regression":
        return 0.0, 1.0
    values = np.array([case.target for case in cases], dtype=np.float64)
    return float(values.mean()), float(max(values.std(), 1e-12))


class FoldTraining:
    """Trains a network on the training cases of a fold.

    Args:
        network: freshly built.
        cases: training cases with targets.
        samples: prepared cases by name.
        spec: the task.
        settings: of the fine-tuning.
        number: of the fold.
        folder: of the checkpoints.
    """

    def __init__(
        self,
        network: GlobalNetwork,
        cases: Sequence[TaskCase],
        samples: Mapping[str, Sample],
        spec: TaskSpec,
        settings: TaskTraining,
        number: int,
        folder: Path,
    ) -> None:
        self.device = choose_device(settings.device)
        self.network, self.cases, self.samples = network.to(self.device), list(cases), samples
        self.spec, self.settings, self.number, self.folder = spec, settings, number, folder
        precision = settle(settings.precision, self.device, key="precision").precision
        self.autocast = partial(autocast, self.device, precision)
        self.scaler = gradient_scaler(self.device, precision)
        self.scale = target_scale(cases, spec)
        targets = [case.target for case in cases if case.target is not None]
        self.weights = class_weights(targets, spec) if settings.class_weights else None
        self._set_trainable(0)
        self.optimizer = torch.optim.AdamW(parameter_groups(network, settings), lr=settings.lr)
        self.steps_per_epoch = max(1, math.ceil(len(self.cases) / settings.batch))
        self.losses: list[float] = []

    def run(self) -> None:
        """Train to the end, resuming from the newest checkpoint.

        Raises:
            UserError: the loss is not finite, or the checkpoint has other settings or cases.
        """
        start = self._restore()
        if not start:
            self.network.standardise(torch.cat([self._vector(case) for case in self.cases]))
        for epoch in range(start, self.settings.epochs):
            first = epoch * self.steps_per_epoch
            losses = [self._step(epoch, first + k) for k in range(self.steps_per_epoch)]
            self.losses.append(float(np.mean(losses)))
            if not math.isfinite(self.losses[-1]):
                raise UserError(f"The loss of fold {self.number} is not finite in epoch {epoch + 1}; reduce lr.")
            self._save(epoch + 1)
            _log.info("fold %d  epoch %d/%d  loss %.4f", self.number, epoch + 1, self.settings.epochs, self.losses[-1])
        self.network.fold_standardisation()

    @torch.no_grad()
    def _vector(self, case: TaskCase) -> Tensor:
        """Return the pooled features (1, width) of a training case without augmentation."""
        self.network.eval()
        with self.autocast():
            return self.network.vectors(*sample_tensors(self.samples[case.case], self.device))

    def _step(self, epoch: int, step: int) -> float:
        """Run one optimizer step and return its loss."""
        settings = self.settings
        self._set_trainable(epoch)
        cases = self._sample_cases(epoch, step)
        weights = torch.ones(len(cases)) if self.weights is None else self.weights[[int(c.target) for c in cases]]  # type: ignore[arg-type]
        torch.manual_seed(derive_seed(settings.seed, self.number, step, "dropout"))
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in np.array_split(np.arange(len(cases)), min(settings.accumulate, len(cases))):
            chosen = [cases[k] for k in part]
            images, valid = self._batch(chosen, step, int(part[0]))
            with self.autocast():
                outputs = self.network(images, valid)
            losses = case_losses(outputs, self.targets(chosen), self.spec, settings.smoothing)
            loss = (losses * weights[part].to(losses)).sum() / weights.sum().to(losses)
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(step, self.steps_per_epoch * settings.epochs, settings)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total

    def _set_trainable(self, epoch: int) -> None:
        settings = self.settings
        self.network.train()
        if settings.mode in adapters.MODES:
            adapters.train_few(self.network.backbone, settings.mode)
            return
        frozen = settings.mode == "frozen" or (settings.mode == "head_first" and epoch < settings.head_epochs)
        self.network.backbone.requires_grad_(not frozen)

    def _sample_cases(self, epoch: int, step: int) -> list[TaskCase]:
        """Return the cases of a step: a part of the shuffled epoch, or classes in turn if `balanced`."""
        settings = self.settings
        if settings.balanced and self.spec.kind in ("binary", "multiclass"):
            rng = make_rng(settings.seed, self.number, step, "balanced")
            classes = [[c for c in self.cases if c.target == k] for k in range(self.spec.outputs)]
            turns = [(step * settings.batch + slot) % len(classes) for slot in range(settings.batch)]
            return [classes[k][int(rng.integers(len(classes[k])))] for k in turns]
        order = make_rng(settings.seed, self.number, epoch, "order").permutation(len(self.cases))
        first = (step - epoch * self.steps_per_epoch) * settings.batch
        return [self.cases[k] for k in order[first : first + settings.batch]]

    @property
    def mirrored(self) -> bool:
        """Whether images are mirrored along each axis: not where left and right differ."""
        return self.settings.augment.mirror and not self.spec.laterality

    def _batch(self, cases: Sequence[TaskCase], step: int, first: int) -> tuple[Tensor, Tensor]:
        """Return augmented images (N, C, D, H, W) and valid voxels; `first` is the first case's index in the step."""
        settings = self.settings.augment
        size = self.samples[cases[0].case].image.shape[1:]
        geometry = ViewSamplingConfig(
            size=(size[0], size[1], size[2]),
            mirror=self.mirrored,
            p_rotation=settings.p_rotation,
            rotation_degrees=settings.rotation_degrees,
            p_scale=settings.p_scale,
            scale=settings.scale,
        )
        intensity = settings.photometric
        pairs = []
        for slot, case in enumerate(cases, first):
            sample = self.samples[case.case]
            image, valid = sample_tensors(sample, self.device)
            rng = make_rng(self.settings.seed, self.number, step, slot, "augment")
            pairs.append(
                augment(image[0], valid[0], sample.present, rng, geometry, intensity, settings.channel_dropout)
            )
        images, masks = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(masks)

    def targets(self, cases: Sequence[TaskCase]) -> Tensor:
        """Return targets for the loss: class indices, labels, or standardised values."""
        raw = np.array([case.target for case in cases])
        if self.spec.kind == "regression":
            mean, deviation = self.scale
            targets = torch.from_numpy((raw.astype(np.float64) - mean) / deviation).float()
        elif self.spec.kind == "multilabel":
            targets = torch.from_numpy(raw).float()
        else:
            targets = torch.from_numpy(raw.astype(np.int64))
        return targets.to(self.device)

    def _save(self, epoch: int) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": self.losses,
            "settings": self.settings.model_dump(mode="json", exclude={"device"}),
            "cases": [case.case for case in self.cases],
        }
        checkpoints.save(self.folder, epoch, state)
        checkpoints.prune(self.folder, 1)

    def _restore(self) -> int:
        """Load the newest checkpoint and return its epoch, or 0."""
        state = checkpoints.resume_newest(self.folder)
        if state is None:
            return 0
        changes = settings_that_differ(checked(TaskTraining, state["settings"], str(self.folder)), self.settings)
        if changes or state["cases"] != [case.case for case in self.cases]:
            what = f"settings ({changes})" if changes else "cases"
            raise UserError(f"{self.folder.parent} contains a fold with other {what}; choose another folder.")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # empty unless the precision was fp16
            self.scaler.load_state_dict(state["scaler"])
        self.losses = list(state["losses"])
        return int(state["step"])


def learning_rate(step: int, steps: int, settings: TaskTraining) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine to 0."""
    share = 0.1 if settings.warmup_epochs is None else min(1.0, settings.warmup_epochs / settings.epochs)
    warmup = round(share * steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def parameter_groups(network: GlobalNetwork, settings: TaskTraining) -> list[dict[str, object]]:
    """Group parameters by learning rate and weight decay; norms, biases and position embeddings do not decay."""
    above = _layers_above(network)
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if settings.mode in adapters.MODES and not parameter.requires_grad:
            continue
        scale = settings.layer_decay ** above.get(id(parameter), 0) if settings.mode == "layerwise" else 1.0
        decays = parameter.ndim > 1 and not name.endswith(_NO_DECAY)
        groups.setdefault((scale, decays), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "weight_decay": settings.weight_decay if decays else 0.0}
        for (scale, decays), parameters in groups.items()
    ]


def _layers_above(network: GlobalNetwork) -> dict[int, int]:
    """Return how many blocks a backbone's parameters are below the head, by id.

    What follows the blocks, such as the last norm of a Primus, belongs to the last of them. The feature decoder of a
    Primus counts only if features pass it.
    """
    passed = network.pooling.kind == "pretrained"
    skipped = {id(p) for n, p in network.backbone.named_parameters() if n.startswith("feature_decoder.") and not passed}
    blocks = [b for b in network.backbone.blocks() if not any(id(p) in skipped for p in b.parameters())]
    depth = {id(p): k for k, block in enumerate(blocks) for p in block.parameters()}
    above, current = {}, -1
    for name, parameter in network.backbone.named_parameters():
        current = depth.get(id(parameter), current)
        first = "down_projection." in name or name.endswith(_NO_DECAY)
        above[id(parameter)] = len(blocks) - (-1 if first else current)
    return above


def flipped_axes(flips: bool) -> list[tuple[int, ...]]:
    """Return the axes of (N, C, D, H, W) to mirror in each pass: none in one pass, or all eight combinations."""
    return [tuple(2 + a for a in range(3) if bits >> a & 1) for bits in range(8 if flips else 1)]


@torch.no_grad()
def predict_sample(
    network: GlobalNetwork,
    sample: Sample,
    spec: TaskSpec,
    scale: tuple[float, float],
    device: str = "cpu",
    flips: bool = False,
) -> NDArray[np.float64]:
    """Return a case's probabilities (K,) or value (1,), with `flips` the mean over all eight mirrorings."""
    network.eval()
    image, valid = sample_tensors(sample, device)
    outputs = [network(image.flip(axes), valid.flip(axes)).double().cpu() for axes in flipped_axes(flips)]
    values = [predictions_from_outputs(out, spec, *scale).numpy() for out in outputs]
    mean: NDArray[np.float64] = np.mean(values, axis=0).reshape(-1)
    return mean
