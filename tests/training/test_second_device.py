"""Runs never mix tensors of the CPU and of the training device, and give the same results on both.

The device is simulated (`tests/made/second_device.py`), so that no GPU is needed.
"""

import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from array_volumes import ArrayVolumes
from second_device import DEVICE, count_waits, second_device

from viewalign.data.store import store_from_arrays
from viewalign.methods.cva import ConsistentViewAlignment
from viewalign.methods.registry import METHODS, build_method, requirements_of
from viewalign.methods.self_distillation import DINO
from viewalign.networks import teacher
from viewalign.recipes.loading import load
from viewalign.training import run
from viewalign.training.launch import Fabric
from viewalign.training.loop import Trainer
from viewalign.training.run import view_sampling_config
from viewalign.views.batch import build_views
from viewalign.views.samples import SampleReader
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import read_log

from .conftest import TINY, smooth_volumes, tiny_network

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning"),
]
TINIEST = "network=resenc-xxs"
SMALL = ["views.patch_size=16", "heads.width=16", "batch=4"]
CHANGES = [
    f"views.photometric.p_{name}=1" for name in ("brightness", "contrast", "gamma", "low_resolution", "blur", "noise")
]
CASES = [
    ("cva-resenc-xs", ("objectives.order=project_first",)),
    ("cva-primus-xs", ("objectives.order=project_first", "network.drop_path=0.3")),
    *((f"{method}-{family}-xs", ()) for method, entry in METHODS.items() for family in entry.networks),
    ("cva-resenc-xs", ("objectives.order=align_first",)),
    ("cva-resenc-xs", ("objectives.consistency=nt_xent",)),
    ("cva-resenc-xs", ("geometry=latentcampus",)),
    ("cva-resenc-xs", ("views.independent=true",)),
    ("cva-resenc-xs", tuple(CHANGES)),
]


every_case = pytest.mark.parametrize(
    ("recipe", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)


def method_and_samples(made):
    torch.manual_seed(0)
    method, every = build_method(made), np.arange(8)
    volumes = ArrayVolumes(array[None] for array in smooth_volumes(8, (26, 30, 28)).values())
    reader = SampleReader(
        volumes, every, every, view_sampling_config(made.views), 4, seed=1, sampler=requirements_of(made).sampler
    )
    return method, [reader[k] for k in range(4)], made.views.photometric


def move(method):
    """Move a method; on a GPU parameters stay the same objects, here not, so that their holders get the new ones."""
    method.to(DEVICE)
    if isinstance(method, ConsistentViewAlignment | DINO):
        method._pairs = teacher.pair_parameters(method.student, method.teacher)


@every_case
def test_a_step_stays_on_its_device_and_does_not_synchronise(recipe, settings):
    """All that a step needs of the CPU is sent from pinned memory, no value is read back, and the loss is the same."""
    turned = ["views.p_rotation=0.5", "views.p_scale=0.7"]
    made = load(recipe, settings, common=[*SMALL, tiny_network(recipe), *turned])
    method, samples, changes = method_and_samples(made)
    here = method(build_views(samples, made.views.patch_size, changes, torch.device("cpu"), 0))
    with second_device():
        move(method)
        with count_waits() as waits:
            batch = build_views(samples, made.views.patch_size, changes, DEVICE, 0)
            there = method(batch)
            there.loss.backward()
            method.after_update(1)
        assert not waits
        assert there.loss.device == DEVICE
        assert there.loss.item() == pytest.approx(here.loss.item(), rel=1e-4)
        assert all(p.grad.device == DEVICE for p in method.parameters() if p.grad is not None)
        with torch.no_grad():
            diagnosed = method(batch, return_diagnostics=True)
        assert all(value.device == DEVICE for value in (*diagnosed.features.values(), *diagnosed.pictures.values()))


def test_synchronisations_are_counted():
    """Each of these stops the program until a GPU has done all that is queued."""
    here = torch.arange(4.0)
    with second_device(), count_waits() as waits:
        there = here.pin_memory().to(DEVICE, non_blocking=True)
        there[torch.arange(2).pin_memory().to(DEVICE, non_blocking=True)].sum()
        assert not waits
        for wait in (
            lambda: here.to(DEVICE, non_blocking=True),
            lambda: here.pin_memory().to(DEVICE),
            lambda: there.cpu(),
            lambda: there.to("cpu", non_blocking=True),
            lambda: there.sum().item(),
            lambda: float(there[0]),
            lambda: there.tolist(),
            lambda: there[there > 1],
            lambda: there[torch.tensor([0, 1])],
            lambda: there.nonzero(),
            lambda: bool((there > 1).all()),
            lambda: torch.tensor([1.0], device=DEVICE),
            lambda: torch.where(there > 1, there, torch.tensor(1.0)),
        ):
            before = len(waits)
            wait()
            assert len(waits) == before + 1


class There(Fabric):
    """Fabric whose device is the made-up one."""

    device = DEVICE

    def to_device(self, given):
        return given.to(DEVICE)


@contextmanager
def elsewhere():
    """Let runs train on the second device."""
    prepare = run.prepare_networks

    def launch(recipe, *_):
        return recipe, There(accelerator="cpu", devices=1)

    def prepared(method, runtime):
        prepare(method, runtime)
        move(method)

    with (
        second_device(),
        mock.patch.object(run, "launch", launch),
        mock.patch.object(run, "prepare_networks", prepared),
    ):
        yield


@pytest.mark.long
@pytest.mark.parametrize("setting", ["optim.name=adamw", "optim.name=sgd", "runtime.accumulate=2"])
def test_a_run_on_the_second_device(setting, tmp_path):
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
    plain = run.pretrain(
        load("cva-resenc-xs", [setting, data, f"out={tmp_path / 'here'}"], common=[*TINY, TINIEST, *more])
    )
    recipe = load("cva-resenc-xs", [setting, data, f"out={tmp_path / 'there'}"], common=[*TINY, TINIEST, *more])
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
    state = checkpoints.load_newest(done.folder.checkpoints)
    assert all(value.device.type == "cpu" for value in state["method"].values())
    assert plain.finished


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", pytest.param("sgd", marks=pytest.mark.long)])
def test_the_loop_does_not_synchronise_and_skips_non_finite_steps(name, tmp_path, monkeypatch):
    """The step whose loss is not finite is found out one step later, or before the row that follows it."""
    waits, plain_step, plain_loss = [], Trainer._train_step, ConsistentViewAlignment.forward

    def counted(self, *work):
        with count_waits() as found:
            plain_step(self, *work)
        waits.append(len(found))

    def broken(self, batch, return_diagnostics=False):
        result = plain_loss(self, batch, return_diagnostics)
        bad = int(batch.sample[0]) // 4 in {2, 4}
        return replace(result, loss=result.loss * float("nan")) if bad else result

    monkeypatch.setattr(Trainer, "_train_step", counted)
    monkeypatch.setattr(ConsistentViewAlignment, "forward", broken)
    store_from_arrays(tmp_path / "store", smooth_volumes(8))
    settings = [f"optim.name={name}", "steps=7", "log.every=3", "log.health_every=100", "checkpoint.every=6"]
    settings.append(f"data={tmp_path / 'store'}")
    ran = []
    for place, where in (("here", nullcontext), ("there", elsewhere)):
        waits.clear()
        with where():
            ran.append(
                run.pretrain(load("cva-resenc-xs", [*settings, f"out={tmp_path / place}"], common=[*TINY, TINIEST]))
            )
    # The first step has no state yet, the sixth finds the fifth skipped; the first and the last one are examined.
    assert waits[1:5] == [0, 0, 0, 0]
    here, there = (read_log(one.folder.log) for one in ran)
    rows = [[(row["kind"], row["step"], row.get("event"), row.get("volumes")) for row in log] for log in (here, there)]
    assert rows[0] == rows[1]
    assert [row["step"] for row in there if row.get("event") == "skipped"] == [3, 5]
    states = [checkpoints.load(checkpoints.path_of(one.folder.checkpoints, 6)) for one in ran]
    assert states[0]["position"] == states[1]["position"]
    assert states[1]["position"]["updates"] == 4
    for row, other in zip(here, there, strict=True):
        if row["kind"] == "train":
            assert other["lr"] == row["lr"]
            assert other["loss"] == pytest.approx(row["loss"], rel=1e-2)
