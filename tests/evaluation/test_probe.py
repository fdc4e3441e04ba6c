"""What a probe checks before it computes features, and what it keeps in memory."""

import weakref
from pathlib import Path

import numpy as np
import pytest

from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.evaluation import probe
from viewalign.evaluation.embedding import Embeddings
from viewalign.evaluation.encoders import UNTRAINED, Pretrained
from viewalign.evaluation.settings import ProbeSettings
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Sample
from viewalign.tasks.spec import TaskSpec

NETWORK = UNTRAINED + "resenc-xs"


def a_task(monkeypatch, kind="binary", count=20):
    """Replace the reading of a task, and let nothing be embedded."""
    classes = [] if kind == "regression" else ["n", "y"]
    spec = TaskSpec.model_validate({"name": "x", "kind": kind, "channels": [{"name": "a"}], "classes": classes})
    cases = [TaskCase(f"c{k:02d}", f"c{k:02d}", {"a": Path("x")}, target=k % 2) for k in range(count)]
    monkeypatch.setattr(probe, "read_spec", lambda task: spec)
    monkeypatch.setattr(probe, "read_manifest", lambda task, spec: cases)
    monkeypatch.setattr(probe, "embed", None)
    return spec, cases


def test_names_are_checked_before_anything_is_computed(monkeypatch, tmp_path):
    a_task(monkeypatch)
    monkeypatch.setattr(probe, "read_pretrained", None)
    for names, sentence in (((), "Two encoders are called 'run'"), (("a", "b", "c"), "3 names for 2 encoders")):
        with pytest.raises(UserError, match=sentence):
            probe.run_probe(["first/run", "second/run"], "task", tmp_path / "x.json", ProbeSettings(names=names))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "encoders", "settings", "told"),
    [
        ("binary", [NETWORK, UNTRAINED + "resnet"], {}, "no network 'resnet'"),
        ("regression", [NETWORK], {"learners": ("linear", "sgd")}, "learners=sgd is for"),
        ("binary", [NETWORK], {"shots": (9,)}, "9 cases cannot be sampled from 8"),
    ],
)
def test_what_is_known_at_once_is_told_before_features_are_computed(
    monkeypatch, tmp_path, kind, encoders, settings, told
):
    a_task(monkeypatch, kind)
    with pytest.raises(UserError, match=told):
        probe.run_probe(encoders, "task", tmp_path / "x.json", ProbeSettings(patch_size=(32, 32, 32), **settings))


def test_samples_are_not_kept(monkeypatch):
    """Only the sample whose intensities are computed, and the one before it, are alive."""
    spec, cases = a_task(monkeypatch)
    references, most = [], []
    names = tuple(case.case for case in cases)

    def prepared(cases, *args, **more):
        for case in cases:
            image, valid = np.random.default_rng(0).random((1, 4, 4, 4)), np.ones((1, 4, 4, 4), bool)
            sample = Sample(image, valid, np.ones(1, bool))
            references.append(weakref.ref(sample.image))
            most.append(sum(reference() is not None for reference in references))
            yield case, sample

    monkeypatch.setattr(probe, "embed", lambda *args, **more: Embeddings(names, np.zeros((len(names), 2)), {}))
    monkeypatch.setattr(probe, "iter_prepared", prepared)
    start = Pretrained("resenc-xs", None, PrepareSettings(), None, {})
    encoder = probe._Encoder("e", start, False, None, None)
    features, *_ = probe._compute_features([encoder], spec, cases, ProbeSettings())
    assert features[probe.INTENSITIES].shape == (20, 17)
    assert max(most) <= 2


def test_without_a_usable_test_case_the_training_cases_are_not_divided_into_folds_instead():
    cases = [
        TaskCase(f"c{k}", f"c{k}", {"a": Path("x")}, target=k % 2, split="test" if k > 7 else "train")
        for k in range(10)
    ]
    rng = np.random.default_rng(0)
    prints = {case.case: rng.integers(-9, 9, 344, dtype=np.int8) for case in cases if case.case != "c8"}
    excluded = [("c1", "too small"), ("c8", "damaged"), ("c9", "damaged too")]
    assert [case.case for case in probe.usable_cases(cases, prints, excluded)] == sorted(prints)
    del prints["c9"]
    with pytest.raises(UserError, match=r"2 test cases.*c8: damaged"):
        probe.usable_cases(cases, prints, excluded)
