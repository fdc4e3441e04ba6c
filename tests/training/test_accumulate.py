"""Settings that save memory or time do not change loss and gradients."""

import shutil
from contextlib import nullcontext

import pytest
import torch
from run_fixtures import tiny_network

from viewalign.errors import UserError
from viewalign.methods.registry import build_method
from viewalign.networks.backbone import Backbone
from viewalign.recipes.loading import load
from viewalign.training.accumulate import evaluate_in_parts, step_in_parts
from viewalign.training.launch import launch
from viewalign.views.batch import build_views
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig

pytestmark = pytest.mark.slow

SMALL = ["heads.width=16", "heads.predictor_width=8", "batch=4", "heads.norm=batch", "network.drop_path=0.3"]


@pytest.fixture(scope="module")
def batch():
    import numpy as np

    class Noise(ArraySource):
        def __len__(self):
            return 4

        def read(self, k, start, stop):
            self._array = np.random.default_rng(k).normal(size=(1, 20, 22, 18)).astype(np.float32)
            return super().read(k, start, stop)

    every = np.arange(4)
    reader = SampleReader(Noise(np.zeros((20, 22, 18))), every, every, ViewSamplingConfig((16, 16, 16)), 4, seed=1)
    return build_views([reader[k] for k in range(4)], (16, 16, 16), None).double()


def method_of(recipe, *settings):
    torch.manual_seed(0)
    return build_method(
        load(recipe, ["views.patch_size=[16,16,16]", tiny_network(recipe), *settings], common=SMALL)
    ).double()


def gradients(method):
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def whole(method, batch):
    result = method(batch)
    result.loss.backward()
    return result, gradients(method)


def same(ours, theirs, limit=1e-10):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = float(value.abs().max().clamp(min=1e-12))
        assert float((ours[name] - value).abs().max()) <= limit * scale + 1e-14, name


@pytest.mark.parametrize("recipe", ["cva-resenc-xs", "cva-primus-xs"])
@pytest.mark.parametrize("order", ["project_first", "align_first"])
def test_parts_equal_the_whole_batch(recipe, order, batch):
    """Loss, logs and all gradients equal those of the whole batch, in float64."""
    method = method_of(recipe, f"objectives.order={order}")
    once, wanted = whole(method, batch)
    method.zero_grad(set_to_none=True)
    in_parts = step_in_parts(method, batch, 2, nullcontext, return_diagnostics=True)
    for name, value in once.logs.items():
        assert float(in_parts.logs[name]) == pytest.approx(float(value), rel=1e-10, abs=1e-12), name
    same(gradients(method), wanted)
    assert in_parts.pictures["reconstruction"].shape == (8, 1, 16, 16, 16)
    evaluated = evaluate_in_parts(method, batch, 4, nullcontext)
    assert float(evaluated.loss) == pytest.approx(float(once.loss.detach()), rel=1e-10)


def test_plain_accumulation_has_another_loss(batch):
    """The mean of the losses of the parts is not the loss of the batch."""
    method = method_of("cva-resenc-xs")
    halves = [float(method(batch.part(k, k + 2)).loss.detach()) for k in (0, 2)]
    assert abs(sum(halves) / 2 - float(method(batch).loss.detach())) > 1e-3


@pytest.mark.parametrize("recipe", ["cva-resenc-xs", "cva-primus-xs"])
def test_recomputation_does_not_change_gradients(recipe, batch):
    method = method_of(recipe)
    _, wanted = whole(method, batch)
    method.zero_grad(set_to_none=True)
    method.encoder().recompute = True
    same(whole(method, batch)[1], wanted)


def test_recomputation_saves_memory(batch):
    """Count the bytes that autograd saves for the backward pass."""

    def saved(recompute):
        method = method_of("cva-primus-xs")
        for network in (module for module in method.modules() if isinstance(module, Backbone)):
            network.recompute = recompute
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
            method(batch)
        return sum(held)

    assert saved(True) < 0.6 * saved(False)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("recipe", ["cva-resenc-xs", "cva-primus-xs"])
def test_compilation_does_not_change_loss_and_gradients(recipe, batch):
    torch._dynamo.reset()
    method = method_of(recipe)
    once, wanted = whole(method, batch)
    method.zero_grad(set_to_none=True)
    method.encoder().compile_blocks()
    compiled, ours = whole(method, batch)
    assert float(compiled.loss.detach()) == pytest.approx(float(once.loss.detach()), rel=1e-8)
    same(ours, wanted, limit=1e-6)
    assert list(method.state_dict()) == list(method_of(recipe).state_dict()), "names of weights stay"


def test_parts_must_divide_the_batch(tiny_recipe):
    with pytest.raises(UserError, match=r"runtime\.accumulate=3"):
        launch(tiny_recipe("runtime.accumulate=3", "runtime.device=cpu"))
