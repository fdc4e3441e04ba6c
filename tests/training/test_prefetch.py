"""On a GPU views are built one step ahead; batches and errors do not change.

Streams are stand-ins that record the order of calls.
"""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from viewalign.errors import UserError
from viewalign.training.prefetch import Prefetcher
from viewalign.views.batch import ViewBatch

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def batch_of(number, local=None):
    one = torch.full((1, 1, 1, 1, 1, 1), float(number))
    numbers = torch.tensor([number])
    return ViewBatch(one, one.clone(), torch.zeros(1, 1, 3, 4), one > 0, numbers, numbers, numbers, local=local)


class World:
    """A source of steps, a builder, and streams, which write down what happens."""

    def __init__(self):
        self.done, self.stream = [], "present"
        self.present = SimpleNamespace(wait_stream=lambda other: self.done.append(f"present waits for {other.name}"))

    def source(self, steps, fails_at=None):
        for number in range(steps):
            if number == fails_at:
                raise UserError(f"step {number} cannot be read")
            self.done.append(f"read {number}")
            yield [number]

    def build(self, samples):
        self.done.append(f"build {samples[0]} on {self.stream}")
        return batch_of(samples[0], batch_of(100 + samples[0]))

    @contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream.name
        yield
        self.stream = before

    def record(self, tensor, stream):
        assert stream is self.present
        self.done.append("kept")

    def event(self, **_):
        """Stand in for an event; between two of them the GPU had a quarter of a second without work."""
        return SimpleNamespace(record=lambda _: None, synchronize=lambda: None, elapsed_time=lambda _: 250.0)

    @contextmanager
    def streams(self):
        with (
            mock.patch.object(torch.cuda, "Stream", return_value=SimpleNamespace(name="side")),
            mock.patch.object(torch.cuda, "stream", self.on),
            mock.patch.object(torch.cuda, "Event", self.event),
            mock.patch.object(torch.cuda, "current_stream", return_value=self.present),
            mock.patch.object(torch.Tensor, "record_stream", lambda tensor, stream: self.record(tensor, stream)),
        ):
            yield


def run(world, device, steps, fails_at=None):
    """Go through all steps as the loop does."""
    ahead, taken = Prefetcher(world.source(steps, fails_at), world.build, device), []
    for _ in range(steps):
        samples, batch = ahead.take()
        taken.append((samples, batch.views.item()))
        world.done.append(f"step {samples[0]}")
        ahead.prepare()
    waited = ahead.take_waited()
    assert waited == steps / 4 if device is GPU else waited > 0
    assert ahead.take_waited() == 0
    return taken


def test_a_gpu_builds_views_one_step_ahead():
    here, there = World(), World()
    expected = run(here, CPU, 2)
    assert here.done == ["read 0", "build 0 on present", "step 0", "read 1", "build 1 on present", "step 1"]
    with there.streams():
        assert run(there, GPU, 2) == expected
    handed = ["present waits for side", *["kept"] * 6]  # views, targets and validity, and those of the local views
    assert there.done == [
        *("read 0", "build 0 on side", *handed, "step 0"),
        *("read 1", "build 1 on side", *handed, "step 1"),
    ]


@pytest.mark.parametrize("device", [CPU, GPU])
def test_errors_are_raised_at_their_step(device):
    world = World()
    with world.streams(), pytest.raises(UserError, match="step 1 cannot be read"):
        run(world, device, 3, fails_at=1)
    assert world.done[-1] == "step 0"
