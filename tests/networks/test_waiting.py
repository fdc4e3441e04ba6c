"""A pass of a network neither reads from its device nor sends anything there by a copy that waits."""

import pytest
import torch
from second_device import DEVICE, Elsewhere, second_device
from torch.utils._python_dispatch import TorchDispatchMode

from viewalign.networks.masks import block_grid, draw_masks
from viewalign.networks.registry import build_backbone
from viewalign.randomness import generator_of

_aten = torch.ops.aten
SIZE = (16, 16, 16)


class Waits(TorchDispatchMode):
    """Notes what would make the host wait for the second device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default and isinstance(args[0], Elsewhere):
            self.found.append(func)
        if func is _aten._to_copy.default and not kwargs.get("non_blocking"):
            to = torch.device(kwargs.get("device") or args[0].device)
            self.found.extend([func] if to.type != args[0].device.type else [])
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", ["resenc-xs", "primus-xs"])
def test_masks_and_stochastic_depth_do_not_wait_for_the_device(name):
    backbone = build_backbone(name, SIZE, block=(8, 8, 8), drop_path=0.2)
    grid = block_grid(SIZE, backbone.block)
    generators = [generator_of(0, k) for k in range(2)]
    with second_device():
        backbone, images = backbone.to(DEVICE), torch.randn(2, 1, *SIZE).to(DEVICE)
        with Waits() as waits:
            backbone.draw_paths(generators)
            mask = draw_masks(generators, grid[0] * grid[1] * grid[2], 0.75, images.device)
            backbone.decode(backbone.encode(images, mask))
    assert not waits.found
