"""Checkpoints of nnU-Net's training are written atomically."""

from pathlib import Path

import pytest
import torch

from viewalign.errors import UserError

pytest.importorskip("nnunetv2")


class Logger:
    """Nothing to keep."""

    def get_checkpoint(self):
        return {}


@pytest.fixture
def trainer(tmp_path):
    """A trainer with only what saving reads, and its messages."""
    from viewalign.finetuning.segmentation.trainer import ViewalignTrainer

    made = ViewalignTrainer.__new__(ViewalignTrainer)
    made.local_rank, made.disable_checkpointing, made.is_ddp = 0, False, False
    made.network = torch.nn.Linear(2, 2)
    made.optimizer = torch.optim.SGD(made.network.parameters(), 0.1)
    made.grad_scaler, made.logger, made._best_ema, made.current_epoch = None, Logger(), None, 4
    made.my_init_kwargs, made.inference_allowed_mirroring_axes = {}, None
    made.told = []
    made.print_to_log_file = made.told.append
    return made


def fails_half_way(problem):
    def save(_, path):
        Path(path).write_bytes(b"half")
        raise problem

    return save


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_keeps_the_previous_checkpoint(trainer, tmp_path, monkeypatch, problem):
    latest = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(latest))
    before = latest.read_bytes()
    monkeypatch.setattr(torch, "save", fails_half_way(problem))
    trainer.save_checkpoint(str(latest))
    assert latest.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_latest.pth"]
    assert len(trainer.told) == 1
    assert "the previous one is kept" in trainer.told[0]
    with pytest.raises(UserError, match=r"disk|space"):
        trainer.save_checkpoint(str(tmp_path / "checkpoint_final.pth"))
    assert not (tmp_path / "checkpoint_final.pth").exists(), "half a final one would pass for a finished training"


def test_a_kill_while_writing_keeps_the_previous_checkpoint(trainer, tmp_path, monkeypatch):
    latest = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(latest))
    written = []

    def look(state, path):
        written.append(path)
        assert torch.load(latest, weights_only=False)["current_epoch"] == 5, "whole while the next one is written"
        real(state, path)

    real = torch.save
    monkeypatch.setattr(torch, "save", look)
    trainer.current_epoch = 5
    trainer.save_checkpoint(str(latest))
    assert written != [str(latest)]
    assert torch.load(latest, weights_only=False)["current_epoch"] == 6


def test_other_processes_write_nothing(trainer, tmp_path):
    trainer.local_rank = 1
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert not any(tmp_path.iterdir())
