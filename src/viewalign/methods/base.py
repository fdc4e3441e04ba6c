"""What a pretraining method is to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from viewalign.networks.backbone import Backbone
from viewalign.views.batch import ViewBatch
from viewalign.views.sampling import ViewSampler, sample_one

Latents = dict[str, Tensor]
"""What the networks made of a batch, by name: tensors (V, B, ...), so that parts of a batch can be joined along B."""


@dataclass(frozen=True)
class MethodRequirements:
    """What a method asks of views, volumes and processes; its module says it in `asks(recipe)`, before it is built.

    Attributes:
        draw: draws the views of a volume.
        group: how many volumes of a batch are seen together; a process's share, and each part of it, are multiples.
        strangers: what to do, in a sentence, where all volumes are of one subject; empty where that does no harm.
        aligned: whether features of two views are compared place by place, so that a run tells how exactly.
        idle: whether some parameters that learn get no gradient, for which processes would wait.
        repeats: whether all that it computes can be the same at every run on a GPU; see `runtime.deterministic`.
        images: how many images networks see of each volume, for estimates of cost.
        decodes, drops: whether they are decoded, and whether a transformer leaves masked tokens out; for the same.
    """

    draw: ViewSampler = sample_one
    group: int = 1
    needs_multiple_subjects: str = ""
    aligned: bool = False
    has_unused_parameters: bool = False
    repeats: bool = True
    images: float = 1.0
    uses_decoder: bool = True
    drops_tokens: bool = False


@dataclass(frozen=True)
class StepResult:
    """What one step gives.

    Attributes:
        loss: a scalar with gradient.
        logs: detached scalars by name, on the device they were made on.
        features: detached (rows, C) tensors by name for the health panel; made only when the loop asks for them.
        pictures: detached images (V·B, ...) by name for the report, first views first; made only when the loop asks
            for them. It draws "input" (what the network saw), "reconstruction", "targets" (where it is not the
            view itself), "mask" and "features".
    """

    loss: Tensor
    logs: dict[str, Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """A pretraining method: parameters and a step in two halves. The loop knows nothing else about it.

    Networks work image by image in `latents`; whatever compares images, or normalises over them, is in `judge`. So a
    batch that does not fit into memory can pass the networks in parts and still be judged as a whole
    (`training/accumulate.py`).
    """

    @abstractmethod
    def forward_features(self, batch: ViewBatch, *, return_diagnostics: bool = False, targets: bool = True) -> Latents:
        """Run the networks.

        What an image gives may depend on that image alone (or on its group, see `Asks`), and on no generator that lives
        on. Without `targets`, what needs no gradient (a teacher's part) may be left out.
        """

    @abstractmethod
    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:
        """Return the loss of a batch's latents; with `examine`, features for the health panel and pictures too."""

    def after_update(self, step: int, made: Tensor | None = None) -> None:
        """Do what follows the `step`-th optimizer step (from 1), such as moving a teacher.

        Args:
            step: number of the step, skipped ones not counted.
            made: a scalar on the device of the parameters, 1 where the optimizer's step was made and 0 where it was
                skipped, after which nothing may change; to read it would make the program wait for a GPU. None where
                the step was made.
        """

    @abstractmethod
    def encoder(self) -> Backbone:
        """Return the backbone whose weights are exported."""

    def step(self, batch: ViewBatch, *, return_diagnostics: bool = False) -> StepResult:
        """Return the loss of a batch; see `judge`."""
        return self.compute_loss(
            batch,
            self.forward_features(batch, return_diagnostics=return_diagnostics),
            return_diagnostics=return_diagnostics,
        )

    def forward(self, batch: ViewBatch, return_diagnostics: bool = False) -> StepResult:
        """Run `step`: the name under which wrappers for many processes call it."""
        return self.step(batch, return_diagnostics=return_diagnostics)


def join(parts: Sequence[Latents]) -> Latents:
    """Join the latents of a batch's parts."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
