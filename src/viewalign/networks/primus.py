"""Primus of dynamic-network-architectures, with token dropping, a feature decoder and a reconstruction decoder.

Token dropping is ours: learned and rotary positions are gathered with the kept tokens. The layout follows the masked
autoencoder (He et al., arXiv:2111.06377) and Primus (Wald et al., arXiv:2503.01835); token order is (D, H, W), raster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.building_blocks.eva import Eva
from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchDecode
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.networks.backbone import Backbone, Encoded, Size
from viewalign.networks.drop_path import add_drop_path, sample_drop_path
from viewalign.networks.layers import PlainDecoder
from viewalign.networks.masking import BlockMask, kept_tokens
from viewalign.networks.registry import PRIMUS
from viewalign.utils.precision import at_least_float32, full_precision

_DECODER_DEPTH = 2
Run = Callable[..., Tensor]
Positions = tuple[Tensor, Tensor]


def build_primus(name: str, channels: int, outputs: int, size: Size) -> Primus:
    """Build the plain Primus of dynamic-network-architectures that a name stands for, for images of `size` voxels."""
    spec = PRIMUS[name]
    return Primus(
        input_channels=channels,
        embed_dim=spec["embed_dim"],
        patch_embed_size=spec["patch_embed_size"],
        num_classes=outputs,
        eva_depth=spec["eva_depth"],
        eva_numheads=spec["eva_numheads"],
        input_shape=size,
        init_values=0.1,
        scale_attn_inner=True,
    )


def run_eva(
    eva: Eva,
    tokens: Tensor,
    kept: Tensor | None = None,
    run: Run = lambda block, *given: block(*given),
    positions: Positions | None = None,
) -> Tensor:
    """Run Eva blocks on the tokens (N, T, C) of a full grid, or on the `kept` (N, K) of them alone.

    `run` calls each block, so that a caller may do so without keeping its activations. `positions` are those of a
    smaller grid (`positions_of`).
    """
    learned, rope = positions or (eva.pos_embed, eva.rope.get_embed())
    tokens = tokens + learned
    if kept is not None:
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        # One table per image, with a head axis to broadcast over: (N, 1, K, 2 x head dimension).
        rope = rope[kept][:, None]
    # Of one layout in memory, whether some are dropped or not: another one is another graph to a compiled block.
    tokens = tokens.contiguous()
    for block in eva.blocks:
        tokens = run(block, tokens, rope)
    return cast(Tensor, eva.norm(tokens))


def positions_of(eva: Eva, own: Size, grid: Size) -> Positions:
    """Return the learned (1, T, C) and rotary (T, ·) positions of a token grid.

    A grid smaller than the network's `own` takes what nnU-Net would give a network of that size: learned positions
    resized linearly, rotary ones by index.

    Raises:
        ValueError: the grid is larger than the network's own.
    """
    rope = eva.rope.get_embed()
    if grid == own:
        return eva.pos_embed, rope
    if any(n > most for n, most in zip(grid, own, strict=True)):
        raise ValueError(f"views of {list(grid)} tokens are larger than the network's {list(own)}")
    table = _resize(eva.pos_embed.transpose(1, 2).unflatten(2, own), grid)
    d, h, w = grid
    return table.flatten(2).transpose(1, 2), rope.unflatten(0, own)[:d, :h, :w].flatten(0, 2)


@full_precision
def _resize(table: Tensor, grid: Size) -> Tensor:
    """Resize (1, C, d, h, w) linearly, axis by axis: torch's own has no gradient that repeats on a GPU."""
    for axis, cells in enumerate(grid):
        eye = torch.eye(table.shape[2 + axis], dtype=table.dtype, device=table.device)
        matrix = F.interpolate(eye[None], cells, mode="linear", align_corners=False)[0]
        table = torch.tensordot(table, matrix, dims=([2 + axis], [0])).movedim(-1, 2 + axis)
    return table


def restore(tokens: Tensor, kept: Tensor | None, filler: Tensor, count: int) -> Tensor:
    """Put kept tokens (N, K, C) back in raster order among `count`, with a filler (C) where one was dropped."""
    if kept is None:
        return tokens
    full = filler.to(tokens.dtype).expand(tokens.shape[0], count, -1)
    return full.scatter(1, kept[..., None].expand(-1, -1, tokens.shape[-1]), tokens)


class PrimusBackbone(Backbone):
    """A Primus encoder; its dense features are the tokens after two more Eva blocks.

    Args:
        name: a key of `architectures.PRIMUS`.
        size: (D, H, W) of the views, which fixes the table of learned positions.
        channels: image channels.
        drop_path: rate of stochastic depth at the last encoder block.
        key: the setting that says the size, for messages.
    """

    def __init__(
        self, name: str, size: Size, channels: int = 1, drop_path: float = 0.0, key: str = "views.size"
    ) -> None:
        super().__init__()
        spec = PRIMUS[name]
        width = spec["embed_dim"]
        self.block = self.stride = spec["patch_embed_size"]
        self.check_size(size, key)
        self._grid = self.grids(size)[0]
        self.net = build_primus(name, channels, channels, size)
        self._paths = add_drop_path(self.net.eva.blocks, drop_path)
        # Called "context" and "filler": exports may hold no other name that begins with "eva" or "down_projection".
        self.feature_decoder = self._eva(width, spec["feature_heads"])
        self.decoder = self._eva(width, spec["decoder_heads"])
        self.attention_pool = nn.Linear(width, 1)
        self.filler = nn.Parameter(torch.randn(width) * 1e-6)
        self.stage_channels = self.decoder_channels = (width,)
        self.pooled_channels = width

    def _eva(self, width: int, heads: int) -> Eva:
        return Eva(
            embed_dim=width,
            depth=_DECODER_DEPTH,
            num_heads=heads,
            ref_feat_shape=self._grid,
            init_values=0.1,
            scale_attn_inner=True,
        )

    def encode(self, images: Tensor, mask: BlockMask | None = None, drop: bool = True) -> Encoded:
        """Encode images; the tokens of masked blocks never enter the blocks, or enter as the filler."""
        tokens = self.net.down_projection(images).flatten(2).transpose(1, 2)
        if mask is not None and not drop:
            tokens, mask = torch.where(mask.hidden[..., None], self.filler.to(tokens.dtype), tokens), None
        kept = None if mask is None else kept_tokens(mask)
        grid = self.grids((images.shape[2], images.shape[3], images.shape[4]))[0]
        places = positions_of(self.net.eva, self._grid, grid)
        return Encoded(tokens=run_eva(self.net.eva, tokens, kept, self._run, places), kept=kept, grid=grid)

    def _restored(self, encoded: Encoded) -> Tensor:
        assert encoded.tokens is not None
        return restore(encoded.tokens, encoded.kept, self.filler, encoded.grid[0] * encoded.grid[1] * encoded.grid[2])

    def _further(self, eva: Eva, encoded: Encoded) -> Tensor:
        """Pass all tokens through further blocks and lay them out as a map."""
        places = positions_of(eva, self._grid, encoded.grid)
        tokens = run_eva(eva, self._restored(encoded), run=self._run, positions=places)
        laid: Tensor = tokens.transpose(1, 2).unflatten(2, encoded.grid)
        return laid

    def maps(self, encoded: Encoded) -> list[Tensor]:
        """Return one map: the encoder's tokens.

        Raises:
            ValueError: some were dropped.
        """
        if encoded.tokens is None or encoded.kept is not None:
            raise ValueError("tokens that were dropped have no place in a map of the encoder")
        return [encoded.tokens.transpose(1, 2).unflatten(2, encoded.grid)]

    @property
    def map_channels(self) -> int:
        """Channels of a token."""
        return self.pooled_channels

    def finest(self, encoded: Encoded) -> Tensor:
        """Return the encoder's tokens as a map."""
        return self.maps(encoded)[0]

    @property
    def finest_channels(self) -> int:
        """Channels of a token."""
        return self.pooled_channels

    def voxel_head(self, outputs: int) -> nn.Module:
        """Build transposed convolutions from tokens to voxels."""
        head: nn.Module = PatchDecode(self.block, self.pooled_channels, outputs)
        return head

    def plain_decoder(self) -> PlainDecoder:
        """Build one that halves the channels from step to step, ending with 32 at the image's resolution."""
        steps = range(int(self.block[0]).bit_length() - 1)
        return PlainDecoder([self.pooled_channels, *(32 << k for k in reversed(steps))])

    def dense(self, encoded: Encoded) -> list[Tensor]:
        """Return one map: all tokens, dropped ones filled in, after the feature decoder."""
        return [self._further(self.feature_decoder, encoded)]

    @full_precision
    def pool(self, maps: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
        """Average tokens by a learned attention, scaled by how valid each is; float32."""
        tokens = at_least_float32(maps[0]).flatten(2).transpose(1, 2)
        share = shares[0].flatten(1)
        score = self.attention_pool(tokens)[..., 0]
        # Weights in proportion to share x exp(score), with what is not valid out of the softmax altogether.
        score = score + share.clamp(min=1e-12).log()
        weight = torch.softmax(score.masked_fill(share <= 0, torch.finfo(score.dtype).min), dim=1)
        return (weight[..., None] * tokens).sum(1)

    def decode(self, encoded: Encoded) -> list[Tensor]:
        """Return one map: all tokens after the reconstruction's decoder."""
        return [self._further(self.decoder, encoded)]

    def to_image(self, decoded: Sequence[Tensor]) -> Tensor:
        """Turn the decoder's tokens into an image."""
        return cast(Tensor, self.net.up_projection(decoded[0]))

    def drop_decoder(self) -> None:
        """Remove the reconstruction decoder; the feature decoder stays, for the teacher goes through it too."""
        del self.decoder
        self.net.up_projection = None

    def freeze_unused(
        self,
        *,
        decode: bool = False,
        finest: bool = False,  # noqa: ARG002
        to_image: bool = False,
        fill: bool = False,
    ) -> None:
        """Freeze feature decoder and pooling, and decoder, head or filler where they are idle."""
        self.feature_decoder.requires_grad_(False)
        self.attention_pool.requires_grad_(False)
        self.decoder.requires_grad_(decode)
        self.net.up_projection.requires_grad_(to_image)
        self.filler.requires_grad_(fill)

    def grids(self, size: Size) -> list[Size]:
        """Return the token grid."""
        return [(size[0] // self.block[0], size[1] // self.block[1], size[2] // self.block[2])]

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of the encoder, the feature decoder and, where there is one, the decoder."""
        parts = (self.net.eva, self.feature_decoder, getattr(self, "decoder", None))
        return [block for part in parts if part is not None for block in part.blocks]

    def sample_drop_path(self, generators: Sequence[np.random.Generator] | None) -> None:
        """Draw which images skip which of the encoder's branches."""
        sample_drop_path(self._paths, generators, self.filler)
