"""What every backbone offers, so that a method need not know which one it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from viewalign.networks.layers import PlainDecoder
from viewalign.networks.masking import BlockMask

Size = tuple[int, int, int]
_MOST_GRAPHS = 64
"""ResEnc-L needs 18 graphs of an encoder stage: six shapes, each for student and teacher in training and for the
student in validation. torch gives up after 8, and computes the other stages uncompiled."""


@dataclass(frozen=True)
class Encoded:
    """What an encoder made of a batch: feature maps, or tokens of which some were dropped.

    Attributes:
        maps: (N, C, d, h, w) feature maps, finest first; empty for a transformer.
        tokens: (N, kept, C), or None for a CNN.
        kept: (N, kept) indices of the tokens in raster order, or None where all were kept.
        grid: the token grid.
    """

    maps: tuple[Tensor, ...] = ()
    tokens: Tensor | None = None
    kept: Tensor | None = None
    grid: Size = (0, 0, 0)


class Backbone(nn.Module, ABC):
    """An encoder with the parts that pretraining puts around it.

    Attributes:
        stride: views must be a multiple of it, per axis.
        block: what a mask hides at a time, in voxels.
        stage_channels: channels of each map that `dense` returns, finest first.
        decoder_channels: channels of each map that `decode` returns, finest first.
        pooled_channels: length of the vector that `pool` returns.
        recompute: whether activations inside a block are worked out again in the backward pass instead of kept: the
            same gradients for about a third more arithmetic and a fraction of the memory (Chen et al.,
            arXiv:1604.06174).
    """

    stride: Size
    block: Size
    stage_channels: tuple[int, ...]
    decoder_channels: tuple[int, ...]
    pooled_channels: int
    recompute: bool = False

    @abstractmethod
    def encode(self, images: Tensor, mask: BlockMask | None = None, drop: bool = True) -> Encoded:
        """Encode images (N, C, D, H, W), of which `mask` hides blocks.

        A transformer leaves hidden blocks out; unless `drop`, the filler stands in their place from the start.
        """

    @abstractmethod
    def maps(self, encoded: Encoded) -> list[Tensor]:
        """Return the encoder's own maps (N, C, d, h, w), finest first: what an export gives. Needs all tokens."""

    @property
    @abstractmethod
    def map_channels(self) -> int:
        """Channels of all maps of `maps` together."""

    @abstractmethod
    def finest(self, encoded: Encoded) -> Tensor:
        """Return the one map from which voxels are told without further blocks; `paint([finest])` is an image.

        It is the finest decoder map of a U-Net, and the tokens of a transformer, all of which must be there.
        """

    @property
    @abstractmethod
    def finest_channels(self) -> int:
        """Channels of `finest`."""

    @abstractmethod
    def voxel_head(self, outputs: int) -> nn.Module:
        """Build a head from `finest` to `outputs` channels a voxel."""

    @abstractmethod
    def plain_decoder(self) -> PlainDecoder:
        """Build a decoder without skips, from the coarsest of `maps` to the resolution of the image."""

    @abstractmethod
    def dense(self, encoded: Encoded) -> list[Tensor]:
        """Return feature maps (N, C, d, h, w), finest first, that cover the whole view."""

    @abstractmethod
    def pool(self, maps: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
        """Reduce dense maps to one vector (N, C) an image; `shares` (N, 1, d, h, w) say how valid each cell is."""

    @abstractmethod
    def decode(self, encoded: Encoded) -> list[Tensor]:
        """Return the decoder's feature maps (N, C, d, h, w), finest first."""

    @abstractmethod
    def to_image(self, decoded: Sequence[Tensor]) -> Tensor:
        """Return the image (N, C, D, H, W) that the decoder's maps stand for."""

    @abstractmethod
    def drop_decoder(self) -> None:
        """Remove what only reconstruction needs: a teacher has no use for it."""

    @abstractmethod
    def freeze_unused(
        self, *, decode: bool = False, finest: bool = False, to_image: bool = False, fill: bool = False
    ) -> None:
        """Take out of any gradient what a method that does not use `dense` and `pool` leaves idle.

        So processes wait for no gradient that never comes, and no state is kept of what does not learn.

        Args:
            decode, finest, paint: whether these are used.
            fill: whether masked tokens are filled in.
        """

    @abstractmethod
    def grids(self, size: Size) -> list[Size]:
        """Return the grid of each dense map for views of `size` voxels."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Return the parts that repeat and hold nearly all arithmetic, in the order in which data pass them."""

    def reconstruct(self, encoded: Encoded) -> Tensor:
        """Return the image (N, C, D, H, W) that the decoder makes."""
        return self.to_image(self.decode(encoded))

    def decode_with(self, decoder: PlainDecoder, encoded: Encoded) -> list[Tensor]:
        """Return the maps, finest first, that a decoder of `plain_decoder` makes. Needs all tokens."""
        out: list[Tensor] = decoder(self.maps(encoded)[-1], self._run)
        return out

    def sample_drop_path(self, generators: Sequence[np.random.Generator] | None) -> None:
        """Draw stochastic depth for the images that come next, one generator an image; None keeps every path.

        Does nothing in a network without stochastic depth.
        """

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile each block by itself: names of weights stay, and equal blocks share what was compiled.

        Args:
            backend: of `torch.compile`.
        """
        limit = _graph_limit()
        for block in self.blocks():
            block.compile(dynamic=False, backend=backend, **limit)

    def _run(self, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Run a block, keeping no activations inside it where `recompute` is set."""
        if self.recompute and torch.is_grad_enabled():
            # No block draws from torch's own generator: stochastic depth is drawn beforehand (`draw_paths`).
            again: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            return again
        return block(*inputs)

    def check_size(self, size: Size, key: str = "views.size") -> None:
        """Refuse a view size that the network cannot take; `key` is the setting that says it.

        Raises:
            ValueError: a side is no multiple of the stride, or the coarsest map would be a single cell.
        """
        for axis, (n, stride) in enumerate(zip(size, self.stride, strict=True)):
            if n % stride:
                below, above = n // stride * stride, -(-n // stride) * stride
                raise ValueError(
                    f"{key} = {list(size)}: side {axis} is {n}, but this network needs a multiple of {stride}; "
                    f"take {f'{below} or ' if below else ''}{above}."
                )
        if all(n == stride for n, stride in zip(size, self.stride, strict=True)):
            raise ValueError(
                f"{key} = {list(size)} would shrink to a single voxel in this network; at least one side must be "
                f"{2 * self.stride[0]} or more."
            )


def _graph_limit() -> dict[str, int]:
    """Return how `torch.compile` is allowed enough graphs of one block; older versions have one limit for all."""
    if "recompile_limit" in signature(torch.compile).parameters:
        return {"recompile_limit": _MOST_GRAPHS}
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, _MOST_GRAPHS)
    return {}
