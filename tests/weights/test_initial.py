"""A run that starts from pretrained weights: what is copied, reported and rejected."""

import json
import logging
import re
import shutil

import pytest
import torch

from viewalign.errors import UserError
from viewalign.methods.registry import build_method
from viewalign.networks.registry import build_backbone
from viewalign.recipes.loading import load
from viewalign.training.loop import Trainer
from viewalign.training.run import pretrain
from viewalign.weights import adaptation_plan, checkpoints
from viewalign.weights.export import export_run
from viewalign.weights.initial import load_initial

pytestmark = pytest.mark.slow

RECIPES = {"resenc-xxs": "cva-resenc-xs", "primus-xxs": "cva-primus-xs"}


@pytest.fixture
def mae_file(tmp_path):
    """Write a checkpoint as nnssl's masked autoencoders do; returns its path and the network whose weights it has."""

    def write(network, size=(16, 16, 16), trainer="viewalign_mae", channels=1):
        torch.manual_seed(1)
        backbone = build_backbone(network, size, channels)
        state = {name.removeprefix("net."): value for name, value in backbone.state_dict().items()}
        if network.startswith("primus"):
            state["mask_token"] = state.pop("filler")[None, None]
            state = {k: v for k, v in state.items() if not k.startswith(("feature_decoder.", "attention_pool."))}
        plan = adaptation_plan.adaptation_plan(network, channels, size, (1.0, 1.0, 1.0), False, trainer)
        torch.save(adaptation_plan.checkpoint(state, plan, 1000), tmp_path / "checkpoint_final.pth")
        return tmp_path / "checkpoint_final.pth", backbone

    return write


@pytest.fixture
def method_of(tiny_recipe):
    return lambda *settings, network="resenc-xxs": build_method(tiny_recipe(*settings, recipe=RECIPES[network]))


@pytest.fixture
def before_first_step(monkeypatch):
    """Catch the method's state as training begins."""
    caught = {}
    original = Trainer.run

    def run(self, *arguments):
        caught.update({name: value.clone() for name, value in self.method.state_dict().items()})
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "run", run)
    return caught


def whats(start):
    return {row.name: row.what for row in start.report.rows}


def assert_teacher_is_the_student(method):
    state = dict(method.named_parameters())
    pairs = [name for name in state if name.startswith("teacher.")]
    assert pairs
    for name in pairs:
        assert torch.equal(state[name], state[name.replace("teacher.", "student.", 1)]), name


@pytest.mark.parametrize("network", RECIPES)
def test_a_run_starts_from_a_checkpoint_of_nnssl(network, mae_file, tiny_recipe, before_first_step, caplog):
    caplog.set_level(logging.INFO, logger="viewalign")
    path, backbone = mae_file(network)
    outcome = pretrain(tiny_recipe(f"init={path}", recipe=RECIPES[network], steps=2))
    assert outcome.finished
    taken = {n: p for n, p in backbone.named_parameters() if not n.startswith(("feature_decoder", "attention_pool"))}
    assert len(taken) > 50
    for name, value in taken.items():
        assert torch.equal(before_first_step[f"student.backbone.{name}"], value), name
        if f"teacher.backbone.{name}" in before_first_step:
            assert torch.equal(before_first_step[f"teacher.backbone.{name}"], value), name
    told = caplog.text
    assert "Starting from checkpoint_final.pth: 100.0% of the encoder is covered." in told
    assert len(told.splitlines()) < 40
    written = outcome.folder.initial.read_text()
    facts = json.loads(written)
    assert (facts["file"], facts["encoder_share"]) == ("checkpoint_final.pth", 1.0)
    assert facts["network"] == network.split("-")[0]
    assert str(path.parent) not in written


@pytest.mark.parametrize("network", RECIPES)
def test_the_teacher_starts_as_the_student(network, mae_file, method_of):
    method = method_of(network=network)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(1)
    load_initial(method, mae_file(network)[0], (16, 16, 16))
    assert_teacher_is_the_student(method)


def test_decoder_and_filler_come_along_and_the_rest_is_fresh(mae_file, method_of):
    path, backbone = mae_file("primus-xxs")
    method = method_of(network="primus-xxs")
    start = load_initial(method, path, (16, 16, 16))
    mine = method.student.backbone
    assert torch.equal(mine.filler, backbone.filler)
    assert torch.equal(mine.decoder.blocks[1].mlp.fc2.weight, backbone.decoder.blocks[1].mlp.fc2.weight)
    assert torch.equal(mine.net.up_projection.decode[1].weight, backbone.net.up_projection.decode[1].weight)
    fresh = {name.split(".")[0] for name, what in whats(start).items() if what == "fresh"}
    assert fresh == {"feature_decoder", "attention_pool", "projector", "predictor"}


def test_positions_of_another_grid_are_resized(mae_file, method_of):
    path, _ = mae_file("primus-xxs", size=(16, 24, 16))
    method = method_of("views.patch_size=[24,16,32]", network="primus-xxs")
    start = load_initial(method, path, (24, 16, 32))
    assert [n for n, what in whats(start).items() if what == "adapted"] == ["eva.pos_embed", "decoder.pos_embed"]
    assert start.encoder_share == 1.0
    assert "adapted eva.pos_embed and 1 more: positions resized from 4×6×4 to 6×4×8 tokens" in start.text()
    assert_teacher_is_the_student(method)


@pytest.mark.parametrize("network", RECIPES)
def test_one_channel_becomes_two(network, mae_file, method_of):
    path, backbone = mae_file(network)
    method = method_of("network.channels=2", network=network)
    start = load_initial(method, path, (16, 16, 16))
    stem = {"resenc-xxs": "encoder.stem.convs.0.conv.weight", "primus-xxs": "down_projection.proj.weight"}[network]
    was = dict(backbone.net.named_parameters())[stem]
    now = dict(method.student.backbone.net.named_parameters())[stem]
    assert torch.allclose(now, was.expand_as(now) / 2)
    assert whats(start)[stem] == "adapted"
    left = [row for row in start.report.rows if row.what == "left" and row.wanted]
    assert left  # the layer that makes the image has another number of outputs
    assert all("is needed" in row.note for row in left)


def test_too_little_is_rejected_and_changes_nothing(mae_file, method_of):
    path, _ = mae_file("resenc-xxs")
    root = torch.load(path, weights_only=True)
    weights = {n: v for n, v in root["network_weights"].items() if "stages.3" not in n}
    weights["encoder.stem.convs.0.conv.weight"] = torch.zeros(12, 1, 3, 3, 3)
    torch.save({**root, "network_weights": weights}, path)
    method = method_of()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_initial(method, path, (16, 16, 16))
    text = str(caught.value)
    assert "of the encoder, and init.min_share=0.9 requires 90.0%" in text
    assert "encoder.stem.convs.0.conv.weight (its shape is [12, 1, 3, 3, 3], [4, 1, 3, 3, 3] is needed)" in text
    assert "more. Use weights of the same network, or lower init.min_share." in text
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    with pytest.raises(UserError, match="without which"):  # behind a random first convolution the rest is worth nothing
        load_initial(method, path, (16, 16, 16), min_share=0.1)
    assert load_initial(method, path, (16, 16, 16), min_share=0).encoder_share < 0.9


@pytest.mark.parametrize(("given", "run"), [("resenc-xxs", "primus-xxs"), ("primus-xxs", "resenc-xxs")])
def test_the_other_kind_of_network_is_rejected(given, run, mae_file, method_of):
    with pytest.raises(UserError, match=r"ResEnc.*Primus|Primus.*ResEnc"):
        load_initial(method_of(network=run), mae_file(given)[0], (16, 16, 16))


def test_a_primus_of_unknown_token_order(mae_file, tiny_recipe, before_first_step):
    path, backbone = mae_file("primus-xxs", trainer="SomeTrainer")
    with pytest.raises(UserError, match=r"init\.token_order=hdw"):
        pretrain(tiny_recipe(f"init={path}", recipe="cva-primus-xs", steps=1))
    pretrain(tiny_recipe(f"init={path}", "init.token_order=hdw", recipe="cva-primus-xs", steps=1))
    got, given = before_first_step["student.backbone.net.eva.pos_embed"], backbone.net.eva.pos_embed
    assert torch.equal(got.reshape(4, 4, 4, 48), given.reshape(4, 4, 4, 48).transpose(0, 1))


@pytest.mark.parametrize("network", RECIPES)
def test_a_run_and_its_export_are_starts_too(network, tiny_recipe, method_of, tmp_path):
    first = pretrain(tiny_recipe(out="first", recipe=RECIPES[network], steps=2)).folder
    state = checkpoints.load_newest(first.checkpoints)["method"]
    method = method_of("seed=5", network=network)
    start = load_initial(method, first.root, (16, 16, 16))
    assert start.report.counts() == {"loaded": len(start.report.rows), "adapted": 0, "left": 0, "fresh": 0}
    for name, value in dict(method.student.named_parameters()).items():
        assert torch.equal(value, state[f"student.{name}"]), name
    assert_teacher_is_the_student(method)
    export = export_run(first.root)
    for path in (export, export / "checkpoint_final.pth", export / "encoder.safetensors"):
        method = method_of("seed=6", network=network)
        start = load_initial(method, path, (16, 16, 16))
        assert start.encoder_share == 1.0
        assert not [row for row in start.report.rows if row.what == "left"]
        for name, value in method.student.backbone.net.named_parameters():
            if "decoder" not in name and "up_projection" not in name:
                assert torch.equal(value, state[f"student.backbone.net.{name}"]), name


def test_a_run_without_a_checkpoint_is_no_start(tiny_recipe, method_of):
    folder = pretrain(tiny_recipe(steps=1)).folder
    for step in folder.checkpoints.iterdir():
        (step / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(str(folder.root))):
        load_initial(method_of(), folder.root, (16, 16, 16))


def test_weights_are_of_the_first_start_alone(mae_file, tiny_recipe, caplog):
    caplog.set_level(logging.INFO, logger="viewalign")
    path, _ = mae_file("resenc-xxs")
    settings = [f"init={path}", "init.min_share=0.5"]
    folder = pretrain(tiny_recipe(*settings, "checkpoint.every=1", steps=2)).folder
    shutil.rmtree(checkpoints.path_of(folder.checkpoints, 2))
    path.unlink()  # moved away since: a resumed run does not need it
    for again in ([], ["init=elsewhere.pth"]):
        resumed = pretrain(tiny_recipe(*again, steps=2), resume="auto")
        assert resumed.finished
        assert folder.recipe().init.weights == str(path)
    assert caplog.text.count("Starting from") == 1
    state = checkpoints.load_newest(folder.checkpoints)
    assert "weights" not in state["recipe"]["init"]
    assert state["recipe"]["init"]["min_share"] == 0.5
    assert str(path.parent) not in repr({k: v for k, v in state.items() if k not in ("method", "optimizer")})


def test_a_run_that_died_early_starts_from_its_weights_again(mae_file, tiny_recipe, caplog):
    caplog.set_level(logging.INFO, logger="viewalign")
    path, _ = mae_file("resenc-xxs")
    folder = pretrain(tiny_recipe(f"init={path}", steps=1)).folder
    shutil.rmtree(folder.checkpoints)  # as if it had been killed before its first checkpoint
    pretrain(tiny_recipe(steps=1), resume="auto")
    assert caplog.text.count("Starting from checkpoint_final.pth") == 2
    assert folder.recipe().init.weights == str(path)
    moved = path.rename(path.with_name("moved.pth"))
    shutil.rmtree(folder.checkpoints)
    pretrain(tiny_recipe(f"init={moved}", steps=1), resume="auto")
    assert "Starting from moved.pth" in caplog.text


def test_settings():
    assert load("cva-resenc-xs").init.weights == ""
    recipe = load("cva-resenc-xs", ["init=mae.pth", "init.min_share=0.5", "init.token_order=hdw"])
    assert (recipe.init.weights, recipe.init.min_share, recipe.init.token_order) == ("mae.pth", 0.5, "hdw")
    assert load("cva-resenc-xs", ["init.token_order=dhw", "init=mae.pth"]).init.token_order == "dhw"
    assert load("cva-resenc-xs", ["init=mae.pth", "init=null"]).init.weights == ""
    for wrong in ("init.min_share=2", "init.token_order=xyz", "init=[1,2]"):
        with pytest.raises(UserError, match="init"):
            load("cva-resenc-xs", [wrong])
    with pytest.raises(UserError, match="'init'"):
        load("cva-resenc-xs", ["pretrained_weights=mae.pth"])


def test_a_recipe_file_may_name_weights_in_short(tmp_path):
    (tmp_path / "mine.yaml").write_text("network: resenc-xs\ninit: mae.pth\n")
    recipe = load(str(tmp_path / "mine.yaml"), ["init.min_share=0.3"])
    assert (recipe.init.weights, recipe.init.min_share) == ("mae.pth", 0.3)
