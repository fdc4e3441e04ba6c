"""Fine-tuning, embedding and probes mix no tensors of the CPU with those of the device that they work on.

The device is a made-up one (`tests/made/second_device.py`), so that this holds where there is no GPU.
"""

import json
import logging
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from second_device import DEVICE, second_device
from task_fixtures import interrupted_after, trained_by

from viewalign.evaluation.embedding import embed
from viewalign.evaluation.encoders import build_encoder, read_pretrained
from viewalign.evaluation.retrieval import evaluate_retrieval
from viewalign.evaluation.voxel_features import EncoderFeatures
from viewalign.evaluation.voxel_probe import Case, VoxelProbeSettings, probe
from viewalign.finetuning.classification.finetune import finetune
from viewalign.finetuning.classification.training import augment
from viewalign.tasks.preprocessing import Preprocessor
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.sampling import ViewSamplingConfig
from viewalign.weights.encoder import Encoder

SMALL = ["epochs=1", "batch=4", "draws=100", "patch_size=16", "spacing=none"]


@contextmanager
def elsewhere():
    """Let every choice of a device be the second one."""
    modules = ("finetuning.classification.training", "finetuning.classification.finetune", "evaluation.embedding")
    with ExitStack() as stack:
        stack.enter_context(second_device())
        for module in modules:
            stack.enter_context(mock.patch(f"viewalign.{module}.choose_device", return_value=DEVICE.type))
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "encoder", "settings"),
    [
        ("binary", "untrained:resenc-xxs", ["balanced=true", "smoothing=0.1", "accumulate=2"]),
        ("multiclass", "untrained:primus-xxs", ["class_weights=true", "pool=attention"]),
        ("multilabel", "untrained:resenc-xxs", ["mode=head_first", "head_epochs=1", "pool=average"]),
        ("regression", "untrained:resenc-xxs", ["mode=layerwise"]),
        ("regression", "untrained:primus-xxs", ["mode=lora"]),
    ],
)
def test_a_fine_tuning_stays_on_its_device(kind, encoder, settings, tmp_path, striped_task, mark_as_test):
    if "mode=lora" in settings:
        pytest.importorskip("peft")
    striped_task(tmp_path / "task", kind, 12, ("a", "b", "c") if kind == "multiclass" else ("no", "yes"))
    mark_as_test(tmp_path / "task", 3)
    made = trained_by(None, [*SMALL, "folds=1", *settings])
    finetune(tmp_path / "task", encoder, tmp_path / "here", made)
    with elsewhere():
        finetune(tmp_path / "task", encoder, tmp_path / "there", made)
    here, there = (json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("here", "there"))
    assert there["cases"] == 3
    assert there["values"] == pytest.approx(here["values"], rel=0.05, abs=0.05, nan_ok=True)


@pytest.mark.slow
def test_a_fine_tuning_resumes_on_another_device(tmp_path, striped_task, caplog):
    striped_task(tmp_path / "task", "binary", 8, ("no", "yes"))
    made = trained_by(None, [*SMALL, "epochs=2", "folds=2"])

    with interrupted_after(1):
        finetune(tmp_path / "task", "untrained:resenc-xxs", tmp_path / "out", made)
    with elsewhere(), caplog.at_level(logging.INFO, "viewalign"):
        finetune(tmp_path / "task", "untrained:resenc-xxs", tmp_path / "out", made)
    assert [line[:16] for line in caplog.messages if "epoch" in line][:2] == ["fold 0  epoch 2/", "fold 1  epoch 1/"]


@pytest.mark.parametrize("seed", range(4))
def test_a_case_is_changed_on_the_device_that_trains(seed):
    """A GPU would wait for augmentation of 160³ voxels on a CPU."""
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 12, 10, 11)).astype(np.float32))
    valid = torch.ones(1, 12, 10, 11, dtype=torch.bool)
    geometry = ViewSamplingConfig(size=(12, 10, 11), p_rotation=1.0, p_scale=1.0)
    present, colours = np.array([True, True]), IntensityConfig(p_noise=1.0)

    def changed(*case):
        return augment(*case, present, np.random.default_rng(seed), geometry, colours)

    here = changed(image, valid)
    with second_device():
        there = changed(image.to(DEVICE), valid.to(DEVICE))
    assert {part.device for part in there} == {DEVICE}
    assert torch.allclose(there[0].cpu(), here[0], atol=1e-5)
    assert torch.equal(there[1].cpu(), here[1])


def test_embedding_stays_on_its_device(tmp_path, striped_task):
    spec, cases = striped_task(tmp_path / "task", cases=2)
    backbone, _ = build_encoder(read_pretrained("untrained:primus-xxs"), (16, 16, 16), 1)
    preprocessor = Preprocessor(spec.channels, (16, 16, 16))
    here = embed(backbone, preprocessor, cases, with_maps=True)
    with elsewhere():
        there = embed(backbone, preprocessor, cases, with_maps=True)
    np.testing.assert_allclose(there.features, here.features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(there.maps, here.maps, rtol=1e-3, atol=1e-4)
    assert there.facts["encoder_sha256"] == here.facts["encoder_sha256"]


@pytest.mark.slow
def test_voxel_probe_and_places_stay_on_their_device():
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(24, 20, 22)).astype(np.float32) for _ in range(2)]
    cases = [Case(f"c{k}", image, (image > 0).astype(np.uint8)) for k, image in enumerate(images)]
    backbone, _ = build_encoder(read_pretrained("untrained:resenc-xxs"), (16, 16, 16), 1)
    encoder = Encoder(backbone, (16, 16, 16), {})
    found = []
    for where in ("cpu", DEVICE.type):
        with second_device():
            torch.manual_seed(0)
            score = probe(EncoderFeatures(encoder, where), cases[:1], cases[1:], VoxelProbeSettings(0, 50, 500))
            places = evaluate_retrieval(encoder, images, seed=1, cells=3, device=where)
            found.append([score.dice, *places.distances])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
