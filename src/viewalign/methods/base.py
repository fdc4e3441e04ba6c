"""What a pretraining method is to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from viewalign.networks.backbone import Backbone
from viewalign.views.batch import ViewBatch


@dataclass(frozen=True)
class StepResult:
    """What one step gives.

    Attributes:
        loss: a scalar with gradient.
        logs: detached scalars by name, on the device they were made on.
        features: detached (rows, C) tensors by name for the health panel; made only when the loop asks for them.
        pictures: detached images by name for the report; made only when the loop asks for them.
    """

    loss: Tensor
    logs: dict[str, Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """A pretraining method: parameters and a step. The loop knows nothing else about it."""

    @abstractmethod
    def step(self, batch: ViewBatch, *, examine: bool = False) -> StepResult:
        """Return the loss of a batch; with `examine`, features for the health panel and pictures too."""

    @abstractmethod
    def after_update(self, step: int) -> None:
        """Do what follows a real optimizer step, such as moving a teacher."""

    @abstractmethod
    def encoder(self) -> Backbone:
        """Return the backbone whose weights are exported."""

    def forward(self, batch: ViewBatch, examine: bool = False) -> StepResult:
        """Run `step`: the name under which wrappers for many processes call it."""
        return self.step(batch, examine=examine)
