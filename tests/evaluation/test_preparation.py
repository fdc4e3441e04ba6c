"""The preparation of pretraining images is applied wherever the encoder is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.evaluation.encoders import compare_channels, preparation_of, read_pretrained
from viewalign.finetuning.classification.finetune import make_preprocessor
from viewalign.finetuning.classification.settings import TaskTraining
from viewalign.networks.registry import build_backbone
from viewalign.tasks.preprocessing import Preprocessor
from viewalign.tasks.spec import TaskSpec
from viewalign.weights import adaptation_plan

WAYS = [
    {"normalise": "window", "window": (-1000.0, 1000.0)},
    {"normalise": "percentile", "percentiles": (1.0, 99.0)},
    {"normalise": "foreground", "interpolation": "cubic"},
    {"normalise": "none", "fill_nonfinite": True, "spacing": (2.0, 1.0, 1.0)},
    {"normalise": "zscore", "spacing": None},
]


def encoder(folder: Path, settings: PrepareSettings) -> Path:
    """Write the weights of a small encoder whose images were prepared in this way."""
    plan = adaptation_plan.plan_of("resenc-xxs", 1, (32, 32, 32), "cva", settings.model_dump(mode="json"))
    path = folder / "checkpoint_final.pth"
    torch.save(adaptation_plan.checkpoint(build_backbone("resenc-xxs", (32, 32, 32)).net.state_dict(), plan, 1), path)
    return path


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way["normalise"]))
def test_every_preparation_is_applied_to_tasks(tmp_path: Path, way: dict[str, object]) -> None:
    settings = PrepareSettings.model_validate(way)
    start = read_pretrained(encoder(tmp_path, settings))
    assert start.preparation == settings
    assert start.source is not None
    assert not any("z-score takes its place" in note for note in start.source.notes)
    spec = TaskSpec.model_validate({"name": "t", "kind": "regression", "channels": [{"name": "ct"}], "unit": "a"})
    preprocessor = make_preprocessor(start, spec, TaskTraining())
    assert Preprocessor.from_json(preprocessor.as_json()).settings == settings
    other = make_preprocessor(start, spec, TaskTraining(normalise="zscore"))
    assert Preprocessor.from_json(other.as_json()).settings.normalise == "zscore"


def test_a_damaged_preparation_is_an_error() -> None:
    with pytest.raises(UserError, match=adaptation_plan.PREPARATION):
        preparation_of({adaptation_plan.PREPARATION: {"normalise": "window"}})


@pytest.mark.parametrize(
    ("names", "words"), [(["t1w", "FLAIR"], None), (["FLAIR", "T1w"], "same order"), (["T1w"], "mixes sequences")]
)
def test_other_channels_than_those_of_the_pretraining_are_reported(names, words, caplog) -> None:
    kinds = {"name": "t", "kind": "regression", "channels": [{"name": name} for name in names], "unit": "a"}
    compare_channels(PrepareSettings(channels=("T1w", "FLAIR")), TaskSpec.model_validate(kinds))
    assert words in caplog.text if words else not caplog.text
    compare_channels(PrepareSettings(), TaskSpec.model_validate(kinds))
    assert caplog.text.count("pretrained on the channels T1w, FLAIR") == (words is not None)
