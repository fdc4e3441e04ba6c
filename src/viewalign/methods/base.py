"""The interface between pretraining methods and the training loop."""

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
"""Outputs of the networks by name: tensors (V, B, ...), so that parts of a batch can be joined along B."""


@dataclass(frozen=True)
class MethodRequirements:
    """What a method needs of views, volumes and processes; its module returns it from `requirements(recipe)`.

    Attributes:
        sampler: samples the views of a volume.
        group: volumes that are processed together; the batch of a process, and each part of it, is a multiple.
        needs_multiple_subjects: advice if all volumes are of one subject; empty if that is allowed.
        distinct_subjects: whether a batch has a second volume of a subject only if there are no other subjects left.
        min_valid: views with a smaller fraction of voxels inside the volume are excluded from all losses, which compare
            views of one volume.
        aligned: whether features of two views are compared at corresponding positions.
        has_unused_parameters: whether some trainable parameters get no gradient, for which processes would wait.
        deterministic: whether all operations can be deterministic on a GPU; see `runtime.deterministic`.
        images: images per volume that pass the networks, for estimates of cost.
        teacher_images: images per volume that pass the encoder of a teacher, except CVA's, for estimates of cost.
        uses_decoder, drops_tokens: whether images are decoded, and whether a transformer drops masked tokens, for the
            same estimates.
    """

    sampler: ViewSampler = sample_one
    group: int = 1
    needs_multiple_subjects: str = ""
    distinct_subjects: bool = False
    min_valid: float = 0.0
    aligned: bool = False
    has_unused_parameters: bool = False
    deterministic: bool = True
    images: float = 1.0
    teacher_images: float = 0.0
    uses_decoder: bool = True
    drops_tokens: bool = False


@dataclass(frozen=True)
class StepResult:
    """Result of one step.

    Attributes:
        loss: a scalar with gradient.
        logs: detached scalars by name, on their device.
        features: detached (rows, C) by name for the health figures; only with `return_diagnostics`.
        pictures: detached images (V·B, ...) by name for the report, first views first; only with `return_diagnostics`.
            The report shows "input" (of the network), "reconstruction", "targets" (if not the view itself), "mask" and
            "features".
    """

    loss: Tensor
    logs: dict[str, Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """A pretraining method: its networks and a step in two halves.

    `forward_features` processes each image separately; everything that compares or normalises over images is in
    `compute_loss`. A batch that does not fit into memory can therefore be processed in parts and still have the
    loss of the whole batch (`training/accumulate.py`).
    """

    @abstractmethod
    def forward_features(self, batch: ViewBatch, *, return_diagnostics: bool = False, targets: bool = True) -> Latents:
        """Run the networks.

        The output of an image may only depend on that image (or on its group, see `MethodRequirements`) and on random
        numbers derived from it. Without `targets`, outputs that need no gradient (of a teacher) may be left out.
        """

    @abstractmethod
    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:
        """Return the loss of a batch from its latents, with features and pictures if `return_diagnostics`."""

    def after_update(self, step: int, made: Tensor | None = None) -> None:
        """Run after optimizer step number `step` (from 1), for example to update a teacher.

        Args:
            step: without skipped steps.
            made: scalar on the parameters' device, 1 if the step was made, 0 if it was skipped and nothing may change;
                reading it would synchronise with the GPU. None if it was made.
        """

    @abstractmethod
    def encoder(self) -> Backbone:
        """Return the backbone whose weights are exported."""

    def forward(self, batch: ViewBatch, return_diagnostics: bool = False) -> StepResult:
        """Run one step on a batch."""
        latents = self.forward_features(batch, return_diagnostics=return_diagnostics)
        return self.compute_loss(batch, latents, return_diagnostics=return_diagnostics)


def join(parts: Sequence[Latents]) -> Latents:
    """Join the latents of the parts of a batch."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
