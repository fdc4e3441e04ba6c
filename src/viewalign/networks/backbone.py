"""What every backbone offers, so that a method need not know which one it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Size = tuple[int, int, int]


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
        pooled_channels: length of the vector that `pool` returns.
    """

    stride: Size
    block: Size
    stage_channels: tuple[int, ...]
    pooled_channels: int

    @abstractmethod
    def encode(self, images: Tensor, mask: Tensor | None = None) -> Encoded:
        """Encode images (N, C, D, H, W); `mask` (N, blocks) is true where a block, in raster order, is hidden."""

    @abstractmethod
    def dense(self, encoded: Encoded) -> list[Tensor]:
        """Return feature maps (N, C, d, h, w), finest first, that cover the whole view."""

    @abstractmethod
    def pool(self, maps: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
        """Reduce dense maps to one vector (N, C) an image; `shares` (N, 1, d, h, w) say how valid each cell is."""

    @abstractmethod
    def reconstruct(self, encoded: Encoded) -> Tensor:
        """Return the image (N, C, D, H, W) that the decoder makes."""

    @abstractmethod
    def drop_decoder(self) -> None:
        """Remove what only reconstruction needs: a teacher has no use for it."""

    @abstractmethod
    def grids(self, size: Size) -> list[Size]:
        """Return the grid of each dense map for views of `size` voxels."""

    def check_size(self, size: Size) -> None:
        """Refuse a view size that the network cannot take.

        Raises:
            ValueError: a side is no multiple of the stride, or the coarsest map would be a single cell.
        """
        for axis, (n, stride) in enumerate(zip(size, self.stride, strict=True)):
            if n % stride:
                below, above = n // stride * stride, -(-n // stride) * stride
                raise ValueError(
                    f"views.size = {list(size)}: side {axis} is {n}, but this network needs a multiple of {stride}; "
                    f"take {f'{below} or ' if below else ''}{above}."
                )
        if all(n == stride for n, stride in zip(size, self.stride, strict=True)):
            raise ValueError(
                f"views.size = {list(size)} would shrink to a single voxel in this network; at least one side must be "
                f"{2 * self.stride[0]} or more."
            )
