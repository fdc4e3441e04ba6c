"""What an encoder makes of whole clean views, for the health panel and the report."""

from __future__ import annotations

import torch
from torch import Tensor

from viewalign.methods.base import Latents
from viewalign.methods.dense import grid_of
from viewalign.networks.backbone import Backbone
from viewalign.views.alignment import valid_share
from viewalign.views.batch import ViewBatch
from viewalign.views.grids import common_grid, resize

_MOST_ROWS = 4096
_MOST_CELLS = 8


@torch.no_grad()
def examine(backbone: Backbone, batch: ViewBatch) -> Latents:
    """Encode whole views before noise and blur, and return their features on one grid of at most 8³ cells.

    Returns:
        "examined" (V, B, ΣC, d, h, w), and "examined_share" (V, B, 1, d, h, w): how valid each cell is.
    """
    backbone.draw_paths(None)
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


def shown(latents: Latents) -> dict[str, Tensor]:
    """Return the same features as maps (N, C, d, h, w) for the report's picture."""
    return {"features": latents["examined"].flatten(0, 1)} if "examined" in latents else {}
