"""What changes each time a case is seen in training: geometry and intensities, by the rules of pretraining's views.

It is worked out on the device that the case lies on: a GPU would wait for a CPU that does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.errors import UserError
from viewalign.finetuning.classification import network as lora
from viewalign.finetuning.classification.network import GlobalNetwork, answers, case_losses, class_weights
from viewalign.finetuning.classification.settings import TaskTraining, settings_that_differ
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Sample, sample_tensors
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.precision import autocast, choose_device, gradient_scaler, settle
from viewalign.utils.rng import derive_seed, make_rng, make_torch_generator
from viewalign.utils.settings import checked
from viewalign.views import intensity as photometric
from viewalign.views import resampling, sampling
from viewalign.views.intensity import IntensityConfig
from viewalign.views.sampling import ViewSamplingConfig
from viewalign.weights import checkpoints


def augment(
    image: Tensor,
    valid: Tensor,
    present: np.ndarray,
    rng: np.random.Generator,
    geometry: ViewSamplingConfig,
    colours: IntensityConfig,
    channel_dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Draw one change of a case.

    Args:
        image: float32 (C, D, H, W), on any device.
        valid: bool (1, D, H, W), on the same.
        present: bool (C,), which channels the case has; at least one of them always stays.
        rng: the sample's own generator.
        geometry: mirror, rotation, scale; its size is the field of view.
        colours: changes of intensity, drawn for each channel by itself.
        channel_dropout: probability that a channel is taken away.
    """
    size = (image.shape[1], image.shape[2], image.shape[3])
    affine = sampling.sample_affine(rng, size, geometry)
    moved = resampling.resample(image, affine, size)
    inside = resampling.resample(valid.float(), affine, size) > 0.5
    kept = np.flatnonzero(present)
    drops = rng.random(len(present)) < channel_dropout
    spared = int(rng.choice(kept))
    out = torch.zeros_like(moved)
    for channel in kept:
        change = photometric.sample_intensity_parameters(rng, colours)
        noise = make_torch_generator(image.device, int(rng.integers(2**31)))
        if not drops[channel] or channel == spared:
            view = photometric.intensity_transform(moved[channel : channel + 1], inside, change)
            out[channel] = photometric.degradation_transform(view, inside, change, noise)[0]
    return out, inside


_NO_DECAY = ("pos_embed",)


def target_scale(cases: Sequence[TaskCase], spec: TaskSpec) -> tuple[float, float]:
    """Return mean and deviation of training targets, by which a regression is standardised; 0 and 1 of classes."""
    if spec.kind != "regression":
        return 0.0, 1.0
    values = np.array([case.target for case in cases], dtype=np.float64)
    return float(values.mean()), float(max(values.std(), 1e-12))


class FoldTraining:
    """Trains one network on the training cases of a fold.

    Args:
        network: freshly built.
        cases: training cases, with targets.
        samples: their tensors by name.
        spec: the task.
        settings: of the fine-tuning.
        number: of the fold.
        folder: where checkpoints go.
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
        settings = settings.model_copy(update={"device": choose_device(settings.device)})
        self.network, self.cases, self.samples = network.to(settings.device), list(cases), samples
        self.spec, self.settings, self.number, self.folder = spec, settings, number, folder
        precision = settle(settings.precision, settings.device, key="precision").precision
        self.autocast = partial(autocast, settings.device, precision)
        self.scaler = gradient_scaler(settings.device, precision)
        self.centre, self.spread = target_scale(cases, spec)
        targets = [case.target for case in cases if case.target is not None]
        self.weights = class_weights(targets, spec) if settings.class_weights else None
        self.optimizer = torch.optim.AdamW(parameter_groups(network, settings), lr=settings.lr)
        self.per_epoch = max(1, math.ceil(len(self.cases) / settings.batch))
        self.losses: list[float] = []

    def run(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Train to the end, from the newest checkpoint where there is one."""
        done = self._restore()
        if not done:
            self.network.standardise(torch.cat([self._vector(case) for case in self.cases]))
        for epoch in range(done, self.settings.epochs):
            losses = [self._step(epoch, epoch * self.per_epoch + k) for k in range(self.per_epoch)]
            self.losses.append(float(np.mean(losses)))
            if not math.isfinite(self.losses[-1]):
                raise UserError(f"The loss of fold {self.number} is not finite in epoch {epoch + 1}; lower lr.")
            self._save(epoch + 1)
            say(f"fold {self.number}  epoch {epoch + 1}/{self.settings.epochs}  loss {self.losses[-1]:.4f}")
        self.network.fold_in()

    @torch.no_grad()
    def _vector(self, case: TaskCase) -> Tensor:
        """Return a training case's features before training, nothing of it changed."""
        self.network.eval()
        with self.autocast():
            return self.network.vectors(*sample_tensors(self.samples[case.case], self.settings.device))

    def _step(self, epoch: int, step: int) -> float:
        settings = self.settings
        frozen = settings.mode == "frozen" or (settings.mode == "head_first" and epoch < settings.head_epochs)
        self.network.train()
        if settings.mode == "lora":
            lora.only_adapters(self.network.backbone)
        else:
            self.network.backbone.requires_grad_(not frozen)
        chosen = self._drawn(epoch, step)
        weights = torch.ones(len(chosen)) if self.weights is None else self.weights[[int(c.target) for c in chosen]]  # type: ignore[arg-type]
        torch.manual_seed(derive_seed(settings.seed, self.number, step, "dropout"))
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in np.array_split(np.arange(len(chosen)), min(settings.accumulate, len(chosen))):
            images, valid = self._batch([chosen[k] for k in part], step, int(part[0]))
            with self.autocast():
                outputs = self.network(images, valid)
            targets = self.targets([chosen[k] for k in part])
            losses = case_losses(outputs, targets, self.spec, settings.smoothing)
            loss = (losses * weights[part].to(losses)).sum() / weights.sum().to(losses)
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * rate(step, self.per_epoch * settings.epochs, settings)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total

    def _drawn(self, epoch: int, step: int) -> list[TaskCase]:
        """Return a step's cases: a share of the epoch's shuffle, or classes drawn equally often."""
        settings = self.settings
        if settings.balanced and self.spec.kind in ("binary", "multiclass"):
            rng = make_rng(settings.seed, self.number, step, "balanced")
            classes = [[c for c in self.cases if c.target == k] for k in range(self.spec.outputs)]
            turns = [(step * settings.batch + slot) % len(classes) for slot in range(settings.batch)]
            return [classes[k][int(rng.integers(len(classes[k])))] for k in turns]
        order = make_rng(settings.seed, self.number, epoch, "order").permutation(len(self.cases))
        first = (step - epoch * self.per_epoch) * settings.batch
        return [self.cases[k] for k in order[first : first + settings.batch]]

    def _batch(self, cases: Sequence[TaskCase], step: int, first: int) -> tuple[Tensor, Tensor]:
        drawn = self.settings.augment
        images, masks = [], []
        for slot, case in enumerate(cases, first):
            sample = self.samples[case.case]
            rng = make_rng(self.settings.seed, self.number, step, slot, "augment")
            size = (sample.image.shape[1], sample.image.shape[2], sample.image.shape[3])
            geometry = ViewSamplingConfig(
                size=size,
                mirror=drawn.mirror and not self.spec.laterality,
                p_rotation=drawn.p_rotation,
                rotation_degrees=drawn.rotation_degrees,
                p_scale=drawn.p_scale,
                scale=drawn.scale,
            )
            whole, seen = sample_tensors(sample, self.settings.device)
            image, valid = augment(
                whole[0],
                seen[0],
                sample.present,
                rng,
                geometry,
                IntensityConfig(**drawn.photometric.model_dump()),
                drawn.channel_dropout,
            )
            images.append(image)
            masks.append(valid)
        return torch.stack(images), torch.stack(masks)

    def targets(self, cases: Sequence[TaskCase]) -> Tensor:
        """Return targets as the loss wants them: class numbers, labels, or standardised values."""
        raw = np.array([case.target for case in cases])
        if self.spec.kind == "regression":
            told = torch.from_numpy((raw.astype(np.float64) - self.centre) / self.spread).float()
        elif self.spec.kind == "multilabel":
            told = torch.from_numpy(raw).float()
        else:
            told = torch.from_numpy(raw.astype(np.int64))
        return told.to(self.settings.device)

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
        state, _ = checkpoints.load_newest(self.folder)
        if state is None:
            return 0
        unlike_before = settings_that_differ(checked(TaskTraining, state["settings"], str(self.folder)), self.settings)
        if unlike_before or state["cases"] != [case.case for case in self.cases]:
            what = f"settings ({unlike_before})" if unlike_before else "cases"
            raise UserError(f"{self.folder.parent} holds a fold of other {what}; choose another folder.")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # empty unless the precision was fp16
            self.scaler.load_state_dict(state["scaler"])
        self.losses = list(state["losses"])
        return int(state["step"])


def rate(step: int, steps: int, settings: TaskTraining) -> float:
    """Return the learning rate of a step: a linear rise over the warm-up, then half a cosine to 0."""
    share = 0.1 if settings.warmup_epochs is None else min(1.0, settings.warmup_epochs / settings.epochs)
    warmup = round(share * steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def parameter_groups(network: GlobalNetwork, settings: TaskTraining) -> list[dict[str, object]]:
    """Group parameters by how fast they learn and whether they decay: norms, biases and positions do not."""
    blocks = network.backbone.blocks()
    depth = {id(p): k for k, block in enumerate(blocks) for p in block.parameters()}
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if settings.mode == "lora" and not parameter.requires_grad:
            continue
        below = 0 if not name.startswith("backbone.") else len(blocks) - depth.get(id(parameter), -1)
        scale = settings.layer_decay**below if settings.mode == "layerwise" else 1.0
        decays = parameter.ndim > 1 and not name.endswith(_NO_DECAY)
        groups.setdefault((scale, decays), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "weight_decay": settings.weight_decay if decays else 0.0}
        for (scale, decays), parameters in groups.items()
    ]


def flipped_axes(flips: bool) -> list[tuple[int, ...]]:
    """Return which axes of (N, C, D, H, W) to mirror for each pass: none once, or all eight ways."""
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
    found = [answers(network(image.flip(one), valid.flip(one)), spec, *scale) for one in flipped_axes(flips)]
    mean: NDArray[np.float64] = np.mean(found, axis=0).reshape(-1)
    return mean
