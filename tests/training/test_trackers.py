"""Experiment trackers."""

import os
import subprocess
import sys

import numpy as np
import pytest

from viewalign.errors import UserError
from viewalign.training.logs import RunLog
from viewalign.training.trackers import MlflowTracker, TensorBoardTracker, WandbTracker, numbers
from viewalign.weights.run_folder import read_log


def test_only_numbers_are_sent():
    assert numbers("train", {"loss": 1.5, "note": "x", "shape": [1, 2]}) == {"train/loss": 1.5}
    assert numbers("data", {"volumes": 8}) == {}, "a constant is no curve"


def test_tensorboard_has_settings_and_pictures(tmp_path):
    import io

    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = TensorBoardTracker(tmp_path, 0, {"steps": 3, "optim": {"lr": 0.1}})
    tracker.row("data", 0, {"volumes": 8})
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    tracker.picture(2, image)
    tracker.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert read.Tags()["scalars"] == []
    (shown,) = read.Images("views")
    assert shown.step == 2
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), image)
    (text,) = read.Tensors("settings")
    assert b"lr: 0.1" in text.tensor_proto.string_val[0]


def test_a_row_is_in_tensorboards_file_before_it_is_closed(tmp_path):
    tracker = TensorBoardTracker(tmp_path, 0)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_size
    tracker.row("train", 1, {"loss": 0.5})
    assert file.stat().st_size > before > 0
    tracker.close()


def test_tensorboard_reads_the_rows_of_a_resumed_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, values in ((0, (1.0, 0.5, 0.25)), (1, (0.125, 0.0625))):
        tracker = TensorBoardTracker(tmp_path, first)
        for step, value in enumerate(values, first + 1):
            tracker.row("train", step, {"loss": value, "note": "no number"})
        tracker.close()
        for file in tmp_path.glob("events*.viewalign"):
            file.rename(file.with_name(f"events.out.tfevents.{10 + first}.viewalign.kept"))
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert read.Tags()["scalars"] == ["train/loss"]
    assert [(one.step, one.value) for one in read.Scalars("train/loss")] == [(1, 1.0), (2, 0.125), (3, 0.0625)]


@pytest.mark.slow
def test_wandb_offline_and_resumed(tmp_path):
    pytest.importorskip("wandb")
    code = (
        "import sys, pathlib\nfrom viewalign.training.trackers import WandbTracker\n"
        "tracker = WandbTracker(pathlib.Path(sys.argv[1]), {'steps': 2})\n"
        "tracker.row('train', 1, {'loss': 0.5})\nprint(tracker._run.id, tracker._run.config['steps'])\ntracker.close()"
    )
    home = {**os.environ, "WANDB_MODE": "offline", "HOME": str(tmp_path), "WANDB_PROJECT": "p"}
    seen = []
    for _ in range(2):
        out = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=home, check=False
        )
        assert out.returncode == 0, out.stderr
        seen.append(out.stdout.split())
    assert seen[0] == seen[1]
    assert seen[0] == [(tmp_path / "wandb_id").read_text(), "2"]
    assert any((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.long
def test_mlflow_without_a_server_and_resumed(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    code = (
        "import sys, pathlib\nfrom viewalign.training.trackers import MlflowTracker\n"
        "step = int(sys.argv[2])\n"
        "tracker = MlflowTracker(pathlib.Path(sys.argv[1]), {'steps': 2, 'optim': {'lr': 0.1}})\n"
        "tracker.row('train', step, {'loss': 0.5 / step, 'note': 'no number'})\ntracker.close()"
    )
    place = f"sqlite:///{tmp_path / 'kept.db'}"
    home = {**os.environ, "MLFLOW_TRACKING_URI": place, "MLFLOW_EXPERIMENT_NAME": "heads"}
    for step in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), step], capture_output=True, text=True, env=home, check=False
        )
        assert out.returncode == 0, out.stderr
    client = mlflow.MlflowClient(place)
    (run,) = client.search_runs([client.get_experiment_by_name("heads").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "2", "optim.lr": "0.1"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.25)]
    assert str(tmp_path) not in str(run.data.params) + str(run.data.tags)


def test_an_unreachable_mlflow_server_is_an_error(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        MlflowTracker(tmp_path, {})
    assert not (tmp_path / "mlflow_id").exists()


def test_a_failing_tracker_does_not_stop_the_log(tmp_path, caplog):
    class Gone:
        def row(self, kind, step, values):
            raise RuntimeError("the server is gone")

        def close(self):
            raise AssertionError("it was left")

    log = RunLog(tmp_path / "log.jsonl", boards=[Gone()])
    for step in (1, 2):
        log.row("train", step, {"loss": 1.0})
    log.close()
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2]
    (message,) = caplog.messages
    assert "Gone" in message
    assert "the server is gone" in message


@pytest.mark.parametrize(("package", "tracker"), [("wandb", WandbTracker), ("mlflow", MlflowTracker)])
def test_missing_packages_are_named(tmp_path, monkeypatch, package, tracker):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install.*{package}"):
        tracker(tmp_path, {})
