"""A decoder without skip connections: all that it knows has passed the encoder's coarsest map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from viewalign.networks.layers import InstanceNorm3d
from viewalign.networks.running import run_stage

Run = Callable[..., Tensor]


class PlainDecoder(nn.Module):
    """Doubles the resolution of a map step by step, as the "nsUNet" of PCRLv2 (Zhou et al., arXiv:2301.00772).

    Args:
        channels: of the map that is given, then of each map that is made, coarsest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels[:0:-1])
        self.ups = nn.ModuleList(nn.ConvTranspose3d(a, b, 2, 2) for a, b in pairwise(channels))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv3d(n, n, 3, padding=1), InstanceNorm3d(n, affine=True), nn.LeakyReLU(inplace=True))
            for n in channels[1:]
        )

    def forward(self, coarsest: Tensor, run: Run = lambda block, *given: block(*given)) -> list[Tensor]:
        """Return the maps (N, `channels[k]`, d, h, w), finest first; `run` calls each step.

        The finest has the resolution of the image.
        """
        maps = [coarsest]
        for up, stage in zip(self.ups, self.stages, strict=True):
            maps.append(run(partial(_step, up, stage), maps[-1]))
        return maps[:0:-1]


def _step(up: nn.Module, stage: nn.Module, maps: Tensor) -> Tensor:
    return run_stage(stage, up(maps))
