"""The repair of weights whose tokens lay in another order, proved against a network that flattens them so."""

import pytest
import torch
from timm.layers import RotaryEmbeddingCat

from viewalign.errors import UserError
from viewalign.networks.primus import run_eva
from viewalign.networks.registry import build_backbone
from viewalign.weights import adaptation_plan, token_order
from viewalign.weights.sources import read_weights


def shaken(size):
    """A primus-xs whose positions matter: projections of random size, so that attention differs from place to place."""
    torch.manual_seed(3)
    backbone = build_backbone("primus-xs", size).eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            scale = 0.2 if "q_proj" in name or "k_proj" in name or "pos_embed" in name else 0.02
            parameter.add_(torch.randn_like(parameter) * scale)
    return backbone


def flatten_wrongly(maps):
    """(N, C, d, h, w) to tokens in the order (h, d, w)."""
    return maps.permute(0, 3, 2, 4, 1).flatten(1, 3)


def unflatten_wrongly(tokens, grid):
    return tokens.unflatten(1, (grid[1], grid[0], grid[2])).permute(0, 4, 2, 1, 3)


def run_defective(backbone, images, grid):
    """Encode and decode as a network does that flattens tokens as (h, d, w)."""
    tokens = flatten_wrongly(backbone.net.down_projection(images))
    encoded = run_eva(backbone.net.eva, tokens)
    features = unflatten_wrongly(run_eva(backbone.feature_decoder, encoded), grid)
    decoded = unflatten_wrongly(run_eva(backbone.decoder, encoded), grid)
    return unflatten_wrongly(encoded, grid), features, backbone.net.up_projection(decoded)


def run_right(backbone, images, grid):
    encoded = backbone.encode(images)
    maps = encoded.tokens.transpose(1, 2).unflatten(2, grid)
    return maps, backbone.dense(encoded)[0], backbone.reconstruct(encoded)


def checkpoint_of(backbone, path, size, trainer):
    state = {name.removeprefix("net."): value for name, value in backbone.state_dict().items()}
    plan = adaptation_plan.adaptation_plan("primus-xs", 1, size, None, False, trainer)
    torch.save(adaptation_plan.checkpoint(state, plan, 1), path)
    return path


def loaded(source, size):
    backbone = build_backbone("primus-xs", size).eval()
    top = {"eva", "down_projection", "up_projection"}
    state = {("net." if name.split(".")[0] in top else "") + name: value for name, value in source.state.items()}
    backbone.load_state_dict(state, strict=False)
    return backbone


@pytest.mark.slow
@pytest.mark.parametrize("size", [(12, 12, 12), (12, 12, 8), (8, 12, 16), (16, 8, 12)])
@torch.no_grad()
def test_repaired_weights_give_the_defective_network_s_features(size, tmp_path):
    """Where the first two sides differ, the defective network's tables lie as its tokens do: sides exchanged."""
    grid = tuple(n // 4 for n in size)
    defective = shaken((size[1], size[0], size[2]))
    file = checkpoint_of(defective, tmp_path / "mae.pth", size, "BaseEvaMAETrainer_BS8")
    images = torch.randn(2, 1, *size)
    expected = run_defective(defective, images, grid)
    source = read_weights(file)
    assert source.grid == grid
    assert "rotary channels exchanged" in " ".join(source.notes)
    assert ("may not be exact" in " ".join(source.notes)) == (grid[0] != grid[1])
    for got, wanted in zip(run_right(loaded(source, size), images, grid), expected, strict=True):
        assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max().clamp(min=1)
    unrepaired = run_right(loaded(read_weights(file, "dhw"), size), images, grid)
    for got, wanted in zip(unrepaired, expected, strict=True):
        assert (got - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("part", ["positions", "rotary"])
@torch.no_grad()
def test_half_a_repair_is_none(part, tmp_path, monkeypatch):
    size, grid = (12, 12, 8), (3, 3, 2)
    defective = shaken(size)
    file = checkpoint_of(defective, tmp_path / "mae.pth", size, "EvaMAETrainer")
    name = {"positions": "transpose_positions", "rotary": "swap_rotary"}[part]
    monkeypatch.setattr(token_order, name, lambda value, _: value)
    images = torch.randn(1, 1, *size)
    wanted = run_defective(defective, images, grid)[0]
    got = run_right(loaded(read_weights(file), size), images, grid)[0]
    assert (got - wanted).abs().max() > 1e-3 * wanted.abs().max()


@pytest.mark.parametrize("head", [48, 54, 72])
def test_a_rotary_head_is_one_group_of_channels_an_axis(head):
    """timm's own tables: exchanging the first two groups is exchanging the first two axes."""
    tables = []
    for grid in [(2, 3, 4), (3, 2, 4)]:
        rope = RotaryEmbeddingCat(round(head / 1.5), in_pixels=False, feat_shape=grid, ref_feat_shape=grid)
        assert rope.get_embed().shape == (24, 2 * head)
        tables.append(rope.get_embed().reshape(*grid, 2, 3, head // 3))
    assert torch.equal(tables[0][..., [1, 0, 2], :], tables[1].transpose(0, 1))
    for axis in range(3):  # the group of an axis changes along it alone, and its channels come in equal pairs
        group = tables[0][..., axis, :]
        others = [other for other in range(3) if other != axis]
        assert torch.equal(group, group.narrow(others[0], 0, 1).narrow(others[1], 0, 1).expand_as(group))
        assert (group.diff(dim=axis) != 0).any()
        assert torch.equal(group[..., ::2], group[..., 1::2])


def test_the_repair_is_its_own_inverse():
    table, rows = torch.randn(1, 24, 5), torch.randn(144, 7)
    once = token_order.transpose_positions(table, (2, 3, 4))
    assert not torch.equal(once, table)
    assert torch.equal(token_order.transpose_positions(once, (3, 2, 4)), table)
    assert torch.equal(token_order.swap_rotary(token_order.swap_rotary(rows, 2), 2), rows)
    assert torch.equal(token_order.swap_rotary(rows, 2)[:24], rows[24:48])
    assert torch.equal(token_order.swap_rotary(rows[:, 0], 2)[72:96], rows[96:120, 0])


@pytest.mark.parametrize(
    ("trainer", "order"),
    [
        ("BaseEvaMAETrainer", "hdw"),
        ("BaseEvaMAETrainer_BS8_192ps_4000ep", "hdw"),
        ("EvaMAETrainer", "hdw"),
        ("AlignedMAEFTLR3EvaTrainer", "dhw"),
        ("GramAlignedMAEFTConEvaLR3Trainer", "dhw"),
        ("FeatConDecAlignedMAEFTEvaTrainer", "dhw"),
        ("ConMAEFTEvaLR3Trainer", "dhw"),
        ("SimMIMEvaTrainer_BS8", "dhw"),
        ("viewalign_cva", "dhw"),
        ("VolumeFusionEvaTrainer", None),
        ("MAETrainer", None),
        ("", None),
    ],
)
def test_trainers_determine_the_order(trainer, order):
    assert token_order.order_of(trainer) == order


@pytest.mark.parametrize("trainer", ["", "MyOwnTrainer"])
def test_an_unknown_order_must_be_set(trainer, tmp_path):
    size = (12, 12, 8)
    backbone = shaken(size)
    file = checkpoint_of(backbone, tmp_path / "mae.pth", size, trainer)
    with pytest.raises(UserError, match=r"init\.token_order=hdw"):
        read_weights(file)
    kept, repaired = read_weights(file, "dhw").state, read_weights(file, "hdw").state
    assert torch.equal(kept["eva.pos_embed"], backbone.net.eva.pos_embed)
    assert not torch.equal(repaired["eva.pos_embed"], kept["eva.pos_embed"])
    changed = {name for name in kept if not torch.equal(kept[name], repaired[name])}
    assert len(changed) == 3 + 3 * (6 + 2 + 2)  # tables; query weight and bias, key weight of every block


def test_exported_tokens_lie_with_the_first_two_axes_exchanged():
    grid, width = (2, 3, 4), 192
    table = torch.randn(1, 24, width)
    exported = token_order.to_hdw({"eva.pos_embed": table, "encoder.x": table}, grid)
    for d, h, w in torch.cartesian_prod(*(torch.arange(n) for n in grid)).tolist():
        assert torch.equal(exported["eva.pos_embed"][0, (h * 2 + d) * 4 + w], table[0, (d * 3 + h) * 4 + w])
    assert torch.equal(exported["encoder.x"], table)
    assert torch.equal(token_order.repair(exported, grid)["eva.pos_embed"], table)
