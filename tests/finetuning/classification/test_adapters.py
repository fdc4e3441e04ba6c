"""Modes that train few parameters: these and no others change, and merged weights predict the same."""

import numpy as np
import pytest
import torch
from task_fixtures import interrupted_after, trained_by

from viewalign.evaluation.encoders import build_encoder, read_pretrained
from viewalign.finetuning.classification import adapters
from viewalign.finetuning.classification.finetune import finetune
from viewalign.finetuning.classification.models import Predictor, read_model, write_model
from viewalign.finetuning.classification.network import GlobalNetwork
from viewalign.finetuning.classification.training import FoldTraining, predict_sample
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Preprocessor, Sample
from viewalign.tasks.spec import TaskSpec

pytest.importorskip("peft")

pytestmark = pytest.mark.slow
SIZE = (16, 16, 16)
SPEC = TaskSpec.model_validate({"name": "x", "kind": "binary", "channels": [{"name": "a"}], "classes": ["n", "y"]})
WHOLE = np.ones((1, *SIZE), dtype=bool)
LAYERS = {"resenc-xxs": 8, "primus-xxs": 8}
"""How many layers get an adapter: two convolutions of four blocks, four projections of two attentions."""
LOW_RANK = [(name, mode) for name in LAYERS for mode in adapters.LOW_RANK]


def some():
    rng = np.random.default_rng(0)
    cases = [TaskCase(f"c{k}", f"c{k}", {}, target=k % 2) for k in range(6)]
    images = {c.case: rng.normal(size=(1, *SIZE)).astype(np.float32) for c in cases}
    return cases, {name: Sample(image, WHOLE, np.array([True])) for name, image in images.items()}


def network_of(name):
    backbone, _ = build_encoder(read_pretrained(f"untrained:{name}"), SIZE, 1)
    network = GlobalNetwork(backbone, 2, "average", 0.0, [0.0, 0.0])
    torch.manual_seed(0)
    network.head.weight.data.normal_(std=0.1)
    return network


def training_of(name, mode, folder, epochs=2):
    cases, samples = some()
    settings = trained_by(
        None, [f"mode={mode}", f"epochs={epochs}", "batch=3", "lr=0.01", "lora.rank=2", "lora.dropout=0.1"]
    )
    network = network_of(name)
    if mode in adapters.LOW_RANK:
        adapters.attach(network.backbone, mode, 2, 16.0, 0.1, 0)
    return FoldTraining(network, cases, samples, SPEC, settings, 0, folder)


@pytest.mark.parametrize(("name", "mode"), LOW_RANK)
def test_adapters_and_head_alone_learn_and_every_adapter_does(tmp_path, name, mode):
    training = training_of(name, mode, tmp_path)
    before = {k: v.detach().clone() for k, v in training.network.named_parameters()}
    image, valid = torch.randn(1, 1, *SIZE), torch.ones(1, 1, *SIZE, dtype=torch.bool)
    with torch.no_grad():
        plain = network_of(name).eval()(image, valid)
        torch.testing.assert_close(training.network.eval()(image, valid), plain)
    training.run()
    after = dict(training.network.named_parameters())
    assert len([k for k in after if ".lora_B" in k]) == LAYERS[name]
    for key, value in after.items():
        learnt = ".lora_" in key or key.startswith("head.")
        assert torch.equal(value, before[key]) is not learnt, key
    each = 3 if mode == "dora" else 2
    assert sum(len(group["params"]) for group in training.optimizer.param_groups) == each * LAYERS[name] + 2


@pytest.mark.parametrize("name", list(LAYERS))
def test_norms_biases_and_head_alone_learn(tmp_path, name):
    training = training_of(name, "norms", tmp_path)
    before = {k: v.detach().clone() for k, v in training.network.named_parameters()}
    training.run()
    learnt = {k for k, v in training.network.named_parameters() if not torch.equal(v, before[k])}
    norms = (torch.nn.LayerNorm, torch.nn.InstanceNorm3d)
    affine = {
        f"{module_name}.{part}"
        for module_name, module in training.network.named_modules()
        if isinstance(module, norms)
        for part, _ in module.named_parameters(recurse=False)
    }
    assert len(affine) > 8
    names = {k for k in before if before[k].ndim == 1}
    assert affine <= names
    assert {"head.weight", "head.bias"} <= learnt <= names | {"head.weight"}
    # A bias in front of an instance norm has no effect; every norm has one.
    assert affine & learnt
    assert sum(p.numel() for p in training.network.parameters() if p.requires_grad) < 0.05 * sum(
        p.numel() for p in training.network.parameters()
    )


@pytest.mark.parametrize(("name", "mode"), LOW_RANK)
def test_merged_and_unmerged_predict_the_same(tmp_path, name, mode):
    training = training_of(name, mode, tmp_path / "c")
    training.run()
    network, sample = training.network, next(iter(training.samples.values()))
    unmerged = predict_sample(network, sample, SPEC, (0.0, 1.0))
    untrained = dict(network_of(name).named_parameters())
    adapters.merge(network.backbone)
    np.testing.assert_allclose(predict_sample(network, sample, SPEC, (0.0, 1.0)), unmerged, rtol=1e-4, atol=1e-6)
    assert dict(network.named_parameters()).keys() == untrained.keys()
    changed = [k for k, v in network.named_parameters() if not torch.equal(v, untrained[k])]
    assert len(changed) == LAYERS[name] + 2
    write_model(tmp_path / "m", network, name, SPEC, Preprocessor(SPEC.channels, SIZE), (0.0, 1.0))
    again = read_model(tmp_path / "m").network
    np.testing.assert_allclose(predict_sample(again, sample, SPEC, (0.0, 1.0)), unmerged, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["dora", "norms"])
def test_a_stopped_run_resumes_exactly(tmp_path, mode):
    straight = training_of("primus-xxs", mode, tmp_path / "a", 3)
    straight.run()

    with interrupted_after(2):
        training_of("primus-xxs", mode, tmp_path / "b", 3).run()
    resumed = training_of("primus-xxs", mode, tmp_path / "b", 3)
    resumed.run()
    assert resumed.losses == straight.losses
    for a, b in zip(straight.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["lora", "norms"])
def test_a_whole_fine_tuning_leaves_plain_models(tmp_path, striped_task, mode):
    _, cases = striped_task(tmp_path / "task", cases=8)
    settings = trained_by(
        None, [f"mode={mode}", "epochs=1", "batch=3", "folds=2", "draws=100", "patch_size=16", "spacing=none"]
    )
    finetune(tmp_path / "task", "untrained:resenc-xxs", tmp_path / "out", settings)
    assert np.isfinite(Predictor(tmp_path / "out").predict(cases[0])).all()
