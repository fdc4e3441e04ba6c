"""Cases prepared in worker processes: equal samples in the order of cases, and crashes exclude one case."""

import numpy as np
import pytest
from deadly import Deadly

from viewalign.evaluation.embedding import embed
from viewalign.evaluation.encoders import build_encoder, read_pretrained
from viewalign.tasks import cases as prepared_cases
from viewalign.tasks.cases import prepare_cases
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Preprocessor

pytestmark = pytest.mark.slow

SIZE = (16, 16, 16)


@pytest.fixture
def mixed(tmp_path, striped_task):
    """Four cases that can be used and, between them, one that cannot."""
    spec, cases = striped_task(tmp_path / "task", cases=4)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    return spec, [*cases[:2], TaskCase("broken", "s", {"t1": broken}), *cases[2:]]


@pytest.mark.parametrize("kept", [False, True])
def test_worker_processes_prepare_the_same_samples(mixed, tmp_path, kept):
    spec, cases = mixed
    preprocessor, cache = Preprocessor(spec.channels, SIZE), tmp_path / "cache" if kept else None
    alone, excluded = prepare_cases(cases, preprocessor, workers=0)
    heard = []
    samples, same = prepare_cases(cases, preprocessor, lambda *told: heard.append(told), cache, workers=2)
    assert list(samples) == list(alone) == [case.case for case in cases if case.case != "broken"]
    assert same == excluded
    assert excluded[0][0] == "broken"
    assert "broken.nii.gz" in excluded[0][1]
    assert heard == [(n, 5) for n in range(1, 6)]
    for name, sample in samples.items():
        assert isinstance(sample.image, np.memmap) is kept
        for part in ("image", "valid", "present"):
            np.testing.assert_array_equal(getattr(sample, part), getattr(alone[name], part))


def test_vectors_are_in_the_order_of_cases(mixed):
    spec, cases = mixed
    backbone, _ = build_encoder(read_pretrained("untrained:resenc-xs"), SIZE, 1)
    preprocessor = Preprocessor(spec.channels, SIZE)
    alone, together = (embed(backbone, preprocessor, cases, with_maps=True, workers=n) for n in (0, 2))
    assert together.cases == alone.cases
    assert together.excluded == alone.excluded
    np.testing.assert_array_equal(together.features, alone.features)
    np.testing.assert_array_equal(together.maps, alone.maps)


def test_a_case_that_crashes_its_process_is_excluded(tmp_path, striped_task):
    spec, cases = striped_task(tmp_path / "task", cases=4)
    deadly = cases[1].images["t1"].rename(tmp_path / "deadly.nii.gz")
    cases = [*cases[:1], TaskCase("bad", "s", {"t1": deadly}), *cases[2:]]
    samples, excluded = prepare_cases(cases, Deadly(spec.channels, SIZE), workers=2)
    assert list(samples) == ["c00", "c02", "c03"]
    assert excluded == [("bad", "the reader crashed on this file (exit code 3)")]


@pytest.mark.parametrize(("count", "expected"), [(16, 0), (17, 2)])
def test_few_cases_start_no_processes(monkeypatch, count, expected):
    asked = []
    monkeypatch.setattr(prepared_cases, "run_jobs", lambda work, jobs, workers, seconds: asked.append(workers) or [])
    monkeypatch.setattr(prepared_cases, "default_workers", lambda: 2)
    cases = [TaskCase(str(k), str(k), {"t1": None}) for k in range(count)]
    assert not list(prepared_cases.iter_prepared(cases, None))
    assert asked == [expected]
