import io
import json
import math

import numpy as np
import pytest
import torch

from viewalign.errors import UserError
from viewalign.methods import health
from viewalign.methods.registry import build_method
from viewalign.recipes.loading import load
from viewalign.training import alerts, data, launch, logs, optimizers, run
from viewalign.training.state import TrainingState
from viewalign.utils.console import ProgressLine


def test_learning_rate_schedule():
    rates = [optimizers.learning_rate(k, 100, 1.0, 10, 0.9) for k in range(100)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5**0.9)
    assert rates[-1] == pytest.approx((1 / 90) ** 0.9)
    assert optimizers.learning_rate(500, 100, 1.0, 10, 0.9) == 0.0


def test_norms_biases_and_positions_are_not_decayed():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    module.register_parameter("pos_embed", torch.nn.Parameter(torch.zeros(1, 4, 2)))
    module.register_parameter("frozen", torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False))
    optimizer = optimizers.build_optimizer(module, "adamw", 0.1, 0.05, 0.9, (0.9, 0.98))
    decayed = [tuple(p.shape) for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]]
    kept = [tuple(p.shape) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]]
    assert decayed == [(2, 3)]
    assert len(kept) == 4


def test_learned_fillers_are_not_decayed():
    method = build_method(load("spark-resenc-xs", ["network=resenc-xxs"]))
    optimizer = optimizers.build_optimizer(method, "adamw", 0.1, 0.05, 0.9, (0.9, 0.98))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    assert len(method.fillers) > 1
    assert decayed.isdisjoint(map(id, method.fillers))


def test_clipping_returns_the_norm_before():
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(optimizers.clip_gradients(layer, 1.0)) == pytest.approx(5.0)
    assert float(layer.weight.grad.norm()) == pytest.approx(1.0, rel=1e-4)
    layer.weight.grad = torch.tensor([[3.0, float("nan")]])
    assert not math.isfinite(float(optimizers.clip_gradients(layer, None)))


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_effective_rank_of_a_known_spectrum(rank):
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(400, rank).double() - 0)[0]
    left = torch.linalg.qr(left - left.mean(0))[0]
    right = torch.linalg.qr(torch.randn(64, rank).double())[0]
    assert float(health.effective_rank((left @ right.T).float())) == pytest.approx(rank, rel=0.02)


def test_feature_std_of_collapsed_and_spread_features():
    same = torch.randn(1, 32).expand(200, 32) + 1e-6 * torch.randn(200, 32)
    spread = torch.randn(2000, 32)
    assert float(health.feature_std(same)) < 1e-3
    assert float(health.feature_std(spread)) == pytest.approx(1.0, abs=0.02)
    levels = {m.name: m for m in health.MEASURES}
    assert levels["feature_std"].level(float(health.feature_std(same))) == "bad"
    assert levels["feature_std"].level(float(health.feature_std(spread))) == "good"
    assert levels["effective_rank"].level(float(health.effective_rank(same.double()))) in {"bad", "good", "watch"}


def test_levels_of_measures_in_both_directions():
    levels = {m.name: m for m in health.MEASURES}
    rank, error = levels["effective_rank"], levels["alignment_error"]
    assert [rank.level(v) for v in (rank.good, rank.good - 0.1, rank.bad - 0.1)] == ["good", "watch", "bad"]
    assert [error.level(v) for v in (0.0, 0.005, 0.5)] == ["good", "watch", "bad"]


@pytest.mark.parametrize(
    ("first", "latest", "rise"),
    [
        (2.0, 10.0, None),
        (2.0, 24.0, "12"),
        (-1.0, -0.5, None),
        (-1.0, 9.5, "11.5"),
        (1.0, math.nan, "inf"),
        (1.0, -math.inf, "inf"),
    ],
)
def test_a_loss_of_either_sign_that_rises_tenfold_is_reported_once(first, latest, rise, caplog):
    raised, position = alerts.Alerts("fp32"), TrainingState(step=5)
    raised.loss(position, first)
    assert not caplog.messages
    for _ in range(2):
        raised.loss(position, latest)
    assert len(caplog.messages) == (rise is not None)
    assert rise is None or f"is {rise} (bad)" in caplog.text


@pytest.mark.parametrize(
    ("figures", "step", "steps", "reported"),
    [
        ({"teacher_entropy": 1.0}, 99, 300, False),
        ({"teacher_entropy": 1.0}, 100, 300, True),
        ({"teacher_entropy": 1.0}, 999, 20_000, False),
        ({"prototype_usage": 0.01}, 1000, 20_000, True),
        ({"contrast_accuracy": 0.3}, 1000, 1000, False),
        ({"effective_rank": 1.0}, 1, 1000, True),
    ],
)
def test_bad_measures_are_reported_once_they_can_be_evaluated(figures, step, steps, reported, caplog):
    raised = alerts.Alerts("fp32", steps)
    for _ in range(2):
        raised.measures(step, {"loss": 1.0, **figures})
    assert len(caplog.messages) == reported


def test_more_than_a_hundredth_of_skipped_steps_is_reported(caplog):
    alerts.Alerts("fp32").loss(TrainingState(step=100, skipped=1), None)
    assert not caplog.messages
    alerts.Alerts("fp32").loss(TrainingState(step=100, skipped=2), None)
    assert "is 0.02 (bad)" in caplog.text


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_check_of_coordinates_measures_a_shift_along_any_axis(axis, monkeypatch):
    exact = run.align
    views = load("cva-resenc-xs", ["views.patch_size=[16,16,16]"]).views

    def shifted(*args):
        a, b, weight = exact(*args)
        return a, b + 0.5 * torch.eye(3)[axis] if b.shape[-1] == 3 else b, weight

    assert run.ramp_error(views, seeds=1) < 1e-3
    monkeypatch.setattr(run, "align", shifted)
    assert run.ramp_error(views, seeds=1) == pytest.approx(0.5, abs=1e-3)


def test_checks_of_coordinates_use_volumes_of_twice_the_view_with_at_most_48_voxels_more(monkeypatch):
    views = load("cva-resenc-xs", ["views.patch_size=[16,48,96]"]).views
    shapes = []

    class Seen(Exception):  # noqa: N818
        pass

    def sampled(array, *_):
        shapes.append(array.shape)
        raise Seen

    def released(rng, shape, *_):
        shapes.append((3, *shape))
        raise Seen

    monkeypatch.setattr(run, "sample_views", sampled)
    monkeypatch.setattr(run, "sample_latentcampus", released)
    for check in (run.ramp_error, run.released_error):
        with pytest.raises(Seen):
            check(views)
    assert shapes == [(3, 32, 96, 144)] * 2


def test_split_is_by_subject_with_limits():
    subjects = np.repeat(np.arange(300), 3)
    split = data.split_by_subject(subjects, 0.01, seed=0)
    assert len(np.unique(subjects[split.validation])) == 5
    assert not set(subjects[split.train]) & set(subjects[split.validation])
    assert len(split.train) + len(split.validation) == 900
    assert np.array_equal(split.validation, data.split_by_subject(subjects, 0.01, seed=0).validation)
    assert len(np.unique(data.split_by_subject(np.arange(50_000), 0.01, 0).validation)) == 200
    assert len(data.split_by_subject(np.arange(19), 0.01, 0).validation) == 0
    assert len(data.split_by_subject(np.arange(20), 0.01, 0).validation) == 5
    assert len(data.split_by_subject(np.arange(100), 0.0, 0).validation) == 0


def test_a_row_is_in_the_file_before_the_log_is_closed(tmp_path):
    log = logs.RunLog(tmp_path / "log.jsonl")
    log.row("train", 1, {"loss": 2.0})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"kind": "train", "step": 1, "loss": 2.0}
    log.close()


def test_rows_of_which_a_write_takes_a_part_are_whole_in_the_file(tmp_path):
    class Narrow:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:7])

        def close(self):
            self.file.close()

    log = logs.RunLog(tmp_path / "log.jsonl")
    log._file = Narrow(log._file)
    log.row("train", 1, {"loss": 2.0})
    log.row("train", 2, {"loss": 1.0})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"kind": "train", "step": step, "loss": 3.0 - step} for step in (1, 2)]


@pytest.mark.parametrize(("step", "kept"), [(2, [0, 1, 2]), (0, [])])
def test_a_log_is_continued_after_the_step_where_the_run_begins(tmp_path, step, kept):
    """A run that begins at its first step has no rows to continue."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"kind": "train", "step": k}) + "\n" for k in range(4)))
    log = logs.RunLog(path, step)
    log.row("train", 7, {})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*kept, 7]


@pytest.mark.parametrize(
    ("settings", "group", "advice"),
    [
        (["batch=5", "runtime.gpus=2"], 1, "use batch=4 or 6"),
        (["batch=1", "runtime.gpus=2", "runtime.nodes=2"], 1, "use batch=4 or 8"),
        (["batch=8", "runtime.gpus=2", "runtime.accumulate=3"], 1, "use a divisor of 4"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_rejected_with_the_nearest_sizes(settings, group, advice):
    with pytest.raises(UserError, match=advice):
        launch._check_batch(load("cva-resenc-xs", settings), group)


def test_averages_are_means_and_can_be_restored():
    averages = logs.MetricAccumulator()
    for value in (1.0, 2.0, 6.0):
        averages.add({"loss": torch.tensor(value)})
    other = logs.MetricAccumulator()
    other.restore([averages.state()], 0, 1, torch.device("cpu"))
    assert other.take() == averages.take() == {"loss": 3.0}
    assert averages.take() == {}


def test_a_scalar_of_some_steps_is_averaged_over_these():
    averages = logs.MetricAccumulator()
    for step in range(8):
        averages.add({"loss": torch.tensor(1.0), **({"rare": torch.tensor(2.0)} if step % 4 == 0 else {})})
    assert averages.state()["counts"] == {"loss": 8, "rare": 2}
    assert averages.take() == {"loss": 1.0, "rare": 2.0}


@pytest.mark.parametrize("before", [[(1.0, 3.0)], [(1.0, 3.0), (4.0, 8.0)]])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_averages_of_one_or_two_processes_are_restored_by_any_number(processes, before):
    """The mean over processes is that of those before."""
    states = []
    for values in before:
        averages = logs.MetricAccumulator()
        for value in values:
            averages.add({"loss": torch.tensor(value)})
        states.append(averages.state())
    found = []
    for rank in range(processes):
        after = logs.MetricAccumulator()
        after.restore(states, rank, processes, torch.device("cpu"))
        after.add({"loss": torch.tensor(5.0)})
        found.append(after.take()["loss"])
    assert sum(found) / processes == pytest.approx(np.mean([(*values, 5.0) for values in before]))


def test_progress_without_a_terminal():
    stream = io.StringIO()
    ticker = ProgressLine(stream, seconds=1000)
    for step in range(5):
        ticker.show(f"step {step}", force=step == 4)
    assert stream.getvalue() == "step 0\nstep 4\n"


def test_number_of_workers():
    assert data.worker_count(3, True, 64) == 3
    assert data.worker_count("auto", True, 64, 8) == 8
    assert data.worker_count("auto", False, 2) == 0
    assert data.worker_count("auto", False, 16) == 1
    assert data.worker_count("auto", True, 96, 1, allowed=8) == 8
    assert data.worker_count("auto", True, 96, 8, allowed=96) == 12
    assert data.worker_count("auto", False, 96, allowed=2) == 0


def test_held_out_subjects_of_the_dataset():
    names = [f"s{k % 30}" for k in range(60)]
    split = data.split_of(names, frozenset({"s3", "s4", "gone"}), 0.01, 0)
    assert split.validation.tolist() == [3, 4, 33, 34]
    assert len(split.train) == 56
    assert not len(data.split_of(names, frozenset({"s3"}), 0.0, 0).validation), "share 0 holds out none"
    own = data.split_of(names, None, 0.01, 0)
    expected = data.split_by_subject(data.number_subjects(names), 0.01, 0)
    assert own.validation.tolist() == expected.validation.tolist()


def test_readers_of_a_killed_run_are_silent(capsys):
    """The closed connection of its thread is not reported, other errors are."""
    for problem in (ConnectionResetError("reset by peer"), EOFError()):
        data._report_worker_error(type(problem), problem, None)
    assert capsys.readouterr().err == ""
    data._report_worker_error(ValueError, ValueError("odd"), None)
    assert "ValueError: odd" in capsys.readouterr().err
