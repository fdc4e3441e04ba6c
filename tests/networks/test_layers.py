"""Replaced layers compute the same as torch's, bit for bit."""

import pytest
import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from viewalign.networks.layers import BlockMean, InstanceNorm3d, replace_pools
from viewalign.networks.registry import build_backbone


def block_with(norm):
    torch.manual_seed(0)
    return BasicBlockD(
        *(nn.Conv3d, 3, 4, 3, 2, True),
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


class Copies(TorchDispatchMode):
    """Counts copies of tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.copy_.default, torch.ops.aten.clone.default)
        return func(*args, **(kwargs or {}))


def outcome(block, low):
    """Return what a block computes, its gradients, and how many copies its backward pass makes."""
    images = torch.randn(2, 3, 8, 12, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = block(images)
    with Copies() as copies:
        out.float().square().mean().backward()
    return [out.detach(), images.grad, *(p.grad for p in block.parameters())], copies.count


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_residual_block_agrees_with_the_library_without_copies(low):
    ours, plain = block_with(InstanceNorm3d), block_with(nn.InstanceNorm3d)
    replace_pools(ours)
    assert isinstance(ours.skip[0], BlockMean)
    assert list(ours.state_dict()) == list(plain.state_dict())
    (mine, copies), (theirs, more) = outcome(ours, low), outcome(plain, low)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert copies == 0 < more


@pytest.mark.parametrize("kernel", [2, (1, 2, 4)])
def test_gradient_of_block_mean(kernel):
    maps = torch.randn(2, 3, 4, 8, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(BlockMean(kernel)(maps))
    mine, theirs = (
        torch.autograd.grad((pool(maps) * weight).sum(), maps)[0] for pool in (BlockMean(kernel), nn.AvgPool3d(kernel))
    )
    assert torch.equal(mine, theirs)
    assert torch.autograd.gradcheck(BlockMean(kernel), maps)


def test_all_poolings_of_a_unet_are_replaced():
    pools = [one for one in build_backbone("resenc-xs", (16, 16, 16)).modules() if isinstance(one, nn.AvgPool3d)]
    assert len(pools) == 3
    assert all(isinstance(one, BlockMean) for one in pools)
