"""Whatever a method pretrains, its encoder goes into nnU-Net's own kind of network."""

import json
from dataclasses import replace

import pytest
import torch

import viewalign
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import plans
from viewalign.methods.registry import build_method
from viewalign.networks.registry import build_backbone
from viewalign.recipes.files import RECIPES
from viewalign.recipes.loading import load
from viewalign.weights import adaptation_plan
from viewalign.weights import names as weight_names
from viewalign.weights import sources as pretrained
from viewalign.weights.reading import read_source

pytestmark = pytest.mark.slow

SIZE = (32, 32, 32)
SMALL = [name for name in RECIPES.names() if name.endswith("-xs")]


@pytest.mark.parametrize("name", SMALL)
def test_every_method_s_encoder_is_found_among_its_weights(name):
    recipe = load(name, ["views.patch_size=[32,32,32]"])
    method = build_method(recipe)
    state = weight_names.own_branch(dict(method.state_dict()))
    plan = adaptation_plan.plan_of(
        recipe.network.name, 1, SIZE, recipe.method, {"spacing": [1, 1, 1], "normalise": "zscore"}
    )
    source = pretrained.make_source(state, "run", SIZE, f"viewalign_{recipe.method}", None, plan)
    network = plans.build_network(plans.architecture_of(plan, "run"), 1, 3, SIZE)
    fitted = viewalign.transfer_encoder(network, source, SIZE)
    assert fitted.encoder_share == 1.0
    own = dict(network.named_parameters())
    encoder = dict(method.encoder().named_parameters())
    compared = [key for key in own if key.startswith(weight_names.ENCODER[source.family])]
    assert len(compared) > 60
    for key in compared:
        assert torch.equal(own[key], encoder[f"net.{key}"]), key


def test_a_run_and_its_export_give_the_same_network_and_plan(tiny_run, tmp_path):
    export = viewalign.export_run(tiny_run, tmp_path / "export")
    sources = [read_source(path) for path in (tiny_run, export, export / "encoder.safetensors")]
    for source in sources:
        assert source.plan["pretrain_patch_size"] == [16, 16, 24]
        configuration = next(iter(source.plan["pretrain_plan"]["configurations"].values()))
        assert configuration["normalization_schemes"] == ["ZScoreNormalization"]
    architecture = plans.architecture_of(sources[0].plan, "run")
    networks = []
    for source in sources:
        torch.manual_seed(0)
        network = plans.build_network(architecture, 3, 2, (16, 24, 24))
        fitted = viewalign.transfer_encoder(network, source, (16, 24, 24), report=tmp_path / "report.json")
        networks.append(network.state_dict())
        assert json.loads((tmp_path / "report.json").read_text())["encoder_share"] == fitted.encoder_share == 1.0
    for name, value in networks[0].items():
        assert all(torch.equal(value, other[name]) for other in networks[1:]), name


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="There are no weights at"):
        read_source(tmp_path / "nothing")


def test_positions_of_a_primus_need_the_size_of_the_images():
    """Their number is the same for 16³ and 8×16×32 voxels."""
    state = {n.removeprefix("net."): p for n, p in build_backbone("primus-xxs", SIZE).named_parameters()}
    source = pretrained.make_source(state, "weights.pth", SIZE, "viewalign_mae")
    network = build_backbone("primus-xxs", (16, 32, 64))
    with pytest.raises(UserError, match=r"size=\(D, H, W\)"):
        viewalign.transfer_encoder(network, source)
    assert viewalign.transfer_encoder(network, source, (16, 32, 64)).encoder_share == 1.0
    unknown = replace(source, grid=None)
    larger = build_backbone("primus-xxs", (48, 48, 48))
    with pytest.raises(UserError, match=r"eva\.pos_embed.*min_share=0"):
        viewalign.transfer_encoder(larger, unknown, (48, 48, 48), min_share=0.1)
    assert viewalign.transfer_encoder(larger, unknown, (48, 48, 48), min_share=0).encoder_share < 1.0


def test_the_report_may_be_named_by_a_text(tiny_run, tmp_path):
    plan = read_source(tiny_run).plan
    network = plans.build_network(plans.architecture_of(plan, "run"), 1, 2, (16, 16, 24))
    viewalign.transfer_encoder(network, tiny_run, (16, 16, 24), report=str(tmp_path / "report.json"))
    assert (tmp_path / "report.json").is_file()
