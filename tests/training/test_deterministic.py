"""Steps call no operation without a deterministic implementation on GPUs."""

import numpy as np
import pytest
import torch
from array_volumes import ArrayVolumes
from torch.utils._python_dispatch import TorchDispatchMode

from viewalign.methods.registry import METHODS, build_method, requirements_of
from viewalign.recipes.loading import load
from viewalign.training.launch import launch
from viewalign.training.run import pretrain, view_sampling_config
from viewalign.views.batch import build_views
from viewalign.views.samples import SampleReader

from .conftest import smooth_volumes, tiny_network

pytestmark = pytest.mark.slow

SMALL = ["views.patch_size=16", "heads.width=16", "batch=4"]
CHANGES = [
    f"views.photometric.p_{name}=1" for name in ("brightness", "contrast", "gamma", "low_resolution", "blur", "noise")
]
CASES = [
    *((f"{method}-{family}-xs", ()) for method, entry in METHODS.items() for family in entry.networks),
    ("cva-resenc-xs", ("objectives.order=align_first",)),
    ("cva-resenc-xs", ("objectives.consistency=nt_xent",)),
    ("cva-resenc-xs", ("geometry=latentcampus",)),
    ("cva-resenc-xs", ("views.independent=true", *CHANGES)),
]
REFUSED = {
    *("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", "avg_pool3d_backward", "bincount"),
    *("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "_ctc_loss_backward", "cumsum", "histc"),
    *(
        "fractional_max_pool2d_backward",
        "fractional_max_pool3d_backward",
        "kthvalue",
        "max_pool3d_with_indices_backward",
    ),
    *("grid_sampler_2d_backward", "grid_sampler_3d_backward", "max_unpool2d", "max_unpool3d", "median", "nanmedian"),
    *("put_", "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward", "scatter_reduce"),
    *("upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "upsample_linear1d_backward"),
    *("upsample_trilinear3d_backward",),
}
"""Operations that torch's `use_deterministic_algorithms` refuses on a GPU, in the newest version or in one that may be
installed; `nll_loss2d_forward` only where it adds up, `_embedding_bag` only for the maximum."""


class Calls(TorchDispatchMode):
    """Records the operations that are called."""

    def __init__(self):
        super().__init__()
        self.names, self.excluded = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names.add(name)
        adds_up = name == "nll_loss2d_forward" and args[3] != 0
        if name in REFUSED or adds_up or (name == "_embedding_bag" and args[4] == 2):
            self.excluded.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("recipe", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_operations_of_a_step_are_deterministic(recipe, settings):
    made = load(recipe, settings, common=[*SMALL, tiny_network(recipe)])
    method, every, requirements = build_method(made), np.arange(8), requirements_of(made)
    volumes = ArrayVolumes(array[None] for array in smooth_volumes(8, (26, 30, 28)).values())
    reader = SampleReader(
        volumes, every, every, view_sampling_config(made.views), 4, seed=1, sampler=requirements.sampler
    )
    samples, changes = [reader[k] for k in range(4)], made.views.photometric
    with Calls() as calls:
        batch = build_views(samples, made.views.patch_size, changes, torch.device("cpu"), 0)
        method(batch, return_diagnostics=True).loss.backward()
        method.after_update(1)
    assert {"convolution_backward", "native_batch_norm_backward"} <= calls.names or "primus" in recipe
    gradients = {"gvsl": "grid_sampler_3d_backward", "cva": "_adaptive_avg_pool3d_backward"}
    assert calls.excluded == (set() if requirements.deterministic else {gradients[made.method]})


def test_a_deterministic_run_leaves_torch_as_it_was(tiny_recipe):
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    seen = []

    def probe(_):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return {}

    settings = ["runtime.device=cpu", "runtime.deterministic=true", "validate.probe={task: none, every: 1}"]
    pretrain(tiny_recipe(*settings, steps=1), probe=probe)
    assert seen
    assert all(seen)
    assert (torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark) == before


def test_deterministic_mode_is_strict_where_possible(tiny_recipe):
    try:
        for repeats in (True, False):
            launch(tiny_recipe("runtime.device=cpu", "runtime.deterministic=true"), repeats=repeats)
            assert not torch.backends.cudnn.benchmark
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled() != repeats
    finally:
        torch.use_deterministic_algorithms(False)
        launch(tiny_recipe("runtime.device=cpu"))
    assert torch.backends.cudnn.benchmark
