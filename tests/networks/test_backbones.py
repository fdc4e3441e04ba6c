import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus

from viewalign.errors import UserError
from viewalign.networks import masking, primus
from viewalign.networks.registry import build_backbone, network_names


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts():
    """Counts of the papers, on the meta device so that nothing large is made."""
    with torch.device("meta"):
        resenc = build_backbone("resenc-l", (64, 64, 64))
        assert parameters(resenc.net.encoder) == 90_296_576
        assert parameters(resenc.net) == 102_348_965


def test_published_parameter_counts_of_primus():
    with torch.device("meta"):
        small, large = (build_backbone("primus-m", (size,) * 3) for size in (64, 160))
    assert parameters(small.net.eva) == 144_084_672
    assert parameters(small.feature_decoder) == 18_399_168
    assert parameters(large.net.eva) == 150_554_304


@pytest.mark.parametrize("name", ["resenc-xs", "primus-xs"])
@pytest.mark.parametrize("size", [(24, 32, 32), (32, 16, 24)])
def test_shapes_for_multiples_of_the_stride(name, size):
    backbone = build_backbone(name, size, block=(8, 8, 8)).eval()
    images = torch.randn(2, 1, *size)
    encoded = backbone.encode(images)
    maps = backbone.dense(encoded)
    assert [tuple(m.shape[2:]) for m in maps] == backbone.grids(size)
    assert tuple(m.shape[1] for m in maps) == backbone.stage_channels
    assert backbone.reconstruct(encoded).shape == images.shape
    assert backbone.pool(maps, torch.ones_like(images, dtype=torch.bool)).shape == (2, backbone.pooled_channels)


@pytest.mark.parametrize("name", ["resenc-xs", "primus-xs"])
def test_pooling_ignores_padding(name):
    backbone = build_backbone(name, (16, 16, 16)).eval()
    maps = [torch.randn(1, c, *g) for c, g in zip(backbone.stage_channels, backbone.grids((16, 16, 16)), strict=True)]
    valid = torch.ones(1, 1, 16, 16, 16, dtype=torch.bool)
    valid[:, :, 8:] = False
    clean = backbone.pool(maps, valid)
    for one in maps:
        one[:, :, one.shape[2] // 2 :] = 1e4
    assert torch.allclose(backbone.pool(maps, valid), clean, atol=1e-5)


def test_unsupported_sizes_are_rejected():
    with pytest.raises(UserError, match=r"multiple of 8.*24.*32"):
        build_backbone("resenc-xs", (32, 28, 32))
    with pytest.raises(UserError, match="single voxel"):
        build_backbone("resenc-xs", (8, 8, 8))
    assert build_backbone("resenc-xs", (32, 32, 8)).grids((32, 32, 8))[-1] == (4, 4, 1)
    with pytest.raises(UserError, match="multiple of 4"):
        build_backbone("primus-xs", (30, 32, 32))
    with pytest.raises(UserError, match="'resnet'"):
        build_backbone("resnet", (32, 32, 32))
    assert "primus-m" in network_names()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6, 0.75, 0.99])
@pytest.mark.parametrize("blocks", [8, 27, 100, 4096])
def test_mask_ratio_is_exact(ratio, blocks):
    mask = masking.sample_mask(np.random.default_rng(0), blocks, ratio)
    assert mask.sum() == min(round(ratio * blocks), blocks - 1)


def test_block_masks_expand_to_voxels():
    mask = torch.zeros(1, 2 * 3 * 2, dtype=torch.bool)
    mask[0, 5] = True  # block (0, 2, 1)
    voxels = masking.to_voxels(mask, (8, 10, 7), (4, 4, 4))
    expected = torch.zeros(1, 1, 8, 10, 7, dtype=torch.bool)
    expected[..., 0:4, 8:10, 4:7] = True
    assert torch.equal(voxels, expected)
    hidden = masking.mask_images(torch.ones(1, 2, 8, 10, 7), mask, (4, 4, 4))
    assert torch.equal(hidden == 0, expected.expand(1, 2, -1, -1, -1))


def test_masked_blocks_do_not_affect_a_cnn():
    torch.manual_seed(0)
    backbone = build_backbone("resenc-xs", (16, 16, 16), block=(8, 8, 8)).eval()
    hidden = torch.zeros(1, 8, dtype=torch.bool)
    hidden[0, 3] = True
    mask = masking.BlockMask(hidden, 7)
    a = torch.randn(1, 1, 16, 16, 16)
    b = a.clone()
    b[:, :, 0:8, 8:16, 8:16] = 77.0
    assert torch.equal(backbone.encode(a, mask).maps[-1], backbone.encode(b, mask).maps[-1])
    assert not torch.equal(backbone.encode(a).maps[-1], backbone.encode(b).maps[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", [(16, 16, 16), (16, 32, 24), (32, 16, 16), pytest.param((32, 32, 32), marks=pytest.mark.long)]
)
def test_gradients_in_bfloat16_agree_with_float32(size):
    """A CPU's bfloat16 convolution has wrong gradients for maps two cells deep, in the encoder and in the decoder."""
    torch.manual_seed(0)
    backbone = build_backbone("resenc-xs", size)
    images = torch.randn(2, 1, *size)

    def gradients(low):
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            encoded = backbone.encode(images)
            maps = [*encoded.maps, *backbone.decode(encoded)]
        loss = sum((m.float() * torch.randn(m.shape, generator=torch.Generator().manual_seed(1))).mean() for m in maps)
        loss.backward()
        return {
            n: p.grad.clone()
            for n, p in backbone.net.named_parameters()
            if n.endswith("conv.weight") and p.grad is not None
        }

    full = gradients(False)
    for name, got in gradients(True).items():
        # Rounding changes the direction of a gradient by some twenty degrees over a dozen layers.
        assert float(torch.cosine_similarity(got.flatten(), full[name].flatten(), 0)) > 0.9, name
        assert float(got.norm()) == pytest.approx(float(full[name].norm()), rel=0.2), name


def make_primus():
    torch.manual_seed(0)
    return build_backbone("primus-xs", (16, 24, 32)).eval()


def test_primus_without_dropping_agrees_with_the_library():
    backbone = make_primus()
    plain = Primus(1, 192, (4, 4, 4), 1, 6, 4, (16, 24, 32), init_values=0.1, scale_attn_inner=True).eval()
    plain.load_state_dict(backbone.net.state_dict())
    images = torch.randn(2, 1, 16, 24, 32)
    tokens = backbone.encode(images).tokens
    restored = backbone.net.up_projection(tokens.transpose(1, 2).unflatten(2, (4, 6, 8)))
    assert torch.allclose(restored, plain(images), atol=1e-5)


def test_kept_tokens_do_not_depend_on_dropped_ones():
    """Dropping tokens equals attention masked to the kept tokens."""
    backbone = make_primus()
    images = torch.randn(2, 1, 16, 24, 32)
    rng = np.random.default_rng(0)
    mask = masking.sample_masks([rng, rng], 4 * 6 * 8, 0.75, torch.device("cpu"))
    kept = masking.kept_tokens(mask)
    got = backbone.encode(images, mask)
    tokens = backbone.net.down_projection(images).flatten(2).transpose(1, 2) + backbone.net.eva.pos_embed
    rope = backbone.net.eva.rope.get_embed()
    for row in range(2):
        one = tokens[row : row + 1]
        allowed = (~mask.hidden[row])[None, None, None].expand(1, 1, one.shape[1], -1)
        for block in backbone.net.eva.blocks:
            one = block(one, rope=rope, attn_mask=allowed)
        expected = backbone.net.eva.norm(one)[0, kept[row]]
        assert torch.allclose(got.tokens[row, kept[row]], expected, atol=1e-4)
        assert torch.equal(got.tokens[row, mask.hidden[row]], backbone.filler.expand(int(mask.hidden[row].sum()), -1))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("whole", [(), (1,), (0, 2, 3), (0, 1, 2, 3)], ids=str)
def test_images_with_more_tokens_than_others(whole, recompute):
    """Whole images and masked ones of a batch are encoded as each of them alone, with its own stochastic depth."""
    torch.manual_seed(0)
    backbone = build_backbone("primus-xxs", (8, 16, 8), drop_path=0.5).double()
    images = torch.randn(4, 1, 8, 16, 8, dtype=torch.float64)
    masks = masking.sample_masks([np.random.default_rng(k) for k in range(4)], 2 * 4 * 2, 0.75, torch.device("cpu"))
    shown = torch.tensor([[row in whole] for row in range(4)])
    mask = masking.BlockMask(masks.hidden & ~shown, masks.kept, whole)
    seeds = [7, 8, 9, 11]

    def gradients(rows, mask):
        backbone.zero_grad()
        backbone.sample_drop_path([np.random.default_rng(seeds[row]) for row in rows])
        tokens = backbone.encode(images[rows], mask).tokens
        (tokens * torch.arange(1, tokens.shape[1] + 1)[:, None]).square().sum().backward()
        return tokens.detach(), {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}

    alone = [
        gradients([row], masking.BlockMask(mask.hidden[row : row + 1], 16 if row in whole else masks.kept))
        for row in range(4)
    ]
    backbone.recompute = recompute
    tokens, found = gradients(list(range(4)), mask)
    assert torch.allclose(tokens, torch.cat([one for one, _ in alone]), atol=1e-10)
    assert "filler" in found, "other processes wait for its gradient"
    for name, gradient in found.items():
        expected = sum(by_name[name] for _, by_name in alone if name in by_name)
        assert torch.allclose(gradient, expected + torch.zeros_like(gradient), rtol=1e-8, atol=1e-8), name


def test_restored_tokens_are_in_raster_order():
    tokens = torch.arange(2 * 3 * 1.0).view(2, 3, 1) + 10
    kept = torch.tensor([[0, 2, 5], [1, 3, 4]])
    full = primus.restore_tokens(tokens, kept, torch.tensor([-1.0]), 6)
    assert full[..., 0].tolist() == [[10, -1, 11, -1, -1, 12], [-1, 13, -1, 14, 15, -1]]


def test_kept_tokens_are_not_masked():
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    assert masking.kept_tokens(masking.BlockMask(mask, 2)).tolist() == [[1, 3], [0, 1]]


@pytest.mark.parametrize("name", ["resenc-xs", "primus-xs"])
def test_dense_features_without_the_decoder(name):
    backbone = build_backbone(name, (16, 16, 16))
    before = parameters(backbone)
    backbone.drop_decoder()
    assert parameters(backbone) < before
    assert backbone.dense(backbone.encode(torch.randn(1, 1, 16, 16, 16)))


@pytest.mark.parametrize("name", ["resenc-xs", "primus-xs"])
def test_plain_decoder_uses_only_the_coarsest_map(name):
    backbone = build_backbone(name, (16, 24, 16)).eval()
    decoder = backbone.plain_decoder().eval()
    encoded = backbone.encode(torch.randn(2, 1, 16, 24, 16))
    maps = backbone.decode_with(decoder, encoded)
    assert [tuple(one.shape[2:]) for one in maps] == [(16 >> k, 24 >> k, 16 >> k) for k in range(len(maps))]
    assert tuple(one.shape[1] for one in maps) == decoder.channels
    coarsest = backbone.maps(encoded)[-1]
    assert 2 ** len(maps) * coarsest.shape[2] == 16
    for one, again in zip(maps, decoder(coarsest), strict=True):
        assert torch.equal(one, again)


def test_positions_of_smaller_views():
    """As nnU-Net does: learned positions are resized linearly, rotary ones taken by index."""
    large, small = (build_backbone("primus-xs", size).eval() for size in ((16, 24, 16), (8, 24, 16)))
    state = large.net.eva.state_dict()
    table = state["pos_embed"].transpose(1, 2).unflatten(2, (4, 6, 4))
    resized = torch.nn.functional.interpolate(table, (2, 6, 4), mode="trilinear", align_corners=False)
    small.net.eva.load_state_dict({**state, "pos_embed": resized.flatten(2).transpose(1, 2)})
    small.net.down_projection.load_state_dict(large.net.down_projection.state_dict())
    images = torch.randn(2, 1, 8, 24, 16)
    with torch.no_grad():
        assert torch.allclose(large.maps(large.encode(images))[0], small.maps(small.encode(images))[0], atol=1e-5)
        assert large.reconstruct(large.encode(images)).shape == images.shape
        with pytest.raises(ValueError, match=r"\[4, 6, 4\]"):
            small.encode(torch.randn(1, 1, 16, 24, 16))
