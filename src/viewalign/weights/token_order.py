"""The order in which a Primus flattens its token grid, and the conversion of weights trained in another order.

nnssl's EvaMAE flattens tokens as (axis 1, axis 0, axis 2), "hdw" for images (D, H, W). Its weights load without error
into a network of raster order, "dhw", but learned and rotary positions then have their first two axes exchanged.

The conversion is exact if the grid's first two sides are equal, as in all of nnssl's trainers: the learned table is
transposed, and the rotary channels of these two axes are exchanged in the rows of the query and key projections, which
does not change any product of query and key. A rotary head of timm's `RotaryEmbeddingCat` has one group of
head dimension / 3 channels per axis, groups in the order of the axes, channels in adjacent pairs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from viewalign.errors import UserError
from viewalign.networks.registry import PRIMUS

Size = tuple[int, int, int]
Order = Literal["dhw", "hdw"]

_STACKS = {"eva": "eva_numheads", "decoder": "decoder_heads", "feature_decoder": "feature_heads"}
"""Stacks of Eva blocks with rotary positions, and the key of their number of heads in `PRIMUS`."""
HDW_PREFIX = "viewalign_hdw_"
"""Prefix of the trainer's name of an export in the order "hdw", before the method's name."""
_WRONG = re.compile(rf"(Base)?EvaMAE|{HDW_PREFIX}")
_RIGHT = re.compile(r"viewalign_|\w*SimMIM|\w*Aligned|ConMAE")


def order_of(trainer_name: str) -> Order | None:
    """Return the token order of a Primus checkpoint by the trainer that wrote it; None if that does not determine it.

    nnssl's EvaMAE trainers have "hdw"; its SimMIM trainers, LatentCampus' aligned and contrastive ones and this package
    "dhw".
    """
    if _WRONG.match(trainer_name):
        return "hdw"
    return "dhw" if _RIGHT.match(trainer_name) else None


def settle(trainer_name: str, requested: Order | None, file: str) -> Order:
    """Return the requested order, otherwise that of the trainer's name.

    Raises:
        UserError: neither is known.
    """
    order = requested or order_of(trainer_name)
    if order is None:
        origin = f"its trainer is '{trainer_name}'" if trainer_name else "it names no trainer"
        raise UserError(
            f"{file} contains a Primus of unknown token order ({origin}). Set init.token_order=hdw "
            "for networks of nnssl's EvaMAE, which exchanges the first two axes, init.token_order=dhw for raster order."
        )
    return order


def repair(weights: Mapping[str, Tensor], grid: Size) -> dict[str, Tensor]:
    """Return weights for raster order from weights that were trained with tokens as (axis 1, axis 0, axis 2).

    Args:
        weights: of a Primus, under the names of `weight_names`.
        grid: the token grid in array order, (d, h, w).

    Raises:
        UserError: a table of positions that does not fit the grid, or a width that no known Primus has.
    """
    heads = _heads(weights["eva.pos_embed"].shape[-1])
    return {name: _repaired(name, value, grid, heads) for name, value in weights.items()}


def to_hdw(weights: Mapping[str, Tensor], grid: Size) -> dict[str, Tensor]:
    """Return weights for tokens as (axis 1, axis 0, axis 2) from weights in raster order: the inverse of `repair`.

    Args:
        weights: of a Primus, under the names of `weight_names`.
        grid: the token grid in array order, (d, h, w).

    Raises:
        UserError: as for `repair`.
    """
    return repair(weights, (grid[1], grid[0], grid[2]))


def _repaired(name: str, value: Tensor, grid: Size, heads: Mapping[str, int]) -> Tensor:
    stack, _, rest = name.partition(".")
    if stack not in heads:
        return value
    if rest == "pos_embed":
        return transpose_positions(value, grid)
    if re.fullmatch(r"blocks\.\d+\.attn\.[qk]_proj\.(weight|bias)", rest):
        return swap_rotary(value, heads[stack])
    return value


def _heads(width: int) -> dict[str, int]:
    for spec in PRIMUS.values():
        if spec["embed_dim"] == width:
            return {stack: int(spec[key]) for stack, key in _STACKS.items()}
    raise UserError(f"The token order of a Primus of width {width} cannot be converted: no such network is known.")


def transpose_positions(table: Tensor, grid: Size) -> Tensor:
    """Convert a table (1, tokens, C), whose rows are ordered as (axis 1, axis 0, axis 2) of the grid, to raster order.

    Raises:
        UserError: the table has another number of rows than the grid has tokens.
    """
    if table.shape[1] != math.prod(grid):
        raise UserError(f"A table of {table.shape[1]} positions does not fit a grid of {math.prod(grid)} tokens.")
    return table.reshape(1, grid[1], grid[0], grid[2], -1).transpose(1, 2).flatten(1, 3)


def swap_rotary(rows: Tensor, heads: int) -> Tensor:
    """Exchange the rotary channels of axes 0 and 1 in every head of a query or key projection's rows (C, ...)."""
    groups = rows.reshape(heads, 3, -1, *rows.shape[1:])
    return groups[:, [1, 0, 2]].flatten(0, 2)
