"""The interface of backbones for methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from viewalign.errors import UserError
from viewalign.networks.layers import PlainDecoder
from viewalign.networks.masking import BlockMask
from viewalign.utils.shapes import Size

_RECOMPILE_LIMIT = 64
"""Graphs per block that `torch.compile` may build; at its default of 8 it leaves the other shapes uncompiled.

An encoder stage of ResEnc-L needs 18: six shapes, for student and teacher in training and the student in validation.
"""


@dataclass(frozen=True)
class Encoded:
    """Output of an encoder: feature maps, or tokens.

    Attributes:
        maps: (N, C, d, h, w) feature maps of a CNN, finest first.
        tokens: (N, T, C) of a transformer in raster order, or None.
        dropped: whether some tokens were dropped; a learned one is in their place.
        grid: (d, h, w) of all tokens.
    """

    maps: tuple[Tensor, ...] = ()
    tokens: Tensor | None = None
    dropped: bool = False
    grid: Size = (0, 0, 0)


def backbones(method: nn.Module) -> Iterator[Backbone]:
    """Yield the backbones of a method, such as those of student and teacher."""
    yield from (module for module in method.modules() if isinstance(module, Backbone))


class Backbone(nn.Module, ABC):
    """An encoder with the decoders that pretraining adds to it.

    Attributes:
        stride: (D, H, W) that views must be a multiple of, in voxels.
        block: (D, H, W) of a masked block in voxels.
        stage_channels: channels of each map of `dense`, finest first.
        decoder_channels: channels of each map of `decode`, finest first.
        map_channels: channels of all maps of `maps` together.
        finest_channels: channels of `finest`.
        pooled_channels: length of the vectors of `pool`.
        recompute: whether the backward pass recomputes activations inside blocks instead of storing them (Chen et al.,
            arXiv:1604.06174): the same gradients for about a third more arithmetic.
    """

    stride: Size
    block: Size
    stage_channels: tuple[int, ...]
    decoder_channels: tuple[int, ...]
    map_channels: int
    finest_channels: int
    pooled_channels: int
    recompute: bool = False

    @abstractmethod
    def encode(self, images: Tensor, mask: BlockMask | None = None, drop_tokens: bool = True) -> Encoded:
        """Encode images (N, C, D, H, W) with masked blocks.

        A CNN receives zeros there. A transformer drops their tokens, or replaces them by a learned token if not
        `drop_tokens`.
        """

    @abstractmethod
    def maps(self, encoded: Encoded) -> list[Tensor]:
        """Return the encoder's own maps (N, C, d, h, w), finest first, as exported; all tokens are needed."""

    @abstractmethod
    def finest(self, encoded: Encoded) -> Tensor:
        """Return the map for voxel-wise heads: the last map of a U-Net's decoder, or all tokens of a transformer.

        `to_image([finest])` is an image.
        """

    @abstractmethod
    def voxel_head(self, outputs: int) -> nn.Module:
        """Build a head from `finest` to `outputs` channels per voxel."""

    @abstractmethod
    def plain_decoder(self) -> PlainDecoder:
        """Build a decoder without skip connections, from the coarsest of `maps` to the resolution of the image."""

    @abstractmethod
    def dense(self, encoded: Encoded) -> list[Tensor]:
        """Return feature maps (N, C, d, h, w) of the whole view, finest first; dropped tokens are filled in."""

    @abstractmethod
    def pool(self, maps: Sequence[Tensor], valid: Tensor) -> Tensor:
        """Pool dense maps over valid voxels (N, 1, D, H, W) to one float32 vector (N, C) per image."""

    @abstractmethod
    def decode(self, encoded: Encoded) -> list[Tensor]:
        """Return the decoder's maps (N, C, d, h, w), finest first."""

    @abstractmethod
    def to_image(self, decoded: Sequence[Tensor]) -> Tensor:
        """Return the image (N, C, D, H, W) of the decoder's maps."""

    @abstractmethod
    def drop_decoder(self) -> None:
        """Remove the decoder of reconstruction, which a teacher does not use."""

    @abstractmethod
    def keep_encoder(self) -> None:
        """Remove all that `encode` and `maps` do not use for whole images."""

    @abstractmethod
    def freeze_unused(
        self, *, decode: bool = False, finest: bool = False, to_image: bool = False, fill: bool = False
    ) -> None:
        """Freeze the parts that a method does not use, so that no process waits for their gradients.

        `dense` and `pool` are assumed unused; the arguments name the parts that are used.

        Args:
            decode, finest, to_image: the methods of these names.
            fill: the learned token in place of masked ones.
        """

    @abstractmethod
    def grids(self, size: Size) -> list[Size]:
        """Return the grid of each dense map for views of `size` voxels."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Return the repeated blocks, which do nearly all arithmetic, from input to output."""

    def reconstruct(self, encoded: Encoded) -> Tensor:
        """Return the decoded image (N, C, D, H, W)."""
        return self.to_image(self.decode(encoded))

    def decode_with(self, decoder: PlainDecoder, encoded: Encoded) -> list[Tensor]:
        """Return the maps of a decoder from `plain_decoder`, finest first; all tokens are needed."""
        out: list[Tensor] = decoder(self.maps(encoded)[-1], self._run)
        return out

    def sample_drop_path(self, generators: Sequence[np.random.Generator] | None) -> None:
        """Sample stochastic depth for the next images, one generator per image; None keeps every path.

        Does nothing in a network without stochastic depth.
        """

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile each block separately with a backend of `torch.compile`; parameters keep their names."""
        limit = {}
        if "recompile_limit" in signature(torch.compile).parameters:
            limit["recompile_limit"] = _RECOMPILE_LIMIT
        else:  # older versions have one limit for the whole process
            settings = torch._dynamo.config
            settings.recompile_limit = max(settings.recompile_limit, _RECOMPILE_LIMIT)
        for block in self.blocks():
            block.compile(dynamic=False, backend=backend, **limit)

    def check_size(self, size: Size, key: str = "views.patch_size") -> None:
        """Check that the network accepts views of `size` voxels; `key` is the setting's name in messages.

        Raises:
            UserError: a side is not a multiple of the stride, or the coarsest map would be a single cell.
        """
        for axis, (n, stride) in enumerate(zip(size, self.stride, strict=True)):
            if n % stride:
                below, above = n // stride * stride, -(-n // stride) * stride
                raise UserError(
                    f"{key} = {list(size)}: side {axis} is {n}, but this network needs a multiple of {stride}; "
                    f"use {f'{below} or ' if below else ''}{above}."
                )
        if all(n == stride for n, stride in zip(size, self.stride, strict=True)):
            raise UserError(
                f"{key} = {list(size)} would shrink to a single voxel in this network; at least one side must be "
                f"{2 * self.stride[0]} or more."
            )

    def _run(self, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # Blocks do not use torch's generator: stochastic depth is sampled beforehand (`sample_drop_path`).
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            return out
        return block(*inputs)
