"""Learning rate and stages of a fine-tuning as functions of the epoch, so that they are the same after resuming.

Defaults are the published schedules of the SSL3D fine-tuning: linear warm-up and polynomial decay, optionally after a
stage with a frozen encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from viewalign.utils.text import counted
from viewalign.weights.names import Family

Stage = Literal["frozen", "whole"]
_POWER = 0.9


@dataclass(frozen=True)
class Schedule:
    """Schedule of a fine-tuning.

    Attributes:
        epochs: in total, including the frozen stage.
        iterations, validation_iterations: steps per epoch.
        optimizer: "sgd" (Nesterov, momentum 0.99) or "adamw" (betas 0.9, 0.98).
        lr: peak learning rate of the whole network.
        weight_decay: of the optimizer.
        clip: maximum gradient norm.
        warmup_epochs: epochs of linear warm-up.
        frozen: first epochs with a frozen encoder; the first half of them is a warm-up.
        frozen_scale: learning rate of the frozen stage relative to `lr`.
        drop_path: stochastic depth of a Primus.
        precision: "auto" as nnU-Net (float16 with a scaler on CUDA, float32 elsewhere), "fp32" or "bf16".
        mirror: whether to mirror images in training and average over mirrored images in prediction.
        tta: whether to average over mirrored images in the final validation, which takes 8 times as long.
        save_every: epochs between checkpoints.
        seed: of the decoder's initial weights and, with a single process, of patches and augmentation.
    """

    epochs: int = 1000
    iterations: int = 250
    validation_iterations: int = 50
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    weight_decay: float = 3e-5
    clip: float = 12.0
    warmup_epochs: int = 50
    frozen: int = 0
    frozen_scale: float = 1.0
    drop_path: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    mirror: bool = True
    tta: bool = True
    save_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.frozen + self.warmup_epochs >= self.epochs and self.epochs > 1:
            raise ValueError(
                f"{counted(self.frozen, 'frozen epoch')} and {counted(self.warmup_epochs, 'warm-up epoch')} leave none "
                f"of {self.epochs} for training"
            )

    @classmethod
    def from_plan(cls, block: Mapping[str, Any]) -> Schedule:
        """Read a schedule from a plan, ignoring unknown keys; missing keys have their defaults."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in block.items() if key in known})

    def as_json(self) -> dict[str, Any]:
        """Return plain values for a plan."""
        return asdict(self)

    def stage(self, epoch: int) -> Stage:
        """Return the stage of an epoch, counted from 0."""
        return "frozen" if epoch < self.frozen else "whole"

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        if self.stage(epoch) == "frozen":
            return self.frozen_scale * _warmup_and_decay(self.lr, epoch, self.frozen // 2, self.frozen)
        return _warmup_and_decay(self.lr, epoch - self.frozen, self.warmup_epochs, self.epochs - self.frozen)


def _warmup_and_decay(peak: float, epoch: int, warmup: int, epochs: int) -> float:
    """Return the learning rate for a linear warm-up and a polynomial decay over the remaining epochs."""
    if epoch < warmup:
        return peak * (epoch + 1) / warmup
    left = max(0.0, 1.0 - (epoch - warmup) / max(1, epochs - warmup))
    return float(peak * left**_POWER)


def published(family: Family, epochs: int = 1000, from_scratch: bool = False, sawtooth: bool = False) -> Schedule:
    """Return the published schedule of a network, scaled to a number of epochs.

    The warm-up is 50 of 1000 epochs and a tenth of shorter runs (15 of 150, 3 of 30). From scratch the learning rate is
    higher: 1e-2 instead of 1e-3 for a ResEnc, 3e-4 instead of 1e-4 for a Primus. `sawtooth` first trains with a frozen
    encoder for as many epochs as the warm-up; the decoder of a Primus then has a tenth of the rate.
    """
    warmup = min(50, round(0.1 * epochs))
    frozen = warmup if sawtooth else 0
    if family == "resenc":
        return Schedule(epochs, lr=1e-2 if from_scratch else 1e-3, warmup_epochs=warmup, frozen=frozen)
    lr = 3e-4 if from_scratch else 1e-4
    return Schedule(
        epochs,
        optimizer="adamw",
        lr=lr,
        weight_decay=5e-2,
        clip=1.0,
        warmup_epochs=warmup,
        frozen=frozen,
        frozen_scale=0.1,
    )
