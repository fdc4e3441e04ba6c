"""From feature maps to one vector an image. Padding counts in none: each cell weighs what share of it is valid."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from viewalign.networks.backbone import Backbone
from viewalign.precision import full_precision, raised
from viewalign.views.alignment import valid_share

Pool = Literal["average", "multistage", "attention", "pretrained"]


def maps_of(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return the encoder's maps (N, C, d, h, w), finest first; a transformer has one."""
    encoded = backbone.encode(images)
    if encoded.tokens is None:
        return list(encoded.maps)
    return [encoded.tokens.transpose(1, 2).unflatten(2, encoded.grid)]


@full_precision
def weighted_mean(features: Tensor, valid: Tensor) -> Tensor:
    """Average a map (N, C, d, h, w) over what is valid (N, 1, D, H, W); float32 (N, C)."""
    share = valid_share(valid, (features.shape[2], features.shape[3], features.shape[4]))
    weight = share / share.sum((2, 3, 4), keepdim=True).clamp(min=1e-6)
    return (raised(features) * weight).sum((2, 3, 4))


class Pooling(nn.Module):
    """One vector an image, by one of four ways.

    `average` takes the coarsest map's mean, `multistage` the means of all maps (for a transformer they are one),
    `attention` a learned weighting of the coarsest map's cells, `pretrained` what pretraining pooled by: all stages of
    a ResEnc, the feature decoder and attention of a Primus.
    """

    def __init__(self, backbone: Backbone, kind: Pool) -> None:
        super().__init__()
        self.kind = kind
        last, everything = backbone.stage_channels[-1], sum(backbone.stage_channels)
        self.width = {"average": last, "attention": last, "multistage": everything}.get(kind, backbone.pooled_channels)
        self.score = nn.Linear(last, 1) if kind == "attention" else None
        if self.score is not None:  # begins as the average
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)

    def forward(self, backbone: Backbone, images: Tensor, valid: Tensor) -> Tensor:
        """Encode and pool images (N, C, D, H, W) with their valid voxels (N, 1, D, H, W); float32 (N, width)."""
        if self.kind == "pretrained":
            dense = backbone.dense(backbone.encode(images))
            shares = [valid_share(valid, (m.shape[2], m.shape[3], m.shape[4])) for m in dense]
            return backbone.pool(dense, shares)
        maps = maps_of(backbone, images)
        if self.kind == "multistage":
            return torch.cat([weighted_mean(one, valid) for one in maps], dim=1)
        if self.score is None:
            return weighted_mean(maps[-1], valid)
        return self._attended(maps[-1], valid)

    def _attended(self, features: Tensor, valid: Tensor) -> Tensor:
        assert self.score is not None
        cells = raised(features).flatten(2).transpose(1, 2)
        share = valid_share(valid, (features.shape[2], features.shape[3], features.shape[4])).flatten(1)
        score = self.score(cells)[..., 0].float() + share.clamp(min=1e-6).log()
        return (torch.softmax(score, dim=1)[..., None] * cells).sum(1)
