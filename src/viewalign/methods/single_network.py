"""What methods of one network have in common: what is exported, examined, drawn at random, and told of a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from viewalign.methods import rng
from viewalign.methods.base import Latents, Method, StepResult
from viewalign.methods.dense_features import grid_of
from viewalign.networks.backbone import Backbone
from viewalign.views.alignment import valid_share
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import common_grid, resize


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

    def forward_features(self, batch: ViewBatch, *, return_diagnostics: bool = False, targets: bool = True) -> Latents:  # noqa: ARG002
        """Run the network, and with `examine` its encoder on whole clean views too."""
        # First: a network that remembers what it hid must remember this batch when activations are worked out again.
        seen = encoder_diagnostics(self.backbone, self.clean(batch)) if return_diagnostics else {}
        return self.run(batch) | seen

    def clean(self, batch: ViewBatch) -> ViewBatch:
        """Return the views that are examined: the batch's own, unless the method's targets lie otherwise."""
        return batch

    def sample_drop_path(self, batch: ViewBatch) -> None:
        """Draw stochastic depth for the images of a batch; none is skipped outside training."""
        rng.sample_drop_path(self.backbone, batch, self._seed, self.training)

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
        rows, shown = rows_of(latents) | dict(features or {}), dict(pictures or {}) | picture_features(latents)
        return StepResult(loss, logs, _detached(rows), _detached(shown))

    def encoder(self) -> Backbone:
        """Return the one network."""
        return self.backbone


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the plain sum of terms."""
    return torch.stack(list(terms.values())).sum()


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}


_MOST_ROWS = 4096
_MOST_CELLS = 8


@torch.no_grad()
def encoder_diagnostics(backbone: Backbone, batch: ViewBatch) -> Latents:
    """Encode whole views before noise and blur, and return their features on one grid of at most 8³ cells.

    Returns:
        "examined" (V, B, ΣC, d, h, w), and "examined_share" (V, B, 1, d, h, w): how valid each cell is.
    """
    backbone.sample_drop_path(None)
    maps = backbone.maps(backbone.encode(batch.targets.flatten(0, 1)))
    grid = common_grid([grid_of(one) for one in maps], _MOST_CELLS)
    joined = torch.cat([resize(one, grid) for one in maps], dim=1)
    share = valid_share(batch.valid.flatten(0, 1), grid)
    return {"examined": joined.unflatten(0, batch.count), "examined_share": share.unflatten(0, batch.count)}


def rows_of(latents: Latents) -> dict[str, Tensor]:
    """Return what the health panel measures, from what `examine` gave: features of at most 4,096 valid cells."""
    if "examined" not in latents:
        return {}
    rows = latents["examined"].flatten(3).transpose(2, 3).flatten(0, 2)
    rows = rows[latents["examined_share"].flatten() >= 0.5]
    return {"encoder": rows[:: max(1, rows.shape[0] // _MOST_ROWS)]}


def picture_features(latents: Latents) -> dict[str, Tensor]:
    """Return the same features as maps (N, C, d, h, w) for the report's picture."""
    return {"features": latents["examined"].flatten(0, 1)} if "examined" in latents else {}
