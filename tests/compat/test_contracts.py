"""Exports against the requirements of each client: files, names, token order, citations, and dropped weights."""

import shutil

import client_contracts as clients
import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from torch import nn

import viewalign
from viewalign.compat import ssl3d
from viewalign.errors import UserError
from viewalign.methods.registry import METHODS
from viewalign.networks.registry import PRIMUS, build_backbone, network_names
from viewalign.weights import adaptation_plan, checkpoints, client_forms
from viewalign.weights.encoder import load_encoder, read_facts
from viewalign.weights.names import family_of
from viewalign.weights.sources import read_weights

SIZE = (16, 16, 24)
LIVELY = ("q_proj", "k_proj", "pos_embed", "attn.norm", "gamma")


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A run whose weights are far from their initial values, so that order, scales and shifts of tokens matter."""
    folder = tmp_path_factory.mktemp("lively") / "run"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("export", "checkpoints"))
    state = checkpoints.load_newest(tiny_run / "checkpoints")
    generator = torch.Generator().manual_seed(4)
    for name, value in state["method"].items():
        if value.is_floating_point():
            scale = 0.2 if any(part in name for part in LIVELY) else 0.02
            value += torch.randn(value.shape, generator=generator) * scale
    checkpoints.save(folder / "checkpoints", state["step"], state)
    return folder


@pytest.fixture(scope="module")
def exported(run):
    return viewalign.export(run)


@pytest.fixture(scope="module")
def root(exported):
    return torch.load(exported.path / "checkpoint_final.pth", weights_only=True)


@pytest.fixture(scope="module")
def network(exported):
    return read_facts(exported.path)["network"]["name"]


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(5))


class ClientPrimus(nn.Module):
    """A Primus as a client builds it: with its order of tokens, and without the parts that it lacks."""

    def __init__(self, contract):
        super().__init__()
        spec = PRIMUS["primus-xxs"]
        sizes = {key: spec[key] for key in ("embed_dim", "patch_embed_size", "eva_depth", "eva_numheads")}
        whole = Primus(1, num_classes=1, input_shape=SIZE, init_values=0.1, scale_attn_inner=True, **sizes)
        self.eva, self.down_projection, self.order = whole.eva, whole.down_projection, contract.order
        for block in self.eva.blocks if contract.lacks else ():
            block.gamma_1 = block.gamma_2 = None
            block.attn.norm = nn.Identity()

    @torch.no_grad()
    def forward(self, images):
        # The first two sides are equal, so exchanging them is all that the order changes.
        maps = self.down_projection(images)
        maps = maps.transpose(2, 3) if self.order == "hdw" else maps
        tokens, _ = self.eva(maps.flatten(2).transpose(1, 2))
        maps = tokens.transpose(1, 2).unflatten(2, maps.shape[2:])
        return maps.transpose(2, 3) if self.order == "hdw" else maps


def received(file, contract):
    """Return a checkpoint and the weights that a client takes from it, after checking its requirements."""
    root = torch.load(file, weights_only=True)
    assert set(contract.root) <= set(root)
    for field in contract.plan:
        assert field in root["nnssl_adaptation_plan"]
    weights = root["network_weights"] if contract.root else root
    assert all(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in weights.values())
    for text in contract.strips:
        weights = {name.replace(text, ""): value for name, value in weights.items()}
    for wanted in contract.wants:
        assert any(name == wanted or (wanted[-1] == "." and name.startswith(wanted)) for name in weights), wanted
    return root, weights


def load_into(network, weights):
    """Load what a client has a place for; returns the names that it drops."""
    own = network.state_dict()
    network.load_state_dict({name: value for name, value in weights.items() if name in own}, strict=False)
    assert not [name for name in own if name not in weights]
    return [name for name in weights if name.startswith(("eva.", "down_projection.")) and name not in own]


@torch.no_grad()
def difference(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.slow
def test_the_hub_gets_every_file_that_nnunet_fetches(exported):
    names = {path.name for path in exported.path.iterdir()}
    assert set(clients.NNUNET.files) <= names


def test_nnunet_builds_the_network_of_every_plan():
    for name in network_names():
        plan = adaptation_plan.plan_of(name, 1, (32, 32, 32), "cva", {})["architecture_plans"]
        if plan["arch_kwargs"] is None:
            assert plan["arch_class_name"] in clients.NNUNET_CLASSES
        elif plan["arch_class_name"] not in clients.NNUNET_BY_ARGUMENTS["PretrainedTrainer"]:
            assert set(clients.NNUNET_BY_ARGUMENTS["PretrainedTrainer_Primusx"]) <= set(plan["arch_kwargs"])


def test_the_export_names_the_trainer_that_builds_its_network(exported, network):
    expected = "-tr PretrainedTrainer_Primusx" if network == "primus-xxs" else "-tr PretrainedTrainer"
    assert exported.text.endswith(expected)


@pytest.mark.parametrize("contract", [clients.NNUNET, clients.LATENTCAMPUS], ids=["nnunet", "latentcampus"])
def test_clients_in_raster_order_get_the_encoder_bit_for_bit(contract, run, exported, network, images):
    root, weights = received(exported.path / "checkpoint_final.pth", contract)
    if network == "primus-xxs":
        client = ClientPrimus(contract)
        assert load_into(client, weights) == []
        assert torch.allclose(client(images), load_encoder(run)(images).maps[0], atol=1e-5)
    plan = root["nnssl_adaptation_plan"]
    for key in contract.strict:
        assert any(name.startswith(plan[key] + ".") for name in weights)


@pytest.mark.parametrize("method", METHODS)
def test_citations_are_lists_of_lines_and_name_the_method(method):
    found = adaptation_plan.citations_of(f"viewalign_{method}")
    assert found == adaptation_plan.citations_of(f"viewalign_hdw_{method}")
    assert found[0]["name"] == METHODS[method].title
    for entry in found:
        assert isinstance(entry["apa_citations"], list)
        assert all(len(line) > 10 for line in entry["apa_citations"])
    assert METHODS[method].paper in found[0]["apa_citations"][0]


def test_weights_of_others_keep_their_citations(nnssl_file):
    path, _ = nnssl_file("resenc-xxs", citations=[{"type": "Dataset", "name": "OpenMind", "apa_citations": ["Wald"]}])
    assert read_weights(path).cited() == [{"type": "Dataset", "name": "OpenMind", "apa_citations": ["Wald"]}]
    path, _ = nnssl_file("resenc-xxs", citations=[])
    assert read_weights(path).cited() == []


def test_nnssl_gets_a_whole_primus_in_its_order(run, root, network, images):
    file = viewalign.export(run, format="nnssl").path / "checkpoint_final.pth"
    usual = root["network_weights"]
    if network == "resenc-xxs":
        weights = torch.load(file, weights_only=True)["network_weights"]
        assert all(torch.equal(weights[name], value) for name, value in usual.items())
        return
    _, weights = received(file, clients.NNSSL)
    client = ClientPrimus(clients.NNSSL)
    assert load_into(client, weights) == []
    encoder = load_encoder(run)
    assert difference(client(images), encoder(images).maps[0]) < 1e-5
    assert weights["mask_token"].shape == (1, 1, PRIMUS[network]["embed_dim"])
    load_into(client, usual)
    assert difference(client(images), encoder(images).maps[0]) > 1e-2
    back = read_weights(file)
    state = checkpoints.load_newest(run / "checkpoints")["method"]
    for name in ("eva.pos_embed", "eva.blocks.1.attn.q_proj.weight", "decoder.pos_embed", "decoder.norm.weight"):
        prefix = "net." if name.startswith("eva.") else ""
        assert torch.equal(back.state[name], state[f"student.backbone.{prefix}{name}"]), name


def test_classification_gets_a_primus_in_its_order_and_most_of_what_it_drops(run, root, network, images):
    if network == "resenc-xxs":
        assert ssl3d.dropped_by_classification(root) == ()
        return
    wanted = load_encoder(run)(images).maps[0]
    made = ssl3d.for_classification(root)
    client = ClientPrimus(clients.CLASSIFICATION)
    dropped = load_into(client, made["network_weights"])
    assert set(dropped) == set(ssl3d.dropped_by_classification(made)) == set(ssl3d.dropped_by_classification(root))
    assert len(dropped) == 4 * PRIMUS[network]["eva_depth"]
    assert all(name.endswith(clients.CLASSIFICATION.lacks) for name in dropped)
    left = difference(client(images), wanted)
    load_into(client, root["network_weights"])
    assert left < 0.3 * difference(client(images), wanted)
    whole = ClientPrimus(clients.NNSSL)  # with LayerScale and norm the file computes what the run does
    load_into(whole, made["network_weights"])
    assert difference(whole(images), wanted) < 1e-5
    assert made["trainer_name"] == "viewalign_hdw_cva"
    assert made["citations"] == root["citations"] == adaptation_plan.citations_of("viewalign_cva")


def test_fomo_takes_every_tensor_of_the_encoder(run, root, network):
    if network == "primus-xxs":
        with pytest.raises(UserError, match="FOMO baseline has no Primus"):
            viewalign.export(run, format="fomo")
        return
    file = viewalign.export(run, format="fomo").path
    assert file.name == clients.FOMO.files[0]
    _, weights = received(file, clients.FOMO)
    usual = root["network_weights"]
    encoder = {f"model.{name}": value for name, value in usual.items() if name.startswith("encoder.")}
    assert weights.keys() == encoder.keys()
    assert all(torch.equal(weights[name], value) for name, value in encoder.items())
    assert family_of(weights) == "resenc"
    name = "encoder.stem.convs.0.conv.weight"
    assert torch.equal(read_weights(file).state[name], usual[name])


def test_fomo_s_resenc_l_has_448_tensors_of_an_encoder():
    with torch.device("meta"):
        backbone = build_backbone("resenc-l", (32, 32, 64))
    assert len(client_forms.fomo_state(backbone)) == clients.FOMO_RESENC_L
