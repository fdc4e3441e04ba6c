"""Verdicts at and around their limits."""

import math

import pytest

from viewalign.reports.run_data import RunRecord
from viewalign.reports.verdicts import assess, overall


def record(rows, steps=1000, saved=(), **config):
    return RunRecord("run", {"steps": steps, "views": {"patch_size": [16, 16, 16]}, **config}, rows, saved)


def train(step=1000, **values):
    return {"kind": "train", "step": step, **values}


def find(run, title):
    return next(finding for finding in assess(run) if finding.title.startswith(title))


def has(run, title):
    return any(finding.title.startswith(title) for finding in assess(run))


@pytest.mark.parametrize(("value", "level"), [(0.5, "good"), (0.499, "watch"), (0.2, "watch"), (0.199, "bad")])
def test_feature_spread_at_its_limits(value, level):
    run = record([{"kind": "health", "step": 1000, "feature_std": value}])
    assert find(run, "Feature standard").level == level


@pytest.mark.parametrize(("value", "level"), [(1e-3, "good"), (2e-3, "watch"), (1e-2, "watch"), (0.011, "bad")])
def test_a_figure_of_which_less_is_better(value, level):
    finding = find(record([{"kind": "data", "step": 0, "alignment_error": value}]), "Alignment")
    assert finding.level == level
    assert "at most 0.001" in finding.verdict


@pytest.mark.parametrize(("value", "level"), [(0.1, "good"), (0.11, "watch"), (0.3, "watch"), (0.31, "bad")])
def test_waiting_for_data(value, level):
    assert find(record([train(data_wait=value)]), "Time waiting").level == level


@pytest.mark.parametrize(
    ("losses", "level"),
    [
        ((4.0, 3.0), "good"),
        ((4.0, 6.0), "good"),
        ((4.0, 6.1), "watch"),
        ((4.0, 41.0), "bad"),
        ((4.0, 1.7e15), "bad"),
        ((4.0, math.nan), "bad"),
        ((-2.0, -2.5), "good"),
        ((-2.0, 20.0), "bad"),
    ],
)
def test_a_loss_that_rises(losses, level):
    run = record([train(step, loss=loss) for step, loss in zip((1, 1000), losses, strict=True)])
    assert find(run, "Training loss").level == level


def test_a_damaged_checkpoint_is_a_fault_until_it_is_written_again():
    now = RunRecord("run", {"steps": 9}, [train(9, loss=1.0)], (2,), damaged=("The checkpoint of step 4 is damaged.",))
    assert find(now, "Damaged").level == "bad"
    later = record([{"kind": "event", "event": "checkpoint_damaged", "step": 2, "reason": "Step 4 was damaged."}])
    assert find(later, "Damaged").level == "watch"
    assert not has(record([train(9, loss=1.0)]), "Damaged")


def test_the_latest_value_counts():
    rows = [{"kind": "health", "step": s, "effective_rank": v} for s, v in ((1, 2.0), (1000, 50.0))]
    assert find(record(rows), "Effective rank").level == "good"


def test_what_is_learnt_slowly_is_not_condemned_early():
    early = find(record([train(99, cosine=0.0)]), "Teacher")
    assert (early.level, "too early" in early.verdict) == ("watch", True)
    late = find(record([train(100, cosine=0.0)]), "Teacher")
    assert (late.level, "too early" in late.verdict) == ("bad", False)
    assert find(record([train(4000, cosine=0.0)], steps=100_000), "Teacher").level == "watch"


def test_collapse_is_reported_at_once():
    assert find(record([{"kind": "health", "step": 1, "effective_rank": 1.0}]), "Effective").level == "bad"


def test_a_figure_that_is_not_finite_is_bad():
    finding = find(record([train(cosine=math.nan)]), "Teacher")
    assert (finding.level, finding.value) == ("bad", "not finite")


def test_a_figure_the_run_has_not_is_left_out():
    run = record([train(loss=1.0)])
    assert not has(run, "Teacher")
    assert not has(run, "Effective")
    assert not has(run, "Loss on held-out")
    assert not has(run, "Volumes smaller")


@pytest.mark.parametrize(("count", "level"), [(0, "good"), (10, "watch"), (11, "bad")])
def test_skipped_steps(count, level):
    events = [{"kind": "event", "event": "skipped", "step": k} for k in range(count)]
    assert find(record([train(), *events]), "Steps skipped").level == level


@pytest.mark.parametrize(("count", "level"), [(16, "good"), (17, "bad")])
def test_the_search_for_a_loss_scale_is_no_fault(count, level):
    events = [{"kind": "event", "event": "skipped", "step": k} for k in range(count)]
    assert find(record([train(), *events], runtime={"precision": "fp16"}), "Steps skipped").level == level


@pytest.mark.parametrize(("count", "level"), [(0, "good"), (5, "watch"), (6, "bad")])
def test_unreadable_volumes(count, level):
    events = [{"kind": "event", "event": "unreadable", "volume": k, "reason": "torn", "step": 5} for k in range(count)]
    rows = [{"kind": "data", "step": 0, "train_volumes": 100}, train(), *events, *events]
    assert find(record(rows), "Volumes that cannot").level == level


def test_failed_checkpoints_are_mended_by_a_later_one():
    rows = [train(), {"kind": "event", "event": "checkpoint_failed", "step": 500, "reason": "full"}]
    assert find(record(rows, saved=(400,)), "Checkpoints").level == "bad"
    assert find(record(rows, saved=(400, 600)), "Checkpoints").level == "watch"
    assert not has(record([train()]), "Checkpoints")


@pytest.mark.parametrize(("last", "level"), [(1.04, "good"), (1.06, "watch"), (math.nan, "watch")])
def test_held_out_loss_that_rises(last, level):
    rows = [{"kind": "validation", "step": s, "loss": v} for s, v in ((1, 2.0), (2, 1.0), (3, last))]
    assert find(record(rows), "Loss on held-out").level == level


def test_a_loss_against_a_changing_teacher_may_rise():
    losses = {10: 2.0, 20: 4.0}
    rows = [{"kind": "train", "step": step, "loss": loss} for step, loss in losses.items()]
    rows += [{"kind": "validation", "step": step, "loss": loss} for step, loss in losses.items()]
    assert {find(record(rows), title).level for title in ("Training loss", "Loss on held-out")} == {"watch"}
    rows = [{**row, "teacher_entropy": 0.5} for row in rows]
    for title in ("Training loss", "Loss on held-out"):
        assert find(record(rows), title).level == "good"
        assert "teacher" in find(record(rows), title).verdict
    rows.append({"kind": "train", "step": 30, "loss": 40.0, "teacher_entropy": 0.5})
    assert find(record(rows), "Training loss").level == "bad"


def test_small_volumes_are_counted_and_explained():
    rows = [{"kind": "data", "step": 0, "volumes": 10, "smaller_than_view": 3}]
    finding = find(record(rows), "Volumes smaller")
    assert (finding.value, finding.level) == ("3 of 10", "good")
    assert "excluded from losses" in finding.means
    many = find(record([{**rows[0], "smaller_than_view": 6}]), "Volumes smaller")
    assert many.level == "watch"
    assert many.remedy


@pytest.mark.parametrize(("interval", "level"), [(None, "good"), ([0.01, 0.3], "good"), ([-0.01, 0.3], "watch")])
def test_probe(interval, level):
    probe = {"pretrained": 0.6, "untrained": 0.5, "gain": {"value": 0.1, "interval": interval}}
    run = RunRecord("run", {"steps": 10}, [train()], probe=probe)
    assert find(run, "Frozen").level == level


def test_one_sentence_for_all():
    good = record([train(data_wait=0.01)])
    assert overall(good, assess(good)) == ("good", "Healthy: every metric is in its good range.")
    going = record([train(500, data_wait=0.01)])
    assert overall(going, assess(going))[1].startswith("Healthy so far")
    slow = record([train(data_wait=0.2)])
    assert overall(slow, assess(slow))[1].startswith("Worth watching: time waiting for data.")
    bad = record([train(data_wait=0.9, contrast_accuracy=0.0)])
    level, sentence = overall(bad, assess(bad))
    assert level == "bad"
    assert "NT-Xent accuracy and time waiting for data" in sentence


def test_nothing_to_evaluate():
    empty = record([])
    assert assess(empty) == []
    assert overall(empty, [])[0] is None
