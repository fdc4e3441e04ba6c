"""`runtime.compile` compiles every block once for each kind of pass, and nothing after the first step.

Graphs are counted and run without compilation, so that no C++ compiler is needed.
"""

import numpy as np
import pytest
import torch
from array_volumes import ArrayVolumes

from viewalign.config import RuntimeSettings
from viewalign.methods.registry import build_method
from viewalign.networks import registry
from viewalign.networks.backbone import Backbone
from viewalign.recipes.loading import load
from viewalign.training.run import view_sampling_config
from viewalign.views.batch import build_views
from viewalign.views.samples import SampleReader

SMALL = ["heads.width=16", "heads.predictor_width=8", "batch=2"]
RECOMPUTE, DROP = "runtime.recompute=true", "network.drop_path=0.2"
CASES = [
    pytest.param("cva-resenc-xs", ["views.patch_size=16"], 18, marks=pytest.mark.long),
    pytest.param("cva-resenc-xs", ["views.patch_size=16", RECOMPUTE], 18, marks=pytest.mark.long),
    pytest.param("spark-resenc-xs", ["views.patch_size=16"], 18, marks=pytest.mark.long),
    pytest.param("cva-resenc-l", ["views.patch_size=[64,32,32]"], 28, marks=pytest.mark.long),
    pytest.param("cva-primus-xs", ["views.patch_size=16", DROP], 10, marks=pytest.mark.slow),
    pytest.param("cva-primus-xs", ["views.patch_size=16", DROP, RECOMPUTE], 10, marks=pytest.mark.long),
    pytest.param("cva-primus-xs", ["views.patch_size=16", DROP, "masking.whole=0.5"], 14, marks=pytest.mark.long),
]


class Graphs:
    """A backend of `torch.compile` that counts graphs."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def passes(method, batch):
    """Run training steps and validation, with and without diagnostics."""
    for return_diagnostics in (True, False):
        method.train()(batch, return_diagnostics=return_diagnostics).loss.backward()
        with torch.no_grad():
            method.eval()(batch, return_diagnostics=return_diagnostics)


@pytest.mark.parametrize(("name", "settings", "most"), CASES)
def test_blocks_are_compiled_in_the_first_step_only(name, settings, most, monkeypatch):
    blocks = registry.RESENC["resenc-l"]["n_blocks_per_stage"]
    narrow = {"features_per_stage": [4, 4, 8, 8, 8, 8], "n_blocks_per_stage": blocks}
    monkeypatch.setitem(registry.RESENC, "resenc-l", narrow)
    recipe = load(name, settings, common=SMALL)
    volumes, every = ArrayVolumes(np.random.default_rng(0).normal(size=(4, 1, 66, 36, 36)).astype(np.float32)), range(4)
    reader = SampleReader(volumes, np.array(every), np.array(every), view_sampling_config(recipe.views), 2, seed=1)
    batch = build_views([reader[0], reader[1]], recipe.views.patch_size, None)
    torch._dynamo.reset()
    graphs, method = Graphs(), build_method(recipe)
    compile_networks(method, recipe.runtime, graphs)
    # A block that reaches the limit would not be compiled.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        passes(method, batch)
        first = graphs.count
        assert 0 < first <= most
        with torch.compiler.set_stance("fail_on_recompile"):
            passes(method, batch)
    assert graphs.count == first
    assert not torch._dynamo.utils.counters["graph_break"]


def compile_networks(method, runtime: RuntimeSettings, backend):
    for network in (module for module in method.modules() if isinstance(module, Backbone)):
        network.recompute = runtime.recompute
        network.compile_blocks(backend)
