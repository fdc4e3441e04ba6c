"""A small demo end to end, resuming, and errors."""

import json
import logging
import re
from contextlib import contextmanager

import nibabel
import numpy as np
import pytest
import torch

from viewalign.demo import run as figures
from viewalign.demo.cohort import CohortSettings
from viewalign.demo.run import DemoSettings, run_demo
from viewalign.errors import UserError
from viewalign.weights.run_folder import RunFolder

pytest.importorskip("nilearn")
pytest.importorskip("sklearn")

SMALL = ("views.patch_size=16", "batch=2", "heads.width=32", "heads.predictor_width=16", "log.every=1")


@pytest.fixture(autouse=True)
def _one_thread():
    # At this size threads have nothing to share, and on a busy machine they wait for each other for minutes.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_the_demo_end_to_end(tmp_path, monkeypatch, caplog):
    # One process: at this size, starting workers costs more than they do.
    monkeypatch.setattr("viewalign.demo.cohort.default_workers", lambda: 0)
    monkeypatch.setattr("viewalign.data.prepare.default_workers", lambda: 0)
    settings = DemoSettings(
        tmp_path / "demo",
        steps=3,
        cohort=CohortSettings(unlabelled=5, labelled=4, spacing=6.0),
        overrides=SMALL,
    )
    bars = []

    @contextmanager
    def progress_bar(what):
        yield lambda done, total: bars.append((what, done, total))

    monkeypatch.setattr("viewalign.demo.run.progress_bar", progress_bar)
    result = run_demo(settings)
    assert result.report == tmp_path / "demo" / "run" / "report.html"
    assert result.report.is_file()
    assert (result.fresh, result.exit_code, len(result.figures)) == (True, 0, 3)
    assert ("Generating images", 9, 9) in bars
    run = tmp_path / "demo" / "run"
    assert "synthetic" in (run / "data_note.txt").read_text()
    written = json.loads((run / "probe.json").read_text())
    assert (written["cases_train"], written["cases_test"]) == (2, 2)
    assert "synthetic" in written["note"]
    assert (run / "export" / "encoder.safetensors").is_file()
    stored = json.loads((tmp_path / "demo" / "store" / "index.json").read_text())["subject"]
    assert len(stored) == 5

    again = run_demo(settings)
    assert (again.fresh, again.figures) == (False, result.figures)
    with pytest.raises(UserError, match=r"steps.*3.*4"):
        run_demo(DemoSettings(settings.out, steps=4, cohort=settings.cohort, overrides=settings.overrides))

    # As if it had been stopped before the probe: what is there is not done again.
    (run / "probe.json").unlink()
    rewrite = lambda run, *_: (run.root / "probe.json").write_text(json.dumps(written))  # noqa: E731
    monkeypatch.setattr("viewalign.demo.probe.probe_run", rewrite)
    state = json.loads((tmp_path / "demo" / "demo.json").read_text())
    (tmp_path / "demo" / "demo.json").write_text(json.dumps({**state, "finished": False}))
    with caplog.at_level(logging.INFO, "viewalign"):
        again = run_demo(settings)
    assert again.figures == result.figures
    assert "4 Pretraining: already complete." in caplog.messages


@pytest.mark.slow
def test_own_images_without_labels(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("viewalign.data.prepare.default_workers", lambda: 0)
    rng = np.random.default_rng(0)
    data = tmp_path / "my scans: 1"
    data.mkdir()
    for number in range(3):
        array = rng.normal(100, 10, size=(20, 22, 24)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), data / f"sub-{number}_T1w.nii.gz")
    with caplog.at_level(logging.INFO, "viewalign"):
        result = run_demo(DemoSettings(tmp_path / "out: 2", data=data, steps=1, overrides=SMALL))
    assert result.report is not None
    assert result.report.is_file()
    assert result.figures[2] == "Probe: none (no labels)."
    assert any("The probe is skipped" in line for line in caplog.messages)
    assert "synthetic" not in (tmp_path / "out: 2" / "run" / "data_note.txt").read_text()
    assert not (tmp_path / "out: 2" / "images").exists()


def test_a_folder_with_other_contents_is_an_error(tmp_path):
    (tmp_path / "letter.txt").touch()
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        run_demo(DemoSettings(tmp_path))


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="data"):
        run_demo(DemoSettings(tmp_path / "demo", data=tmp_path / "data"))


def test_figures_are_read_from_the_run(tmp_path):
    run = RunFolder(tmp_path)
    rows = [
        {"kind": "train", "step": 1, "loss": 4.0},
        {"kind": "health", "step": 1, "effective_rank": 3.0},
        {"kind": "train", "step": 2, "loss": 3.0},
    ]
    run.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loss, rank, probe = figures.summarise(run)
    assert loss == "Loss in training: 4.00 at step 1 → 3.00 at step 2"
    assert rank == "Effective rank of the features: 3.0 (bad)"
    assert probe == "Probe: none (no labels)."
    result = {
        "pretrained": 0.8,
        "untrained": 0.7,
        "baselines": {"intensity": 0.5},
        "interval": {"pretrained": [0.75, 0.85]},
    }
    (tmp_path / "probe.json").write_text(json.dumps(result))
    assert figures.summarise(run)[2] == (
        "Probe (mean Dice): pretrained 0.800 (0.750 to 0.850), untrained 0.700, intensities alone 0.500"
    )
