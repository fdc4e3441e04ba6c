"""Nothing of a run mixes the CPU's tensors with those of the device that it trains on, and the run is the same there.

The device is a made-up one (`tests/made/second_device.py`), so that this holds where there is no GPU.
"""

import shutil
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from array_volumes import ArrayVolumes
from second_device import DEVICE, second_device

from viewalign.methods.registry import METHODS, asks_of, build_method
from viewalign.recipes.loading import load
from viewalign.training import checkpoints, run
from viewalign.training.fabric import Fabric
from viewalign.training.logs import read_log
from viewalign.training.run import drawing_of, photometrics_of
from viewalign.views.build import build_views
from viewalign.views.samples import SampleReader
from viewalign.volumes.store import store_from_arrays

from .conftest import TINY, smooth_volumes

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
SMALL = ["views.size=16", "heads.width=16", "batch=4"]
CHANGES = [
    f"views.photometric.p_{name}=1" for name in ("brightness", "contrast", "gamma", "low_resolution", "blur", "noise")
]
CASES = [
    *((f"{method}-{family}-xs", ()) for method, entry in METHODS.items() for family in entry.networks),
    ("cva-resenc-xs", ("objectives.order=align_first",)),
    ("cva-resenc-xs", ("objectives.consistency=nt_xent",)),
    ("cva-resenc-xs", ("geometry=latentcampus",)),
    ("cva-resenc-xs", ("views.independent=true",)),
    ("cva-resenc-xs", tuple(CHANGES)),
]


@pytest.mark.parametrize(
    ("recipe", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_a_step_of_every_method_stays_on_its_device(recipe, settings):
    made = load(recipe, settings, common=SMALL)
    torch.manual_seed(0)
    method, every = build_method(made), np.arange(8)
    volumes = ArrayVolumes(array[None] for array in smooth_volumes(8, (26, 30, 28)).values())
    reader = SampleReader(volumes, every, every, drawing_of(made.views), 4, seed=1, draw=asks_of(made).draw)
    samples, changes = [reader[k] for k in range(4)], photometrics_of(made.views.photometric)
    here = method.step(build_views(samples, made.views.size, changes, torch.device("cpu"), 0), examine=True)
    with second_device():
        method = method.to(DEVICE)
        there = method.step(build_views(samples, made.views.size, changes, DEVICE, 0), examine=True)
        there.loss.backward()
        method.after_update(1)
        assert there.loss.device == DEVICE
        assert there.loss.item() == pytest.approx(here.loss.item(), rel=1e-4)
        assert all(p.grad.device == DEVICE for p in method.parameters() if p.grad is not None)


class There(Fabric):
    """Fabric whose device is the made-up one."""

    device = DEVICE

    def to_device(self, given):
        return given.to(DEVICE)


@contextmanager
def elsewhere():
    """Let runs train on the second device."""
    prepare = run._prepare_networks

    def launch(recipe, *_):
        return recipe, There(accelerator="cpu", devices=1)

    def prepared(method, runtime):
        # On a GPU parameters stay the same objects when they move, here not: they move before the optimizer is built.
        prepare(method, runtime)
        method.to(DEVICE)

    with (
        second_device(),
        mock.patch.object(run, "launch", launch),
        mock.patch.object(run, "_prepare_networks", prepared),
    ):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["optim.name=adamw", "optim.name=sgd", "runtime.accumulate=2"])
def test_a_whole_run_logs_looks_saves_and_resumes_there(setting, tmp_path):
    store_from_arrays(tmp_path / "store", smooth_volumes(24))
    more = [
        "steps=4",
        "log.every=2",
        "log.health_every=2",
        "validate.every=2",
        "validate.batches=1",
        "checkpoint.every=2",
    ]
    data = f"data={tmp_path / 'store'}"
    plain = run.pretrain(load("cva-resenc-xs", [setting, data, f"out={tmp_path / 'here'}"], common=[*TINY, *more]))
    recipe = load("cva-resenc-xs", [setting, data, f"out={tmp_path / 'there'}"], common=[*TINY, *more])
    with elsewhere():
        run.pretrain(recipe)
        shutil.rmtree(checkpoints.path_of(tmp_path / "there" / "checkpoints", 4))
        done = run.pretrain(recipe, resume="auto")
    assert done.finished
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("here", "there")]
    for kind in ("train", "validation"):
        here, there = ([row["loss"] for row in rows if row["kind"] == kind] for rows in logs)
        assert len(there) == 2
        assert there == pytest.approx(here, rel=1e-2)
    assert len([row for row in logs[1] if row["kind"] == "health"]) == len(
        [row for row in logs[0] if row["kind"] == "health"]
    )
    state, complaints = checkpoints.load_newest(done.folder.checkpoints)
    assert not complaints
    assert all(value.device.type == "cpu" for value in state["method"].values())
    assert plain.finished
