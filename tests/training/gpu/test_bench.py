"""The bench times the steps of the training loop and their parts."""

import pytest
import torch

from viewalign.errors import UserError
from viewalign.training.gpu.bench import Bench, first_that_fits
from viewalign.training.gpu.synthetic import SMALL, synthetic_store

SETTINGS = ["views.patch_size=16", "heads.width=16", "batch=2", "runtime.precision=fp32"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    synthetic_store(folder / "store", 4, SMALL)
    return Bench("cva-resenc-xs", SETTINGS, folder / "store", folder / "run", "cpu")


@pytest.mark.slow
def test_times_of_steps_and_parts(bench):
    times = bench.measure(3, warm=1)
    assert len(times.seconds) == 3
    assert bench.trainer.position.updates == 1 + 3 + 2
    assert set(times.parts) == {"views", "networks", "losses", "backward", "optimizer", "teacher"}
    assert 0 < max(times.parts.values()) < sum(times.seconds)
    assert times.memory == {}
    assert bench.flops > 0


@pytest.mark.slow
def test_data_wait(bench):
    found = bench.data_wait(workers=0, steps=2)
    assert 0 < found["data_wait"] < 1
    assert found["volumes_per_second"] > 0


@pytest.mark.slow
def test_context_around_one_step(bench):
    inside = []
    bench.measure(2, warm=1, around=_Around(inside, bench))
    assert inside == [("in", 0), ("out", 1)]


@pytest.mark.slow
def test_first_that_fits():
    def run(settings):
        if not settings:
            raise torch.OutOfMemoryError
        if "batch=2" not in settings:
            raise UserError("There is not enough memory for this batch.")
        return "fitted"

    assert first_that_fits(run) == (("runtime.recompute=true", "batch=2"), "fitted")
    with pytest.raises(UserError, match="no such method"):
        first_that_fits(lambda _: _fail(UserError("no such method")))
    assert first_that_fits(lambda _: _fail(torch.OutOfMemoryError())) is None


def _fail(problem):
    raise problem


class _Around:
    """Records the number of timed steps on enter and exit."""

    def __init__(self, notes, bench):
        self.notes, self.bench = notes, bench

    def __enter__(self):
        self.notes.append(("in", self.bench.trainer.position.step - 2))

    def __exit__(self, *_):
        self.notes.append(("out", self.bench.trainer.position.step - 2))
