"""How a fine-tuning goes: its stages and learning rates, as functions of the epoch and of nothing else.

What depends on the epoch alone is right after every resume. The published schedules of the SSL3D fine-tuning are the
defaults: a linear warm-up, then a polynomial decay; optionally a first stage in which the encoder is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from viewalign.weights.names import Family

Stage = Literal["frozen", "whole"]
_POWER = 0.9


@dataclass(frozen=True)
class Schedule:
    """A fine-tuning.

    Attributes:
        epochs: in all, a frozen first stage included.
        iterations, validation_iterations: of an epoch.
        optimizer: "sgd" (Nesterov, momentum 0.99) or "adamw" (betas 0.9, 0.98).
        lr: the highest learning rate of the whole network.
        weight_decay: as torch means it.
        clip: the largest norm of a step's gradient.
        warmup_epochs: epochs in which the rate rises linearly to `lr`.
        frozen: epochs at the beginning in which the encoder is frozen; the first half of them is a warm-up.
        frozen_scale: the rate of that stage as a share of `lr`.
        drop_path: stochastic depth of a Primus.
        precision: "auto" as nnU-Net (float16 with a scaler on CUDA, float32 elsewhere), "fp32" or "bf16".
        mirror: whether training mirrors images, and prediction averages over mirrored ones.
        tta: whether the validation at the end averages over mirrored images too; eight times as long.
        save_every: epochs between checkpoints to resume from.
        seed: of the decoder's first weights and, where one process draws them, of patches and augmentation.
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
                f"{self.frozen} frozen epochs and {self.warmup_epochs} of warm-up leave none of {self.epochs} to "
                "train in"
            )

    @classmethod
    def from_plan(cls, block: Mapping[str, Any]) -> Schedule:
        """Read a schedule from a plan; keys that are not known here are left out, missing ones take their default."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in block.items() if key in known})

    def as_json(self) -> dict[str, Any]:
        """Return plain values for a plan."""
        return asdict(self)

    def stage(self, epoch: int) -> Stage:
        """Return what is trained in an epoch, counted from 0."""
        return "frozen" if epoch < self.frozen else "whole"

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        if self.stage(epoch) == "frozen":
            return self.frozen_scale * _rise_and_fall(self.lr, epoch, self.frozen // 2, self.frozen)
        return _rise_and_fall(self.lr, epoch - self.frozen, self.warmup_epochs, self.epochs - self.frozen)


def _rise_and_fall(top: float, epoch: int, warmup: int, epochs: int) -> float:
    """Return the rate after a linear rise over `warmup` epochs and a polynomial decay over the rest."""
    if epoch < warmup:
        return top * (epoch + 1) / warmup
    left = max(0.0, 1.0 - (epoch - warmup) / max(1, epochs - warmup))
    return float(top * left**_POWER)


def published(family: Family, epochs: int = 1000, from_scratch: bool = False, sawtooth: bool = False) -> Schedule:
    """Return the published schedule of a network for a length.

    Warm-ups are of 50 epochs in 1000 and of a tenth in shorter runs (15 of 150, 3 of 30). From scratch the rate is
    the one of networks that know nothing: 1e-2 in place of 1e-3 for a ResEnc, 3e-4 in place of 1e-4 for a Primus. A
    sawtooth freezes the encoder for as long as a warm-up first; a Primus's decoder then takes a tenth of the rate.
    """
    tenth = min(50, round(0.1 * epochs))
    frozen = tenth if sawtooth else 0
    if family == "primus":
        lr = 3e-4 if from_scratch else 1e-4
        scale = 0.1
        return Schedule(
            epochs,
            optimizer="adamw",
            lr=lr,
            weight_decay=5e-2,
            clip=1.0,
            warmup_epochs=tenth,
            frozen=frozen,
            frozen_scale=scale,
        )
    return Schedule(epochs, lr=1e-2 if from_scratch else 1e-3, warmup_epochs=tenth, frozen=frozen)
