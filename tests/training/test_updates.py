"""A step with a non-finite loss or gradient changes nothing, on a CPU and on a device."""

import copy

import pytest
import torch
from second_device import DEVICE, count_waits, second_device

from viewalign.networks import teacher
from viewalign.recipes.loading import load
from viewalign.training import loop, optimizers
from viewalign.training.optimizers import update_if_finite
from viewalign.training.run import pretrain
from viewalign.training.throughput import artificial_samples
from viewalign.utils.precision import read_later, send
from viewalign.views.batch import build_views

SCALES = [float("nan"), 1.0, 2.0, float("inf"), 3.0]


class Follower:
    """Stands for a method: a teacher follows the module, and the numbers of the updates are kept."""

    def __init__(self, module):
        self.pairs = ([*module.parameters()], [one.detach().clone() for one in module.parameters()])
        self.numbers = []

    def after_update(self, step, made=None):
        self.numbers.append(step)
        teacher.update_ema(*self.pairs, 0.9, made)


def steps(module, optimizer, device):
    """Do a step for each scale of the loss; return the follower, the norms, and how often each update waited."""
    follower, norms, waits, number = Follower(module), [], [], 1
    for scale in SCALES:
        optimizer.zero_grad(set_to_none=True)
        (module(send(torch.ones(1, 3), device)).sum() * scale).backward()
        norm = optimizers.clip_gradients(module, 1.0)
        with count_waits() as found:
            read = update_if_finite(follower, optimizer, norm, number)
        norms.append(read())
        number += int(norms[-1] < float("inf"))
        waits.append(len(found))
    return follower, norms, waits


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_device_and_cpu_skip_the_same_steps(name):
    torch.manual_seed(0)
    here = torch.nn.Linear(3, 2)
    settings = {"name": name, "lr": 0.1, "weight_decay": 0.01, "momentum": 0.9, "betas": (0.9, 0.98)}
    with second_device():
        there = copy.deepcopy(here).to(DEVICE)
        results = []
        for module, device, on_gpu in ((here, torch.device("cpu"), False), (there, DEVICE, True)):
            optimizer = optimizers.build_optimizer(module, **settings, on_gpu=on_gpu)
            results.append((optimizer, *steps(module, optimizer, device)))
        (ours, follower, norms, _), (theirs, other, other_norms, waits) = results
        assert other_norms == pytest.approx(norms, nan_ok=True)
        # On the CPU a skipped update is not called; on the device it is, and changes nothing.
        assert (follower.numbers, other.numbers) == ([1, 2, 3], [1, 2, 3, 3])
        # Until an update was made there is no state that a skipped one could leave untouched: these wait.
        assert waits == [1, 1, 0, 0, 0]
        for a, b in zip(
            [*here.parameters(), *follower.pairs[1], *state_of(ours)],
            [*there.parameters(), *other.pairs[1], *state_of(theirs)],
            strict=True,
        ):
            assert torch.allclose(a, b.cpu(), atol=1e-6)


def state_of(optimizer):
    return [value for state in optimizer.state.values() for value in state.values()]


def test_loaded_states_keep_the_implementation_of_the_step():
    """Otherwise a run resumed from a CPU's checkpoint would not skip non-finite steps on a GPU."""
    settings = {"name": "sgd", "lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "betas": (0.9, 0.98)}
    layer = torch.nn.Linear(3, 2)
    saved = optimizers.build_optimizer(layer, **settings)
    layer(torch.ones(1, 3)).sum().backward()
    saved.step()
    optimizers.set_learning_rate(saved, 0.05)
    loaded = optimizers.build_optimizer(copy.deepcopy(layer), **settings, on_gpu=True)
    optimizers.load_state(loaded, saved.state_dict())
    assert [(group["fused"], group["foreach"], group["lr"]) for group in loaded.param_groups] == [
        (True, False, 0.05)
    ] * len(loaded.param_groups)
    assert len(loaded.state) == 2


def test_volumes_with_a_value_that_is_not_finite_in_any_view_are_suspects():
    recipe = load("cva-resenc-xs", ["views.patch_size=16"])
    batch = build_views(artificial_samples(recipe, 4), recipe.views.patch_size, None)
    volumes = batch.volume_id.tolist()
    assert optimizers.volumes_of(batch) == (volumes, [])
    batch.views[0, 1, 0, 3, 4, 5], batch.views[1, 3, 0, 0, 0, 0] = float("nan"), float("inf")
    assert optimizers.volumes_of(batch) == (volumes, [volumes[1], volumes[3]])


def test_a_state_of_more_groups_does_not_fit():
    layer = torch.nn.Linear(3, 2)
    saved = torch.optim.SGD([{"params": [layer.weight]}, {"params": [layer.bias]}], lr=0.1)
    with pytest.raises(ValueError):
        optimizers.load_state(torch.optim.SGD([layer.weight], lr=0.1), saved.state_dict())


def test_read_later_does_not_wait_for_later_work():
    assert read_later(torch.tensor(2.5))() == 2.5
    with second_device():
        value = send(torch.tensor(2.5), DEVICE)
        with count_waits() as waits:
            read = read_later(value)
            assert read() == 2.5
        assert not waits


def test_updates_of_a_run_are_numbered_and_have_the_rate_of_the_schedule(tiny_recipe, monkeypatch):
    """And its page is shown until the last step is done, and then for good."""
    seen, shown = [], []

    def update(method, optimizer, norm, number):
        seen.append((number, {group["lr"] for group in optimizer.param_groups}))
        return update_if_finite(method, optimizer, norm, number)

    monkeypatch.setattr(loop, "update_if_finite", update)
    recipe = tiny_recipe("optim.lr=0.5", "optim.warmup_steps=2", steps=3)
    pretrain(recipe, page=lambda root, last: shown.append(last))
    rates = [optimizers.learning_rate(k, 3, 0.5, 2, recipe.optim.power) for k in range(3)]
    assert seen == [(k + 1, {rate}) for k, rate in enumerate(rates)]
    assert len(shown) > 1
    assert (set(shown[:-1]), shown[-1]) == ({False}, True)
