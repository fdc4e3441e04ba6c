"""Encoders of damaged, odd or hostile files are rejected with a message, before memory is allocated."""

import json
import os
import shutil

import pytest
import torch

from viewalign.errors import DamageWarning, UserError
from viewalign.recipes.loading import load
from viewalign.weights import checkpoints, encoder
from viewalign.weights.encoder import load_encoder
from viewalign.weights.export import export_run

pytestmark = pytest.mark.slow


@pytest.fixture
def exported(tiny_run, tmp_path):
    return export_run(tiny_run, tmp_path / "export")


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def rewrite(folder, **changes):
    file = folder / "encoder.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "text", ["[1, 2]", "3", "null", "{", "\ufeff{}", '{"format": "viewalign-encoder", "version": "x"}', "[" * 100_000]
)
def test_odd_facts_are_a_sentence(exported, text):
    (exported / "encoder.json").write_text(text)
    with pytest.raises(UserError, match=r"encoder\.json"):
        load_encoder(exported)


@pytest.mark.parametrize("channels", [10**9, 0, -1, "1", 1.5, None, True])
def test_claims_of_channels_are_held_against_a_limit(exported, channels):
    network = json.loads((exported / "encoder.json").read_text())["network"]
    rewrite(exported, network={**network, "channels": channels})
    with pytest.raises(UserError, match=r"encoder\.json"):
        load_encoder(exported)


@pytest.mark.parametrize("changes", [{"network": []}, {"size": [16, 16]}, {"size": [10**9] * 3}, {"size": "big"}])
def test_claims_that_are_no_network_are_rejected(exported, changes):
    rewrite(exported, **changes)
    with pytest.raises(UserError, match=r"encoder\.json"):
        load_encoder(exported)


def test_claims_within_the_limit_take_no_memory_where_the_weights_are_others(exported, monkeypatch):
    network = json.loads((exported / "encoder.json").read_text())["network"]
    rewrite(exported, network={**network, "channels": 16_000})
    devices = []
    build = encoder.build_backbone

    def note(*arguments):
        backbone = build(*arguments)
        devices.append(next(backbone.parameters()).device.type)
        return backbone

    monkeypatch.setattr(encoder, "build_backbone", note)
    with pytest.raises(UserError, match=r"0 missing, \d+ "):
        load_encoder(exported)
    assert devices == ["meta"]


def test_weights_that_are_not_there_are_a_sentence(exported):
    (exported / "encoder.safetensors").unlink()
    os.mkfifo(exported / "encoder.safetensors")
    with pytest.raises(UserError, match=r"encoder\.safetensors"):
        load_encoder(exported)


@pytest.mark.parametrize("shape", [(20, 20, 20), (1, 2, 16, 16, 24), (1, 1, 16, 16), (1, 1, 17, 16, 24)])
def test_images_of_another_shape_are_an_error(exported, shape):
    with pytest.raises((ValueError, UserError), match="images"):
        load_encoder(exported)(torch.zeros(shape))


def change(run, edit):
    """Rewrite the newest checkpoint of a run, with a digest that fits."""
    folder = run / "checkpoints"
    step = checkpoints.steps(folder)[-1]
    state = checkpoints.load(checkpoints.path_of(folder, step))
    edit(state)
    shutil.rmtree(checkpoints.path_of(folder, step))
    checkpoints.save(folder, step, {k: v for k, v in state.items() if k not in {"format", "step"}})


@pytest.mark.parametrize("key", ["method", "recipe", "preparation"])
def test_a_checkpoint_that_lacks_something_is_a_sentence(run, key):
    change(run, lambda state: state.pop(key))
    for use in (load_encoder, export_run):
        with pytest.raises(UserError, match=f"step 2\\b.*{key}"):
            use(run)


@pytest.mark.parametrize(
    "edit",
    [
        lambda weights: (
            weights.pop("student.backbone.net.encoder.stem.convs.0.conv.weight", None)
            if any("encoder.stem" in name for name in weights)
            else weights.pop("student.backbone.net.down_projection.proj.weight")
        ),
        lambda weights: weights.update({f"x{name}": weights.pop(name) for name in list(weights)}),
        lambda weights: weights.update({name: value[..., None] for name, value in weights.items()}),
        lambda weights: weights.update({name: value * float("nan") for name, value in weights.items()}),
    ],
)
def test_weights_that_do_not_fit_or_are_not_finite_are_a_sentence(run, edit):
    change(run, lambda state: edit(state["method"]))
    for use in (load_encoder, export_run):
        with pytest.raises(UserError, match=r"not fit|student weights|not finite"):
            use(run)


def test_the_checkpoint_before_a_damaged_one_is_used_with_a_warning(run):
    newest = run / "checkpoints" / "step_00000002"
    shutil.copytree(newest, run / "checkpoints" / "step_00000009")
    (run / "checkpoints" / "step_00000009" / "state.pt").write_bytes(b"")
    with pytest.warns(DamageWarning, match=r"step_00000009.*step 2\b"):
        assert load_encoder(run).facts["steps"] == 2
    shutil.rmtree(newest)
    with pytest.raises(UserError, match="step_00000009"):
        export_run(run)


@pytest.mark.parametrize("name", ["resenc-xxs", "primus-xxs"])
def test_an_encoder_has_its_own_weights_only(name):
    """Others are random, and processes that train together would wait for their gradients."""
    recipe = load("cva-resenc-xs", [f"network={name}", "views.patch_size=[16,16,16]"])
    one, other = (encoder.build_untrained(recipe, seed) for seed in (0, 0))
    used = {key for key, value in one.named_parameters() if value.requires_grad}
    one(torch.randn(1, 1, *recipe.views.patch_size)).pooled.sum().backward()
    assert used == {key for key, value in one.named_parameters() if value.grad is not None}
    assert used == {f"backbone.{key}" for key in encoder.encoder_keys(one.backbone)}
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())
