"""A network with its heads: the student's branch, or the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.networks.masking import BlockMask
from viewalign.views.alignment import valid_share

Projected = Literal["both", "pooled", "none"]
"""What passes the heads: dense and pooled features, pooled ones alone, or nothing."""
Source = Literal["encoder", "decoder"]
"""Whose maps are the dense features."""
Head = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Features:
    """One network's features of a batch of views (N = V·B images, first views first).

    Attributes:
        dense: the maps (N, C, d, h, w) that are compared place by place, finest first.
        pooled: (N, C) one vector an image.
        decoded: the decoder's maps, or empty where nobody asked for them.
    """

    dense: list[Tensor]
    pooled: Tensor
    decoded: list[Tensor]


class ProjectionBranch(nn.Module):
    """A backbone with projectors and predictors.

    Dense and pooled features of an encoder share a projector and a predictor, as published; those of a decoder have
    channels of their own and so heads of their own (`dense_projector`, `dense_predictor`).

    Args:
        backbone: what makes the features.
        source: whose maps are the dense features.
        projected: which features pass heads.
        width, predictor_width, norm: of the heads.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: Source = "encoder",
        projected: Projected = "both",
        width: int = 2048,
        predictor_width: int = 512,
        norm: heads.Norm = "batch",
    ) -> None:
        super().__init__()
        self.backbone, self.source, self.projected = backbone, source, projected
        self.projector: heads.MLP | None = None
        self.predictor: heads.MLP | None = None
        self.dense_projector: heads.MLP | None = None
        self.dense_predictor: heads.MLP | None = None
        if projected != "none":
            self.projector = heads.projector(backbone.pooled_channels, width, norm)
            self.predictor = heads.predictor(width, predictor_width, norm)
        if projected == "both" and source == "decoder":
            self.dense_projector = heads.projector(sum(backbone.decoder_channels), width, norm)
            self.dense_predictor = heads.predictor(width, predictor_width, norm)

    def become_teacher(self) -> None:
        """Remove what a teacher does not have: predictors, and the decoder unless its maps are the dense features."""
        self.predictor = self.dense_predictor = None
        if self.source == "encoder":
            self.backbone.drop_decoder()

    def features(self, images: Tensor, valid: Tensor, mask: BlockMask | None = None, decode: bool = False) -> Features:
        """Encode images (N, C, D, H, W), of which `valid` (N, 1, D, H, W) says what counts; `decode` decodes too."""
        encoded = self.backbone.encode(images, mask)
        maps = self.backbone.dense(encoded)
        shares = [valid_share(valid, (m.shape[2], m.shape[3], m.shape[4])) for m in maps]
        decoded = self.backbone.decode(encoded) if decode or self.source == "decoder" else []
        return Features(decoded if self.source == "decoder" else maps, self.backbone.pool(maps, shares), decoded)

    def dense_head(self) -> Head | None:
        """Return what maps rows (N, C) with weights (N,) of dense features; None where these pass no head."""
        if self.projected != "both":
            return None
        own = self.source == "decoder"
        return _chain(self.dense_projector if own else self.projector, self.dense_predictor if own else self.predictor)

    def pooled_head(self) -> Head | None:
        """Return the same for pooled features."""
        return _chain(self.projector, self.predictor)


def _chain(projector: heads.MLP | None, predictor: heads.MLP | None) -> Head | None:
    if projector is None:
        return None
    return projector if predictor is None else partial(_both, projector, predictor)


def _both(projector: heads.MLP, predictor: heads.MLP, rows: Tensor, share: Tensor) -> Tensor:
    out: Tensor = predictor(projector(rows, share), share)
    return out
