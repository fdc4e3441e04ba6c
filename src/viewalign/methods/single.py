"""What methods of one network have in common: what is exported, examined, drawn at random, and told of a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from viewalign.methods import draws, examining
from viewalign.methods.base import Latents, Method, StepResult
from viewalign.networks.backbone import Backbone
from viewalign.views.batch import ViewBatch


class SingleNetwork(Method):
    """A method that trains one backbone, perhaps with heads on it; a file says what it asks of it (`run`, `judge`).

    Args:
        backbone: what is trained.
        seed: all that is drawn for an image derives from (seed, sample, view).
    """

    def __init__(self, backbone: Backbone, *, seed: int = 0) -> None:
        super().__init__()
        self.backbone, self._seed = backbone, seed

    @abstractmethod
    def run(self, batch: ViewBatch) -> Latents:
        """Run the network on a batch; see `Method.latents`."""

    def latents(self, batch: ViewBatch, *, examine: bool = False, targets: bool = True) -> Latents:  # noqa: ARG002
        """Run the network, and with `examine` its encoder on whole clean views too."""
        # First: a network that remembers what it hid must remember this batch when activations are worked out again.
        seen = examining.examine(self.backbone, self.clean(batch)) if examine else {}
        return self.run(batch) | seen

    def clean(self, batch: ViewBatch) -> ViewBatch:
        """Return the views that are examined: the batch's own, unless the method's targets lie otherwise."""
        return batch

    def draw_paths(self, batch: ViewBatch) -> None:
        """Draw stochastic depth for the images of a batch; none is skipped outside training."""
        draws.draw_paths(self.backbone, batch, self._seed, self.training)

    def result(
        self,
        loss: Tensor,
        latents: Latents,
        told: Mapping[str, Tensor],
        pictures: Mapping[str, Tensor] | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> StepResult:
        """Return a step's result.

        Args:
            loss: with gradient.
            latents: of the batch.
            told: further scalars by name.
            pictures, features: where the batch was examined, beside what examining gave; see `StepResult`.
        """
        logs = {name: value.detach() for name, value in {"loss": loss, **told}.items()}
        if "examined" not in latents:
            return StepResult(loss, logs)
        rows, shown = examining.rows_of(latents) | dict(features or {}), dict(pictures or {}) | examining.shown(latents)
        return StepResult(loss, logs, _detached(rows), _detached(shown))

    def encoder(self) -> Backbone:
        """Return the one network."""
        return self.backbone


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the plain sum of terms."""
    return torch.stack(list(terms.values())).sum()


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}
