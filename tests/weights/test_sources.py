"""Reading weights of other programs: names, aliases, wrappers, heads, and what is rejected."""

import os
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from viewalign.errors import UserError
from viewalign.networks import heads
from viewalign.networks.registry import network_names
from viewalign.weights.names import clean, family_of, own_branch
from viewalign.weights.nnssl_runs import resolve_checkpoint
from viewalign.weights.sources import read_weights

pytestmark = pytest.mark.slow


def assert_holds(source, backbone, beside=()):
    """Assert that a source has every parameter of a backbone, but for those whose names begin with one of `beside`."""
    for name, value in own_branch({f"backbone.{n}": p for n, p in backbone.named_parameters()}).items():
        if not name.startswith(tuple(beside)):
            assert torch.equal(source.state[name], value), name


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_resenc_checkpoint_is_read_once_under_each_name(prefix, nnssl_file):
    path, backbone = nnssl_file("resenc-xs", prefix=prefix)
    listed = torch.load(path, weights_only=True)["network_weights"]
    assert prefix + "decoder.encoder.stem.convs.0.all_modules.0.weight" in listed
    source = read_weights(path)
    assert (source.family, source.size, source.trainer_name) == ("resenc", (16, 16, 16), "BaseMAETrainer_BS8")
    assert source.file == "checkpoint_final.pth"
    assert_holds(source, backbone)
    assert len(source.state) == len(dict(backbone.named_parameters()))


@pytest.mark.parametrize("only", ["all_modules", "decoder.encoder."])
def test_aliases_alone_are_enough(only, nnssl_file):
    path, backbone = nnssl_file("resenc-xs")
    weights = torch.load(path, weights_only=True)["network_weights"]
    if only == "all_modules":
        kept = {n: v for n, v in weights.items() if only in n or (".convs." not in n and ".conv" not in n)}
    else:
        kept = {n: v for n, v in weights.items() if not n.startswith("encoder.")}
    kept = {n: v for n, v in kept.items() if ".norm." not in n or only != "all_modules"}
    cleaned = clean(kept)
    for name, value in backbone.net.encoder.named_parameters():
        assert torch.equal(cleaned[f"encoder.{name}"], value), name


def test_a_primus_checkpoint(nnssl_file):
    path, backbone = nnssl_file("primus-xs", size=(16, 16, 24), trainer="AlignedMAEFTLR3EvaTrainer")
    source = read_weights(path)
    assert (source.family, source.size, source.grid, source.notes) == ("primus", (16, 16, 24), (4, 4, 6), ())
    assert_holds(source, backbone, beside=["feature_decoder.", "attention_pool."])
    assert source.state["filler"].shape == (192,)
    assert "mask_token" not in source.state


def test_a_primus_inside_an_encoder_prefix(nnssl_file):
    path, backbone = nnssl_file("primus-xs", trainer="SimMIMEvaTrainer")
    weights = torch.load(path, weights_only=True)["network_weights"]
    cleaned = clean({f"module.encoder.{name}": value for name, value in weights.items() if name.startswith("eva.")})
    assert torch.equal(cleaned["eva.pos_embed"], backbone.net.eva.pos_embed)


def test_the_token_grid_without_a_plan(nnssl_file):
    path, _ = nnssl_file("primus-xs", trainer="viewalign_cva", nnssl_adaptation_plan=None)
    source = read_weights(path)
    assert (source.size, source.grid) == (None, (4, 4, 4))
    assert "64 tokens are taken for a cube" in source.notes[0]
    path, _ = nnssl_file("primus-xs", (16, 16, 24), trainer="viewalign_cva", nnssl_adaptation_plan=None)
    assert read_weights(path).grid is None
    assert "cannot be resized" in read_weights(path).notes[0]
    with pytest.raises(UserError, match="token"):
        read_weights(path, "hdw")


def test_the_plan_beside_a_bare_checkpoint(nnssl_file, tmp_path):
    path, _ = nnssl_file("primus-xs", (16, 16, 24), trainer_name=None, nnssl_adaptation_plan=None)
    plan = '{"trainer_name": "SimMIMEvaTrainer", "pretrain_patch_size": [16, 16, 24], "pretrain_plan": null}'
    (tmp_path / "adaptation_plan.json").write_text(plan)
    assert read_weights(path).grid == (4, 4, 6)


class Latent(nn.Sequential):
    """A head as published: linear layers, BatchNorm between them, SiLU."""

    def __init__(self, widths, affine, last):
        layers = []
        for before, after in pairwise(widths):
            norm = nn.BatchNorm1d(after, affine=affine, track_running_stats=affine)
            layers += [nn.Linear(before, after), norm, nn.SiLU()]
        super().__init__(*(layers[:-1] if last else layers[:-2]))


@pytest.mark.parametrize("affine", [False, True])
@torch.no_grad()
def test_latentcampus_heads_do_the_same_here(affine, nnssl_file):
    torch.manual_seed(0)
    theirs = nn.ModuleDict(
        {"projector": Latent((12, 8, 8, 8), affine, True), "predictor": Latent((8, 4, 8), affine, 0)}
    )
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    path, _ = nnssl_file("resenc-xs", trainer="AlignedMAEFTTrainer")
    root = torch.load(path, weights_only=True)
    root["network_weights"].update(theirs.state_dict())
    torch.save(root, path)
    state = read_weights(path).state
    ours = nn.ModuleDict({"projector": heads.projector(12, 8, "batch"), "predictor": heads.predictor(8, 4, "batch")})
    fitting = {name: value for name, value in state.items() if name in dict(ours.named_parameters())}
    assert len([name for name in fitting if ".layers." in name]) == 10
    assert len([name for name in fitting if ".norms." in name]) == (6 if affine else 0)
    ours.load_state_dict(fitting, strict=False)
    rows, ones = torch.randn(32, 12), torch.ones(32)
    if affine:
        theirs["projector"][-1] = nn.BatchNorm1d(8, affine=False)  # the last norm has no scale here; it is left
        assert "projector.norms.2.weight" in state
    expected = theirs["predictor"](theirs["projector"](rows))
    got = ours["predictor"](ours["projector"](rows, ones), ones)
    assert torch.allclose(got, expected, atol=1e-5)


class Planted:
    """What an attacker puts into a checkpoint: reading it with pickle makes a file."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.mkdir, (str(self.trap),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_needs_pickle_is_rejected_unread(legacy, nnssl_file, tmp_path):
    path, _ = nnssl_file("resenc-xs")
    root = torch.load(path, weights_only=True)
    root["init_args"] = Planted(tmp_path / "trap")
    torch.save(root, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="pickled"):
        read_weights(path)
    assert not (tmp_path / "trap").exists()


def test_damaged_and_strange_files(nnssl_file, tmp_path):
    path, _ = nnssl_file("resenc-xs")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        read_weights(path)
    for content in (b"", b"not a checkpoint at all"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            read_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="a list"):
        read_weights(path)
    torch.save({"model": 3, "epoch": 4}, path)
    with pytest.raises(UserError, match=r"network_weights.*model, epoch"):
        read_weights(path)
    torch.save({"network_weights": {"backbone.layer1.weight": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"backbone\.layer1"):
        read_weights(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no weights"):
        read_weights(tmp_path / "empty")
    with pytest.raises(UserError, match="There are no weights at"):
        read_weights(tmp_path / "nowhere.pth")
    (tmp_path / "x.safetensors").write_bytes(b"12")
    with pytest.raises(UserError, match="damaged"):
        read_weights(tmp_path / "x.safetensors")


def test_numbers_that_are_not_finite(nnssl_file):
    path, _ = nnssl_file("resenc-xs")
    root = torch.load(path, weights_only=True)
    root["network_weights"]["encoder.stem.convs.0.conv.weight"][0] = torch.nan
    torch.save(root, path)
    with pytest.raises(UserError, match=r"encoder\.stem\.convs\.0\.conv\.weight"):
        read_weights(path)


def test_what_is_no_linear_layer_or_norm_of_a_head_keeps_its_name():
    named = {
        "0.weight": ("layers.0.weight", (8, 12)),
        "1.weight": ("norms.0.weight", (8,)),
        "1.running_mean": ("1.running_mean", (8,)),
        "2.weight": ("2.weight", (8, 8, 1, 1)),
        "3.weight": ("layers.1.weight", (4, 8)),
        "4.running_mean": ("4.running_mean", (4,)),
    }
    cleaned = clean({f"projector.{name}": torch.randn(size) for name, (_, size) in named.items()})
    assert cleaned.keys() == {f"projector.{new}" for new, _ in named.values()}
    assert clean(cleaned).keys() == cleaned.keys()


@pytest.mark.parametrize("patch", [[1, "x", 3], [float("inf"), 2, 3], [1, 2, float("nan")], [1, 2], "123", 5, {"a": 1}])
def test_an_odd_patch_size_in_a_plan_is_none(nnssl_file, patch):
    path, _ = nnssl_file("resenc-xs")
    root = torch.load(path, weights_only=True)
    root["nnssl_adaptation_plan"]["pretrain_patch_size"] = patch
    torch.save(root, path)
    assert read_weights(path).size is None


def test_an_export_s_checksum_is_looked_at(nnssl_file, tmp_path):
    _, backbone = nnssl_file("resenc-xs")
    save_file(
        {f"encoder.{n}": p.detach() for n, p in backbone.net.encoder.named_parameters()},
        tmp_path / "encoder.safetensors",
    )
    assert read_weights(tmp_path / "encoder.safetensors").family == "resenc"
    (tmp_path / "encoder.json").write_text('{"sha256": "0", "size": [16, 16, 16]}')
    with pytest.raises(UserError, match="checksum"):
        read_weights(tmp_path / "encoder.safetensors")


def asked(tmp_path):
    return tmp_path / "MAETrainer" / "fold_all" / "checkpoint_final.pth"


def place(path, tmp_path, run):
    target = tmp_path / run / "fold_all" / "checkpoint_final.pth"
    target.parent.mkdir(parents=True)
    path.rename(target)
    return target


def test_a_published_path_means_the_run_of_that_trainer_and_network(nnssl_file, tmp_path):
    resenc = place(nnssl_file("resenc-xs")[0], tmp_path, "MAETrainer__nnsslPlans__onemmiso")
    primus = place(nnssl_file("primus-xs")[0], tmp_path, "MAEEvaTrainer__nnsslPlans__onemmiso")
    place(nnssl_file("resenc-xs")[0], tmp_path, "OtherTrainer__nnsslPlans__onemmiso")
    path, note = resolve_checkpoint(asked(tmp_path), "resenc-l")
    assert (path, note) == (resenc, "There is no MAETrainer; MAETrainer__nnsslPlans__onemmiso is used.")
    assert resolve_checkpoint(asked(tmp_path), "primus-m")[0] == primus
    assert resolve_checkpoint(primus, "resenc-l") == (primus, "")


def test_a_published_path_that_may_mean_several_runs_or_none(nnssl_file, tmp_path):
    assert resolve_checkpoint(asked(tmp_path), "resenc-l") == (asked(tmp_path), "")
    place(nnssl_file("resenc-xs")[0], tmp_path, "MAETrainer__nnsslPlans__onemmiso")
    with pytest.raises(UserError, match="Primus"):
        resolve_checkpoint(asked(tmp_path), "primus-m")
    place(nnssl_file("resenc-xs")[0], tmp_path, "MAETrainer__nnsslPlans__noresample")
    with pytest.raises(UserError, match="MAETrainer__nnsslPlans__onemmiso"):
        resolve_checkpoint(asked(tmp_path), "resenc-l")


def test_the_requested_run_wins_over_any_other(nnssl_file, tmp_path):
    plain = place(nnssl_file("resenc-xs")[0], tmp_path, "MAETrainer")
    place(nnssl_file("resenc-xs")[0], tmp_path, "MAETrainer__nnsslPlans__onemmiso")
    assert resolve_checkpoint(asked(tmp_path), "resenc-l") == (plain, "")


@pytest.mark.parametrize("network", network_names())
def test_a_network_s_name_begins_with_its_family(network):
    names = {"resenc": ["encoder.stages.0"], "primus": ["eva.norm"]}
    assert family_of(names[network.split("-")[0]]) == network.split("-")[0]
