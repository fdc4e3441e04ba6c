"""Matching weights: by name, by stated rules, and nothing silently."""

import json

import pytest
import torch
from torch.nn import functional as F

from viewalign.weights.matching import adapt_channels, match_weights, resize_positions


def test_loaded_left_fresh_and_their_share():
    target = {"a.x.w": torch.zeros(6), "a.x.b": torch.zeros(2), "b.y": torch.zeros(4)}
    source = {"a.x.w": torch.ones(6), "b.y": torch.ones(5), "c.z": torch.ones(9)}
    matched = match_weights(target, source)
    assert set(matched.state) == {"a.x.w"}
    assert {row.name: row.what for row in matched.report.rows} == {
        "a.x.w": "loaded",
        "a.x.b": "fresh",
        "b.y": "left",
        "c.z": "left",
    }
    assert matched.report.counts() == {"loaded": 1, "adapted": 0, "left": 2, "fresh": 1}
    assert matched.report.share() == pytest.approx(6 / 12)
    assert matched.report.share(["a."]) == pytest.approx(6 / 8)
    assert [row.name for row in matched.report.missing(["a."])] == ["a.x.b"]
    assert [row.name for row in matched.report.missing()] == ["a.x.b", "b.y"]
    text = matched.report.table()
    assert "left b.y: its shape is [5], [4] is needed" in text
    assert "left c.z: the network has no such weight" in text
    assert "75%" in text
    assert json.loads(json.dumps(matched.report.as_json()))["counts"]["fresh"] == 1


def test_a_table_of_many_weights_stays_short():
    target = {f"encoder.stages.{k}.weight": torch.zeros(3) for k in range(400)}
    source = {f"encoder.stages.{k}.weight": torch.zeros(3 + k % 50) for k in range(400)}
    assert len(match_weights(target, source).report.table().splitlines()) < 15


@pytest.mark.parametrize(("before", "after"), [((2, 2, 2), (4, 4, 4)), ((3, 4, 5), (5, 3, 2)), ((2, 3, 4), (4, 3, 2))])
def test_positions_are_resized_on_their_own_grid(before, after):
    """A table that is linear along each axis stays so inside; grids of equal counts but other sides differ too."""
    table = torch.randn(1, before[0] * before[1] * before[2], 7)
    target = {"eva.pos_embed": torch.zeros(1, after[0] * after[1] * after[2], 7)}
    matched = match_weights(target, {"eva.pos_embed": table}, [resize_positions(before, after)])
    image = table[0].T.reshape(1, 7, *before)
    expected = F.interpolate(image, size=after, mode="trilinear", align_corners=False)[0].reshape(7, -1).T[None]
    assert torch.allclose(matched.state["eva.pos_embed"], expected)
    assert matched.report.rows[0].what == "adapted"
    assert "positions resized" in matched.report.rows[0].note


def test_each_axis_of_a_position_table_is_its_own():
    before, after = (2, 4, 6), (4, 4, 3)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(n) + 0.5 for n in before), indexing="ij"), dim=-1)
    rule = resize_positions(before, after)
    out, _ = rule("eva.pos_embed", torch.Size([1, 48, 3]), ramps.reshape(1, 48, 3))
    out = out.reshape(*after, 3)
    assert torch.allclose(out[:, 0, 0, 0], torch.tensor([0.5, 0.75, 1.25, 1.5]))  # ends are held
    assert torch.allclose(out[0, :, 0, 1], torch.arange(4) + 0.5)
    assert torch.allclose(out[0, 0, :, 2], torch.tensor([1.0, 3.0, 5.0]))


def test_an_equal_grid_or_another_table_is_not_resized():
    rule = resize_positions((2, 2, 2), (4, 4, 4))
    assert resize_positions((2, 2, 2), (2, 2, 2))("pos_embed", torch.Size([1, 8, 3]), torch.zeros(1, 8, 3)) is None
    assert rule("eva.pos_embed", torch.Size([1, 64, 3]), torch.zeros(1, 9, 3)) is None
    assert rule("eva.other", torch.Size([1, 64, 3]), torch.zeros(1, 8, 3)) is None
    matched = match_weights({"pos_embed": torch.zeros(1, 64, 4)}, {"pos_embed": torch.zeros(1, 8, 3)}, [rule])
    assert matched.report.rows[0].what == "left"  # another width


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 5), (2, 3), (3, 2), (4, 1), (3, 6)])
def test_channels_keep_the_answer_to_identical_channels(before, after):
    weight = torch.randn(8, before, 3, 3, 3)
    matched = match_weights({"stem": torch.zeros(8, after, 3, 3, 3)}, {"stem": weight}, [adapt_channels({"stem"})])
    image = torch.randn(1, 1, 6, 6, 6)
    was = F.conv3d(image.expand(-1, before, -1, -1, -1), weight)
    now = F.conv3d(image.expand(-1, after, -1, -1, -1), matched.state["stem"])
    assert torch.allclose(was, now, atol=1e-4)
    assert matched.report.rows[0].note.startswith(f"{before} input channel{'s' * (before > 1)} made {after}")


def test_channels_of_other_layers_and_other_kernels_are_left():
    rule = adapt_channels({"stem"})
    target = {"stem": torch.zeros(8, 2, 5, 5, 5), "other": torch.zeros(8, 2, 3, 3, 3)}
    source = {"stem": torch.zeros(8, 1, 3, 3, 3), "other": torch.zeros(8, 1, 3, 3, 3)}
    matched = match_weights(target, source, [rule])
    assert not matched.state
    assert matched.report.rows[0].note == "its shape is [8, 1, 3, 3, 3], [8, 2, 5, 5, 5] is needed"
