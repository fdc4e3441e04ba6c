"""One vector an image, from the encoder's own maps: what SimCLR and VoCo compare."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from viewalign.methods.base import Latents
from viewalign.methods.dense_features import grid_of
from viewalign.methods.single_network import SingleNetwork
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.networks.layers import mean_vectors
from viewalign.views.alignment import valid_share
from viewalign.views.batch import ViewBatch


def pooled(maps: Sequence[Tensor], valid: Tensor) -> Tensor:
    """Return one vector (N, ΣC) an image: the mean of each map over its valid cells, concatenated; float32.

    Args:
        maps: of a network, (N, C, d, h, w) each.
        valid: (N, 1, D, H, W) of the views they were made from.
    """
    return mean_vectors(maps, [valid_share(valid, grid_of(one)) for one in maps])


class PooledComparison(SingleNetwork):
    """An encoder and a projector of its pooled features; what is asked of them is the method's own (`judge`).

    Args:
        backbone: what is trained.
        width, norm: of the projector.
        seed: stochastic depth derives from (seed, sample, view).
    """

    def __init__(self, backbone: Backbone, width: int = 2048, norm: heads.Norm = "batch", *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.projector = heads.projector(backbone.map_channels, width, norm)
        backbone.freeze_unused()

    def run(self, batch: ViewBatch) -> Latents:
        """Encode whole views and pool the encoder's own maps over what is valid."""
        self.sample_drop_path(batch)
        maps = self.backbone.maps(self.backbone.encode(batch.views.flatten(0, 1)))
        return {"pooled": pooled(maps, batch.valid.flatten(0, 1)).unflatten(0, batch.count)}
