"""Primus of dynamic-network-architectures, with token dropping, a feature decoder and a reconstruction decoder.

Token dropping follows the masked autoencoder (He et al., arXiv:2111.06377), the network Primus (Wald et al.,
arXiv:2503.01835). Tokens are in raster order of (D, H, W); positions are gathered with the kept ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.building_blocks.eva import Eva
from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchDecode
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.networks.backbone import Backbone, Encoded
from viewalign.networks.layers import PlainDecoder, Run, run_block
from viewalign.networks.masking import BlockMask, kept_tokens
from viewalign.networks.registry import PRIMUS
from viewalign.utils.pooling import valid_fraction
from viewalign.utils.precision import at_least_float32, full_precision, send
from viewalign.utils.shapes import Size, spatial_size

_DECODER_DEPTH = 2
Positions = tuple[Tensor, Tensor]
"""Learned (1, T, C) and rotary (T, ·) positions of tokens."""


def build_primus(name: str, channels: int, outputs: int, size: Size) -> Primus:
    """Build the Primus of a name for images of `size` voxels."""
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


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv:1603.09382) whose random numbers belong to an image, not to a process.

    A residual branch (N, ...) is multiplied by 0 for skipped images and by 1/(1 - rate) for the others.

    Args:
        rate: probability of skipping.

    Attributes:
        scale: (N,) factor of each image on the branch's device, or None to keep all. A compiled block does not read the
            rate, which would require a graph per block.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """Scale a branch image by image."""
        if self.scale is None:
            return branch
        return branch * self.scale.to(branch.dtype).view(-1, *(1 for _ in branch.shape[1:]))


def add_drop_path(blocks: Iterable[nn.Module], rate: float) -> list[DropPath]:
    """Add stochastic depth to both branches of Eva blocks, with rates from 0 to `rate`; returns the modules.

    Blocks of rate 0 are not changed.
    """
    added, blocks = [], list(blocks)
    for block, block_rate in zip(blocks, np.linspace(0.0, rate, len(blocks)), strict=True):
        for branch in ("drop_path1", "drop_path2") if block_rate > 0 else ():
            module = DropPath(float(block_rate))
            setattr(block, branch, module)
            added.append(module)
    return added


def sample_drop_path(paths: Sequence[DropPath], generators: Sequence[np.random.Generator] | None, like: Tensor) -> None:
    """Sample for each image, from its own generator, which branches it skips; None skips none.

    Args:
        paths: of a network, from input to output.
        generators: one per image.
        like: a weight of the network, whose device and precision the factors get.
    """
    if generators is None or not paths:
        _set_scales(paths, [None] * len(paths))
        return
    values = np.stack([generator.random(len(paths)) for generator in generators], axis=1)
    rates = np.array([path.rate for path in paths])[:, None]
    scales = torch.from_numpy(values >= rates).to(like.dtype) / torch.from_numpy(1.0 - rates).to(like.dtype)
    _set_scales(paths, list(send(scales, like.device)))


def _set_scales(paths: Sequence[DropPath], scales: Sequence[Tensor | None]) -> None:
    for path, scale in zip(paths, scales, strict=True):
        path.scale = scale


def run_eva(
    eva: Eva, tokens: Tensor, kept: Tensor | None = None, run: Run = run_block, positions: Positions | None = None
) -> Tensor:
    """Run Eva blocks on the tokens (N, T, C) of a full grid, or only on the `kept` (N, K) of them.

    Args:
        eva: the blocks.
        tokens: without positions.
        kept: indices of tokens.
        run: calls each block.
        positions: of a smaller grid, from `resized_positions`.
    """
    learned, rope = positions or (eva.pos_embed, eva.rope.get_embed())
    tokens = tokens + learned
    if kept is not None:
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        # One table per image, with an axis for heads: (N, 1, K, 2 x head dimension).
        rope = rope[kept][:, None]
    # The same memory layout with and without dropping: a compiled block needs a graph for each layout.
    tokens = tokens.contiguous()
    for block in eva.blocks:
        tokens = run(block, tokens, rope)
    return cast(Tensor, eva.norm(tokens))


def resized_positions(eva: Eva, own: Size, grid: Size) -> Positions:
    """Return the positions of a token grid that is at most the network's `own`.

    They are those that nnU-Net gives a network of that size: learned positions resized linearly, rotary ones by index.

    Raises:
        ValueError: the grid is larger than the network's own.
    """
    rope = eva.rope.get_embed()
    if grid == own:
        return eva.pos_embed, rope
    if any(n > limit for n, limit in zip(grid, own, strict=True)):
        raise ValueError(f"views of {list(grid)} tokens are larger than the network's {list(own)}")
    table = _resize_linear(eva.pos_embed.transpose(1, 2).unflatten(2, own), grid)
    d, h, w = grid
    return table.flatten(2).transpose(1, 2), rope.unflatten(0, own)[:d, :h, :w].flatten(0, 2)


@full_precision
def _resize_linear(table: Tensor, grid: Size) -> Tensor:
    """Resize (1, C, d, h, w) axis by axis, with a gradient that is deterministic on GPUs, which torch's is not."""
    for axis, cells in enumerate(grid):
        eye = torch.eye(table.shape[2 + axis], dtype=table.dtype, device=table.device)
        matrix = F.interpolate(eye[None], cells, mode="linear", align_corners=False)[0]
        table = torch.tensordot(table, matrix, dims=([2 + axis], [0])).movedim(-1, 2 + axis)
    return table


def restore_tokens(tokens: Tensor, kept: Tensor, filler: Tensor, count: int) -> Tensor:
    """Return `count` tokens in raster order: the kept ones (N, K, C), and a filler (C) for each dropped one."""
    full = filler.to(tokens.dtype).expand(tokens.shape[0], count, -1)
    return full.scatter(1, kept[..., None].expand(-1, -1, tokens.shape[-1]), tokens)


class PrimusBackbone(Backbone):
    """A Primus encoder, whose dense features are the tokens after two more Eva blocks; see `Backbone` for methods.

    Args:
        name: a key of `registry.PRIMUS`.
        size: (D, H, W) of the views, which sets the grid of learned positions.
        channels: image channels.
        drop_path: rate of stochastic depth at the last encoder block.
        key: name of the setting for the size, for messages.
    """

    def __init__(
        self, name: str, size: Size, channels: int = 1, drop_path: float = 0.0, key: str = "views.patch_size"
    ) -> None:
        super().__init__()
        spec = PRIMUS[name]
        width = spec["embed_dim"]
        self.block = self.stride = spec["patch_embed_size"]
        self.check_size(size, key)
        self._grid = self.grids(size)[0]
        self.net = build_primus(name, channels, channels, size)
        self._paths = add_drop_path(self.net.eva.blocks, drop_path)
        # Exports may contain no other names that begin with "eva" or "down_projection".
        self.feature_decoder = self._eva(width, spec["feature_heads"])
        self.decoder = self._eva(width, spec["decoder_heads"])
        self.attention_pool = nn.Linear(width, 1)
        self.filler = nn.Parameter(torch.randn(width) * 1e-6)
        self.stage_channels = self.decoder_channels = (width,)
        self.map_channels = self.finest_channels = self.pooled_channels = width

    def _eva(self, width: int, heads: int) -> Eva:
        return Eva(
            embed_dim=width,
            depth=_DECODER_DEPTH,
            num_heads=heads,
            ref_feat_shape=self._grid,
            init_values=0.1,
            scale_attn_inner=True,
        )

    def encode(self, images: Tensor, mask: BlockMask | None = None, drop_tokens: bool = True) -> Encoded:
        tokens = self.net.down_projection(images).flatten(2).transpose(1, 2)
        if mask is not None and not drop_tokens:
            tokens, mask = torch.where(mask.hidden[..., None], self.filler.to(tokens.dtype), tokens), None
        grid = self.grids(spatial_size(images))[0]
        positions = resized_positions(self.net.eva, self._grid, grid)
        if mask is None:
            return Encoded(tokens=run_eva(self.net.eva, tokens, None, self._run, positions), grid=grid)
        if not mask.whole:
            kept = kept_tokens(mask)
            encoded = run_eva(self.net.eva, tokens, kept, self._run, positions)
            return Encoded(tokens=restore_tokens(encoded, kept, self.filler, tokens.shape[1]), dropped=True, grid=grid)
        return Encoded(tokens=self._encode_groups(tokens, mask, positions), dropped=True, grid=grid)

    def _encode_groups(self, tokens: Tensor, mask: BlockMask, positions: Positions) -> Tensor:
        """Encode all tokens of whole images and the kept ones of the others, which have fewer, as two batches."""
        count, device = tokens.shape[1], tokens.device
        masked = [row for row in range(len(tokens)) if row not in mask.whole]
        everything = torch.arange(count, device=device)
        parts, order = [], [*masked, *mask.whole]
        for rows in filter(None, (masked, list(mask.whole))):
            here = send(torch.tensor(rows), device)
            kept = kept_tokens(replace(mask, hidden=mask.hidden[here])) if rows is masked else None
            encoded = run_eva(self.net.eva, tokens[here], kept, partial(self._run, rows=here), positions)
            # Whole images are restored too: a filler that no image needs gets a gradient of 0 instead of none.
            places = everything.expand(len(rows), -1) if kept is None else kept
            parts.append(restore_tokens(encoded, places, self.filler, count))
        return torch.cat(parts)[send(torch.tensor(np.argsort(order)), device)]

    def _run(self, block: Callable[..., Tensor], *inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Run a block, or run it for some `rows` of the batch, with the stochastic depth sampled last.

        Where the block is run again for its gradient, other images may have passed the network since; it gets the same
        factors as the first time.
        """
        modules = block.modules() if isinstance(block, nn.Module) else ()
        paths = [module for module in modules if isinstance(module, DropPath)]
        scales = [path.scale if path.scale is None or rows is None else path.scale[rows] for path in paths]

        def run_scaled(*inputs: Tensor) -> Tensor:
            before = [path.scale for path in paths]
            _set_scales(paths, scales)
            try:
                return block(*inputs)
            finally:  # a recomputation ends with an exception as soon as it has what it needs
                _set_scales(paths, before)

        return super()._run(run_scaled if paths else block, *inputs)

    def _decode_tokens(self, eva: Eva, encoded: Encoded) -> Tensor:
        """Pass all tokens through a decoder; returns a map."""
        assert encoded.tokens is not None
        tokens = run_eva(eva, encoded.tokens, run=self._run, positions=resized_positions(eva, self._grid, encoded.grid))
        out: Tensor = tokens.transpose(1, 2).unflatten(2, encoded.grid)
        return out

    def maps(self, encoded: Encoded) -> list[Tensor]:
        if encoded.tokens is None or encoded.dropped:
            raise ValueError("a map of the encoder needs all tokens, but some were dropped")
        return [encoded.tokens.transpose(1, 2).unflatten(2, encoded.grid)]

    def finest(self, encoded: Encoded) -> Tensor:
        return self.maps(encoded)[0]

    def voxel_head(self, outputs: int) -> nn.Module:
        return cast(nn.Module, PatchDecode(self.block, self.pooled_channels, outputs))

    def plain_decoder(self) -> PlainDecoder:
        steps = range(int(self.block[0]).bit_length() - 1)
        return PlainDecoder([self.pooled_channels, *(32 << k for k in reversed(steps))])

    def dense(self, encoded: Encoded) -> list[Tensor]:
        return [self._decode_tokens(self.feature_decoder, encoded)]

    @full_precision
    def pool(self, maps: Sequence[Tensor], valid: Tensor) -> Tensor:
        """Average tokens by a learned attention times their valid fraction."""
        tokens = at_least_float32(maps[0]).flatten(2).transpose(1, 2)
        fraction = valid_fraction(valid, spatial_size(maps[0])).flatten(1)
        # Weights proportional to fraction x exp(score); invalid tokens are excluded from the softmax.
        score = self.attention_pool(tokens)[..., 0] + fraction.clamp(min=1e-12).log()
        weight = torch.softmax(score.masked_fill(fraction <= 0, torch.finfo(score.dtype).min), dim=1)
        return (weight[..., None] * tokens).sum(1)

    def decode(self, encoded: Encoded) -> list[Tensor]:
        return [self._decode_tokens(self.decoder, encoded)]

    def to_image(self, decoded: Sequence[Tensor]) -> Tensor:
        return cast(Tensor, self.net.up_projection(decoded[0]))

    def drop_decoder(self) -> None:
        """Remove the reconstruction decoder; the feature decoder stays, because the teacher's features pass it."""
        del self.decoder
        self.net.up_projection = None

    def keep_encoder(self) -> None:
        self.drop_decoder()
        del self.feature_decoder, self.attention_pool
        self.filler.requires_grad_(False).zero_()  # for dropped tokens, of which whole images have none

    def freeze_unused(
        self,
        *,
        decode: bool = False,
        finest: bool = False,  # noqa: ARG002
        to_image: bool = False,
        fill: bool = False,
    ) -> None:
        self.feature_decoder.requires_grad_(False)
        self.attention_pool.requires_grad_(False)
        self.decoder.requires_grad_(decode)
        self.net.up_projection.requires_grad_(to_image)
        self.filler.requires_grad_(fill)

    def grids(self, size: Size) -> list[Size]:
        return [(size[0] // self.block[0], size[1] // self.block[1], size[2] // self.block[2])]

    def blocks(self) -> list[nn.Module]:
        parts = (self.net.eva, *(getattr(self, name, None) for name in ("feature_decoder", "decoder")))
        return [block for part in parts if part is not None for block in part.blocks]

    def sample_drop_path(self, generators: Sequence[np.random.Generator] | None) -> None:
        sample_drop_path(self._paths, generators, self.filler)
