"""Exports load strictly in other programs, describe the pretraining, and contain no private data."""

import json
import re

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from safetensors.torch import load_file
from torch import nn

import viewalign
from viewalign.errors import UserError
from viewalign.weights.encoder import build_untrained, load_encoder, read_facts
from viewalign.weights.export import export_nnssl, export_run

pytestmark = pytest.mark.slow

SIZE = (16, 16, 24)


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    return export_run(tiny_run, tmp_path_factory.mktemp("out") / "export")


@pytest.fixture(scope="module")
def root(exported):
    return torch.load(exported / "checkpoint_final.pth", weights_only=True)


def fresh_network(plan):
    """Build the network from nothing but the adaptation plan, as nnU-Net does."""
    architecture = plan["architecture_plans"]
    arguments = dict(architecture["arch_kwargs"])
    if architecture["arch_class_name"] == "ResidualEncoderUNet":
        assert len(arguments) == 14
        for name in architecture["arch_kwargs_requiring_import"]:
            module, _, attribute = arguments[name].rpartition(".")
            arguments[name] = getattr(__import__(module, fromlist=[attribute]), attribute)
        assert arguments["conv_op"] is nn.Conv3d
        return ResidualEncoderUNet(input_channels=1, num_classes=1, deep_supervision=False, **arguments)
    assert architecture["arch_class_name"] == "Primus"
    arguments["eva_depth"] = arguments.pop("encoder_eva_depth")
    arguments["eva_numheads"] = arguments.pop("encoder_eva_numheads")
    return Primus(input_channels=1, num_classes=1, input_shape=SIZE, **arguments)


def test_encoder_and_stem_load_strictly_into_a_fresh_network(root):
    plan, weights = root["nnssl_adaptation_plan"], root["network_weights"]
    network = fresh_network(plan)
    for key in (plan["key_to_encoder"], plan["key_to_stem"]):
        part = {name.removeprefix(key + "."): value for name, value in weights.items() if name.startswith(key)}
        network.get_submodule(key).load_state_dict(part, strict=True)
    for key in plan["keys_to_in_proj"]:
        assert key + ".weight" in weights
    if plan["key_to_lpe"]:
        assert weights[plan["key_to_lpe"]].shape[1] == 4 * 4 * 6


def test_the_whole_network_loads_strictly_and_computes_the_same(root, tiny_run):
    network = fresh_network(root["nnssl_adaptation_plan"]).eval()
    network.load_state_dict(root["network_weights"], strict=True)
    images = torch.randn(1, 1, *SIZE)
    ours = load_encoder(tiny_run)(images).maps
    if isinstance(network, ResidualEncoderUNet):
        for a, b in zip(network.encoder(images), ours, strict=True):
            assert torch.equal(a, b)
    else:
        tokens, _ = network.eva(network.down_projection(images).flatten(2).transpose(1, 2))
        assert torch.allclose(tokens.transpose(1, 2).unflatten(2, (4, 4, 6)), ours[0], atol=1e-5)


def test_the_checkpoint_has_every_field_that_is_read_elsewhere(root):
    assert {"network_weights", "nnssl_adaptation_plan", "trainer_name"} <= set(root)
    plan = root["nnssl_adaptation_plan"]
    configuration = next(iter(plan["pretrain_plan"]["configurations"].values()))
    assert configuration["spacing"] == [1.0, 1.0, 1.0] or configuration["spacing"] is None
    assert configuration["patch_size"] == list(SIZE) == plan["pretrain_patch_size"]
    assert len(plan["pretrain_plan"]["configurations"]) == 1
    assert plan["pretrain_num_input_channels"] == 1
    assert "key_to_lpe" in plan
    assert all(value.device.type == "cpu" for value in root["network_weights"].values())


def test_nothing_of_data_or_machine_goes_out(exported, tiny_run):
    for file in exported.iterdir():
        content = file.read_bytes()
        for secret in (b"jane_doe", str(tiny_run.parent).encode()):
            assert secret not in content, f"{secret!r} in {file.name}"


def test_the_path_of_start_weights_stays_at_home(tiny_run, exported, tmp_path):
    from viewalign.recipes.loading import load
    from viewalign.training.run import pretrain

    changes = [f"init={exported}", f"out={tmp_path / 'next'}", "init.token_order=dhw"]
    outcome = pretrain(load(str(tiny_run / "config.yaml"), changes))
    for file in export_run(outcome.folder.root).iterdir():
        assert str(exported.parent).encode() not in file.read_bytes(), file.name


def test_an_export_and_its_run_give_the_same_features(exported, tiny_run):
    images = torch.randn(2, 1, *SIZE)
    a, b = load_encoder(exported)(images), viewalign.load_encoder(tiny_run)(images)
    assert torch.equal(a.pooled, b.pooled)
    assert [m.shape for m in a.maps] == [m.shape for m in b.maps]
    expected = torch.cat([m.mean((2, 3, 4)) for m in a.maps], 1)
    assert torch.allclose(a.pooled, expected, atol=1e-6)


def test_facts_and_card_describe_the_pretraining(exported):
    facts = read_facts(exported)
    assert facts["steps"] == 2
    assert facts["size"] == list(SIZE)
    assert facts["data"] == {"volumes": 6, "subjects": 6}
    assert "preparation" in facts
    tensors = load_file(exported / "encoder.safetensors")
    assert facts["encoder_parameters"] == sum(t.numel() for t in tensors.values())
    card = (exported / "README.md").read_text()
    assert "load_encoder" in card
    assert "2509.13846" in card


def test_teacher_weights_differ_from_the_student_s(tiny_run, tmp_path):
    images = torch.randn(1, 1, *SIZE)
    teacher = load_encoder(tiny_run, "teacher")
    out = load_encoder(export_run(tiny_run, tmp_path / "t", "teacher"))
    assert torch.equal(out(images).pooled, teacher(images).pooled)
    assert not torch.equal(out(images).pooled, load_encoder(tiny_run)(images).pooled)


def test_only_an_earlier_export_is_replaced(tiny_run, exported, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "brain.nii.gz").write_bytes(b"not to be lost")
    for export in (export_run, export_nnssl):
        with pytest.raises(UserError, match=r"contains brain\.nii\.gz and is no earlier export"):
            export(tiny_run, tmp_path / "scans")
        with pytest.raises(UserError, match="is a file"):
            export(tiny_run, tiny_run / "config.yaml")
    assert (tmp_path / "scans" / "brain.nii.gz").read_bytes() == b"not to be lost"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("a card that somebody wrote")
    with pytest.raises(UserError, match=r"contains README\.md and is no earlier export"):
        export_run(tiny_run, tmp_path / "mine")
    again = export_run(tiny_run, tmp_path / "twice"), export_run(tiny_run, tmp_path / "twice")
    assert sorted(one.name for one in again[1].iterdir()) == sorted(one.name for one in exported.iterdir())


def test_an_untrained_encoder_is_the_same_for_the_same_seed(tiny_run):
    from viewalign.weights.run_folder import RunFolder

    recipe = RunFolder(tiny_run).recipe()
    images = torch.randn(1, 1, *SIZE)
    a, b, c = (build_untrained(recipe, seed)(images).pooled for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_what_cannot_be_loaded_is_reported(tmp_path, exported):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        export_run(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in ("encoder.json", "encoder.safetensors"):
        (copy / file).write_bytes((exported / file).read_bytes())
    facts = json.loads((copy / "encoder.json").read_text())
    (copy / "encoder.json").write_text(json.dumps({**facts, "version": 99}))
    with pytest.raises(UserError, match="version 99"):
        load_encoder(copy)
    other = "primus-xs" if facts["network"]["name"] == "resenc-xs" else "resenc-xs"
    (copy / "encoder.json").write_text(json.dumps({**facts, "network": {**facts["network"], "name": other}}))
    with pytest.raises(UserError, match="missing"):
        load_encoder(copy)
    (copy / "encoder.json").write_text("{")
    with pytest.raises(UserError, match=r"encoder\.json"):
        load_encoder(copy)
