"""Boards that show a run elsewhere."""

import os
import subprocess
import sys

import pytest

from viewalign.errors import UserError
from viewalign.training.tracking import Events, Wandb, numbers


def test_only_numbers_are_drawn():
    assert numbers("train", {"loss": 1.5, "note": "x", "shape": [1, 2]}) == {"train/loss": 1.5}


def test_tensorboard_reads_what_is_written_and_forgets_what_a_resumed_run_does_anew(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, values in ((0, (1.0, 0.5, 0.25)), (1, (0.125, 0.0625))):
        board = Events(tmp_path, first)
        for step, value in enumerate(values, first + 1):
            board.row("train", step, {"loss": value, "note": "no number"})
        board.close()
        for file in tmp_path.glob("events*.viewalign"):
            file.rename(file.with_name(f"events.out.tfevents.{10 + first}.viewalign.kept"))
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert read.Tags()["scalars"] == ["train/loss"]
    assert [(one.step, one.value) for one in read.Scalars("train/loss")] == [(1, 1.0), (2, 0.125), (3, 0.0625)]


@pytest.mark.slow
def test_a_run_is_kept_by_wandb_offline_and_goes_on_under_its_id(tmp_path):
    pytest.importorskip("wandb")
    code = (
        "import sys, pathlib\nfrom viewalign.training.tracking import Wandb\n"
        "board = Wandb(pathlib.Path(sys.argv[1]), {'steps': 2})\n"
        "board.row('train', 1, {'loss': 0.5})\nprint(board._run.id, board._run.config['steps'])\nboard.close()"
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


def test_without_the_package_a_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'viewalign\[tracking\]'"):
        Wandb(tmp_path, {})
