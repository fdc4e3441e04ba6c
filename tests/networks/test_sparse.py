"""A sparse encoder ignores masked blocks."""

import pytest
import torch
from torch import nn

from viewalign.networks.masking import BlockMask, SparseMask, make_sparse, masked_norm, sample_masks, to_voxels
from viewalign.networks.registry import build_backbone
from viewalign.utils.rng import make_rng

SIZE, BLOCK = (16, 16, 16), (8, 8, 8)


def sparse_unet():
    torch.manual_seed(0)
    backbone = build_backbone("resenc-xs", SIZE, block=BLOCK)
    plain = build_backbone("resenc-xs", SIZE, block=BLOCK)
    plain.load_state_dict(backbone.state_dict())
    backbone.make_sparse()
    return backbone, plain


def mask_of(count=2, ratio=0.5):
    return sample_masks([make_rng(k) for k in range(count)], 8, ratio, torch.device("cpu"))


def test_masked_norm_uses_visible_cells():
    maps, seen = torch.randn(2, 3, 4, 4, 4), torch.rand(2, 1, 4, 4, 4) < 0.6
    out = masked_norm(maps, seen, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, -1.0]))
    for image in range(2):
        where = seen[image, 0]
        for channel, (scale, shift) in enumerate([(1, 0.5), (2, 0), (3, -1)]):
            values = maps[image, channel][where]
            expected = (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt() * scale + shift
            assert torch.allclose(out[image, channel][where], expected, atol=1e-5)
            assert (out[image, channel][~where] == 0).all()
    norm = nn.InstanceNorm3d(3, affine=True)
    everywhere = torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)
    assert torch.allclose(masked_norm(maps, everywhere, norm.weight, norm.bias), norm(maps), atol=1e-5)


def test_masked_voxels_do_not_affect_features_and_stay_0():
    backbone, plain = sparse_unet()
    images, mask = torch.randn(2, 1, *SIZE), mask_of()
    hidden = to_voxels(mask.hidden, SIZE, BLOCK)
    other = torch.where(hidden, torch.full_like(images, 100.0), images)
    one, two = (backbone.encode(x, mask).maps for x in (images, other))
    for stage, (a, b) in enumerate(zip(one, two, strict=True)):
        assert torch.equal(a, b)
        if stage < 4:
            empty = hidden[..., :: 2**stage, :: 2**stage, :: 2**stage].expand_as(a)
            assert (a[empty] == 0).all()
    # A dense encoder that sees zeros in their place comes to other values where blocks are seen.
    dense = plain.encode(images, mask).maps[0]
    assert not torch.allclose(dense[~hidden.expand_as(dense)], one[0][~hidden.expand_as(dense)], atol=1e-3)


def test_without_masks_it_equals_the_plain_encoder():
    backbone, plain = sparse_unet()
    images = torch.randn(2, 1, *SIZE)
    backbone.encode(images, mask_of())
    for a, b in zip(backbone.encode(images).maps, plain.encode(images).maps, strict=True):
        assert torch.equal(a, b)
    nothing = BlockMask(torch.zeros(2, 8, dtype=torch.bool), 8)
    for a, b in zip(backbone.encode(images, nothing).maps, plain.encode(images).maps, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("offset", [(0, 0, 0), (0, 8, 8)])
def test_a_stage_equals_that_of_the_visible_block(offset):
    """Convolutions, norms and skips of a stage over one seen block equal those of the block cut out."""
    torch.manual_seed(0)
    stage = build_backbone("resenc-xs", SIZE, block=BLOCK).net.encoder.stages[0]
    maps = torch.randn(1, 16, *SIZE)
    box = (slice(None), slice(None), *(slice(k, k + 8) for k in offset))
    alone = stage(maps[box])
    seen = make_sparse(stage)
    mask = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    mask[0, offset[0] // 8, offset[1] // 8, offset[2] // 8] = False
    seen.set(mask.flatten(1), SIZE, BLOCK)
    where = ~to_voxels(mask.flatten(1), SIZE, BLOCK)
    assert torch.allclose(stage(maps * where)[box], alone, atol=1e-5)


def test_maps_coarser_than_blocks_are_visible():
    seen = SparseMask()
    seen.set(torch.zeros(1, 64, dtype=torch.bool), SIZE, (4, 4, 4))
    assert seen.at((4, 4, 4)).shape == (1, 1, 4, 4, 4)
    assert seen.at((2, 2, 2)) is None
    seen.set(torch.zeros(1, 2 * 2 * 2, dtype=torch.bool), (24, 24, 24), (16, 16, 16))
    assert seen.at((12, 12, 12)).shape == (1, 1, 12, 12, 12)
