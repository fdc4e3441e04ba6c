"""The check of a GPU, run on a CPU."""

import pytest
import torch

from viewalign.training.gpu import check as checking
from viewalign.training.gpu.check import TINY, check

CPU = torch.device("cpu")


@pytest.mark.long
def test_a_cpu_agrees_with_itself(tmp_path):
    found = {finding.what: finding for finding in check(CPU, tmp_path, TINY)}
    assert list(found) == ["Limits", "Same as CPU", "Resume", "Step", "Memory", "Data wait"]
    assert "differ by 0 at most" in found["Same as CPU"].found
    assert "differ by 0 at most" in found["Resume"].found
    assert {found[what].level for what in ("Same as CPU", "Resume", "Step")} == {"good"}
    assert "cva-resenc-xs" in found["Step"].found


def test_different_losses_are_bad(monkeypatch, tmp_path):
    curves = iter([[1.0, 0.9], [1.0, 0.95]])
    monkeypatch.setattr(checking, "synthetic_store", lambda *_: None)
    monkeypatch.setattr(checking, "small_run", lambda *_: next(curves))
    monkeypatch.setattr(checking, "resumed", lambda *_: [1.0, float("nan")])
    same, resume = checking._small_runs(CPU, tmp_path, TINY)
    assert (same.level, resume.level) == ("bad", "bad")
    assert "0.056" in same.found
    assert "nan" in resume.found
    assert same.remedy
    assert resume.remedy


@pytest.mark.slow
def test_large_networks_are_tried_with_less_memory(monkeypatch, tmp_path):
    tried = []

    class Full:
        def __init__(self, recipe, settings, *_):
            tried.append(settings[len(TINY.settings) :])
            raise torch.OutOfMemoryError

    monkeypatch.setattr(checking, "synthetic_store", lambda *_: None)
    monkeypatch.setattr(checking, "Bench", Full)
    (finding,) = checking._large_steps(CPU, tmp_path, TINY, 1.0)
    assert tried == [[], ["runtime.recompute=true"], ["runtime.recompute=true", "batch=2"]]
    assert finding.level == "watch"
    assert "does not fit" in finding.found


def test_errors_become_findings(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED\nand more")

    monkeypatch.setattr(checking, "synthetic_store", lambda *_: None)
    monkeypatch.setattr(checking, "small_run", broken)
    monkeypatch.setattr(checking, "Bench", broken)
    monkeypatch.setattr(checking.timing, "product_rate", lambda *_: 1.0)
    found = check(CPU, tmp_path, TINY)
    assert [finding.level for finding in found] == ["good", "bad", "bad"]
    assert found[1].found == "failed with RuntimeError: CUDNN_STATUS_NOT_SUPPORTED"
