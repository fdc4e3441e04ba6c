"""Operation counts against those of the released code, in GFLOP per view."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from viewalign.errors import UserError
from viewalign.networks import heads
from viewalign.networks.registry import build_backbone
from viewalign.recipes.loading import load
from viewalign.training import cost, throughput
from viewalign.training.cost import Remedy, remedies, step_flops
from viewalign.training.throughput import CARDS, card, measured_flops, measured_step
from viewalign.views.feature_grids import common_grid

pytestmark = pytest.mark.slow


def test_operations_of_resenc_l():
    # Student forward and backward 4614.5; teacher encoder 978.2 and its projector 87.5, without the decoder it had.
    expected = 8 * (4614.5 + 978.2 + 87.5) * 1e9
    assert step_flops(load("cva-resenc-l", ["batch=4"])) == pytest.approx(expected, rel=0.05)


def test_operations_of_primus_m_with_dropped_tokens():
    # At 160³: encoder of kept tokens 794.5, feature decoder and decoder 729.0 each, projector 162.6, predictor 33.6;
    # the teacher's encoder of all tokens is its 6745.2 less decoder and projector, and it has the feature decoder too.
    student = 794.5 + 2 * 729.0 + 162.6 + 33.6
    teacher = 6745.2 - 729.0 - 162.6 + 729.0 + 162.6
    recipe = load("cva-primus-m", ["views.patch_size=160", "batch=4"])
    assert step_flops(recipe) == pytest.approx(8 * (3 * student + teacher) * 1e9, rel=0.15)


def test_terms_of_weight_0_cost_nothing():
    whole = step_flops(load("cva-resenc-l", ["views.patch_size=64"]))
    off = ["objectives.consistency_weight=0", "objectives.contrastive_weight=0"]
    plain = step_flops(load("cva-resenc-l", ["views.patch_size=64", *off]))
    aligned = step_flops(load("cva-resenc-l", ["views.patch_size=64", "objectives.order=align_first"]))
    assert plain < aligned < whole


def test_whole_views_of_a_primus_keep_all_of_their_tokens():
    whole = {share: step_flops(load("cva-primus-xs", [f"masking.whole={share}"])) for share in (0, 0.5, 1)}
    assert whole[0] < whole[0.5] < whole[1]
    assert whole[0.5] == pytest.approx((whole[0] + whole[1]) / 2)
    assert whole[1] == pytest.approx(step_flops(load("cva-primus-xs", ["masking.ratio=0"])))


@pytest.mark.parametrize("left", ["consistency", "contrastive"])
def test_features_are_compared_for_either_term(left):
    """Which takes dense features and a teacher, while a reconstruction takes neither."""
    off = {name: f"objectives.{name}_weight=0" for name in ("consistency", "contrastive")}
    none = step_flops(load("cva-resenc-xs", ["views.patch_size=32", *off.values()]))
    del off[left]
    assert step_flops(load("cva-resenc-xs", ["views.patch_size=32", *off.values()])) > none


def test_operations_of_the_heads_are_counted_as_their_layers_have():
    own = ["views.patch_size=32", "heads.width=24", "heads.predictor_width=8", "objectives.cells=[2,3,4]"]
    backbone = build_backbone("resenc-xs", (32, 32, 32))
    rows = 5
    with FlopCounterMode(display=False) as counter:
        projected = heads.projector(sum(backbone.stage_channels), 24, "batch")(
            torch.randn(rows, sum(backbone.stage_channels)), torch.ones(rows)
        )
        heads.predictor(24, 8, "batch")(projected, torch.ones(rows))
    each = counter.get_total_flops() / rows
    for order, vectors in (
        ("align_first", 2 * 3 * 4),
        ("project_first", math.prod(common_grid(backbone.grids((32, 32, 32))))),
    ):
        recipe = load("cva-resenc-xs", [*own, f"objectives.order={order}"])
        assert cost._head_flops(recipe, backbone) == pytest.approx(each * vectors)


def test_recomputation_repeats_the_forward_pass():
    plain, again = (step_flops(load("mae-resenc-xs", [f"runtime.recompute={value}"])) for value in ("false", "true"))
    assert again == pytest.approx(plain * 4 / 3)


def test_remedies_are_valid_overrides(monkeypatch):
    """Each changes one setting and is simulated with it."""
    recipe = load("cva-resenc-l", ["batch=4", "views.patch_size=[128,96,128]"])
    seen = []
    monkeypatch.setattr(cost, "simulated_peak", lambda *given: seen.append(given) or 10**9 * len(seen))
    found = remedies(recipe, "bf16")
    settings = ["runtime.recompute=true", "runtime.accumulate=2", "batch=2", "views.patch_size=[96,64,96]"]
    assert found == [Remedy(setting, 10**9 * k) for k, setting in enumerate(settings, 1)]
    for setting, (changed, precision, processes) in zip(settings, seen, strict=True):
        assert changed == load("cva-resenc-l", ["batch=4", "views.patch_size=[128,96,128]", setting])
        assert (precision, processes) == ("bf16", 1)


def test_remedies_exclude_active_and_impossible_settings(monkeypatch):
    monkeypatch.setattr(cost, "simulated_peak", lambda *_: 1)
    given = ["batch=4", "runtime.recompute=true", "views.patch_size=32"]
    assert [one.setting for one in remedies(load("cva-resenc-l", given), "bf16", 4)] == []
    assert [one.setting for one in remedies(load("cva-resenc-l", given), "bf16", 2)] == [
        "runtime.accumulate=2",
        "batch=2",
    ]


def test_cards_before_ampere_use_fp16():
    assert {key for key, card in CARDS.items() if card.half == "fp16"} == {"v100", "t4"}


def test_a_measured_rate_replaces_the_anchor(monkeypatch):
    gpu = CARDS["h100"]
    assert throughput.rate_of(gpu, "resenc-l") == (gpu.flops, throughput.ANCHOR)
    monkeypatch.setitem(throughput.MEASURED, (gpu.name, "resenc-l"), (2e14, "docs/benchmarks.md"))
    assert throughput.rate_of(gpu, "resenc-l") == (2e14, "docs/benchmarks.md")
    assert throughput.rate_of(gpu, "primus-m") == (gpu.flops, throughput.ANCHOR)


def test_time_on_an_a100():
    iteration = 2 * 3 * 2802e9  # two crops of 160³ through the bare U-Net, forward and backward
    assert 250_000 * iteration / CARDS["a100"].flops / 3600 == pytest.approx(35, rel=0.03)
    assert CARDS["rtx3090"].flops < CARDS["a100"].flops < CARDS["h100"].flops
    assert card("RTX 4090") is CARDS["rtx4090"]
    with pytest.raises(UserError, match=r"abacus.*v100"):
        card("abacus")


def test_rate_of_this_machine():
    assert measured_flops("fp32", seconds=0.1) > 1e8
    assert 0 < measured_step(load("cva-resenc-xs", ["views.patch_size=16", "batch=2"]), "fp32", repeats=1) < 120


def test_a_step_takes_the_shortest_of_the_times_after_a_warm_up(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 13.0, 20.0, 22.0])
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    recipe = load("mae-resenc-xs", ["views.patch_size=16", "batch=2", "network=resenc-xxs"])
    assert measured_step(recipe, "fp32", repeats=2, device="cpu") == 2.0


def test_artificial_volumes_are_1_4_times_as_large_as_a_view():
    samples = throughput.artificial_samples(load("mae-resenc-xs", ["views.patch_size=[16,32,48]"]), 3)
    assert [sample.shape for sample in samples] == [(22, 45, 67)] * 3


def test_a_measured_rate_counts_the_operations_of_forward_and_backward(monkeypatch):
    layer, image = torch.nn.Conv3d(32, 32, 3, padding=1), torch.zeros(1, 32, 48, 48, 48, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(image).sum().backward()
    seconds = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    assert measured_flops("fp32", seconds=1.0, device="cpu") == pytest.approx(counter.get_total_flops())


def test_operations_of_a_method_with_one_view():
    recipe = load("mae-resenc-l", ["views.patch_size=128", "batch=8"])
    views = step_flops(recipe) / (8 * 3 * (978.2 + 456.5) * 1e9)
    assert views == pytest.approx(1, rel=0.05)
    assert 0 < measured_step(load("mae-resenc-xs", ["views.patch_size=16", "batch=2"]), "fp32", repeats=1) < 120


def test_operations_of_other_methods():
    """A masked autoencoder costs three forward passes with decoder per view, and SimCLR no decoder."""
    flops = {
        name: step_flops(load(name, ["views.patch_size=160", "batch=8"]))
        for name in ("cva-resenc-l", "mae-resenc-l", "simclr-resenc-l", "fusion-resenc-l", "swinunetr-resenc-l")
    }
    assert flops["mae-resenc-l"] == pytest.approx(8 * 3 * 2.802e12, rel=0.02)
    assert 2 * flops["mae-resenc-l"] < flops["cva-resenc-l"]
    assert flops["simclr-resenc-l"] < 2 * flops["mae-resenc-l"] == pytest.approx(flops["swinunetr-resenc-l"])
    assert flops["fusion-resenc-l"] == pytest.approx(flops["mae-resenc-l"] / 2)


def test_operations_of_local_views_and_a_teacher():
    """Two global views and eight of an eighth of their voxels, and the teacher's two without a backward pass."""
    recipe = load("dino-resenc-l", ["views.patch_size=128", "batch=8"])
    assert step_flops(recipe) == pytest.approx(8 * (3 * 3 + 2) * 978.2e9, rel=0.05)


def test_heads_that_are_not_there_are_not_counted():
    assert step_flops(load("cva-resenc-xs", ["heads.projector=none"])) < step_flops(load("cva-resenc-xs"))
