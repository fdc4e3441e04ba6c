"""Boards that show a run elsewhere."""

import os
import subprocess
import sys

import pytest

from viewalign.errors import UserError
from viewalign.training.tracking import Wandb, numbers


def test_only_numbers_are_drawn():
    assert numbers("train", {"loss": 1.5, "note": "x", "shape": [1, 2]}) == {"train/loss": 1.5}


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
