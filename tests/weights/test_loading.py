"""Encoder weights in networks that differ: what computes the same, what is adapted, and what is rejected."""

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from second_device import DEVICE, second_device
from torch import nn
from torch.nn import functional as F

from viewalign.errors import UserError
from viewalign.networks.primus import build_primus
from viewalign.networks.registry import build_backbone
from viewalign.networks.resenc import ResidualEncoderUNet, build_unet, unet_arguments
from viewalign.weights.loading import find_encoder, load_encoder_weights
from viewalign.weights.matching import adapt_kernels, adapt_kernels_and_channels, match_weights
from viewalign.weights.sources import make_source, read_weights


def kernel_rule(weight, sides, rule=None, channels=None):
    target = torch.zeros(weight.shape[0], channels or weight.shape[1], *sides)
    return match_weights({"stem": target}, {"stem": weight}, [rule or adapt_kernels()])


def unet(**changes):
    """A resenc-xs with other keyword arguments of dynamic-network-architectures."""
    channels = changes.pop("input_channels", 1)
    arguments = unet_arguments("resenc-xs") | {
        "conv_op": nn.Conv3d,
        "norm_op": nn.InstanceNorm3d,
        "nonlin": nn.LeakyReLU,
    }
    return ResidualEncoderUNet(input_channels=channels, num_classes=3, deep_supervision=False, **(arguments | changes))


def whats(fitted):
    return {row.name: row.what for row in fitted.report.rows}


@pytest.mark.parametrize("sides", [(5, 5, 5), (3, 5, 3), (7, 3, 5)])
def test_a_larger_kernel_answers_as_before(sides):
    weight, image = torch.randn(4, 2, 3, 3, 3), torch.randn(1, 2, 9, 9, 9)
    bent = kernel_rule(weight, sides).state["stem"]
    was, now = F.conv3d(image, weight, padding=1), F.conv3d(image, bent, padding=[side // 2 for side in sides])
    assert torch.allclose(was, now, atol=1e-5)


@pytest.mark.parametrize(("sides", "alike"), [((1, 3, 3), (0,)), ((3, 1, 1), (1, 2)), ((1, 1, 1), (0, 1, 2))])
def test_a_smaller_kernel_answers_as_before_where_the_image_is_alike(sides, alike):
    weight, image = torch.randn(4, 2, 3, 3, 3), torch.randn(1, 2, 9, 9, 9)
    for axis in alike:
        image = image.mean(axis + 2, keepdim=True).expand_as(image)
    matched = kernel_rule(weight, sides)
    was = F.conv3d(image, weight)
    now = F.conv3d(image, matched.state["stem"], padding=[side // 2 for side in sides])[:, :, 1:-1, 1:-1, 1:-1]
    assert torch.allclose(was, now, atol=1e-4)
    assert matched.report.rows[0].note == f"kernel 3×3×3 made {'×'.join(map(str, sides))}"


def test_a_folded_kernel_keeps_its_middle():
    weight = torch.arange(5.0).reshape(1, 1, 5, 1, 1)
    assert kernel_rule(weight, (3, 1, 1)).state["stem"].flatten().tolist() == [0 + 1, 2, 3 + 4]


@pytest.mark.parametrize("sides", [(2, 2, 2), (4, 3, 3)])
def test_even_kernels_have_no_middle(sides):
    assert not kernel_rule(torch.randn(4, 2, 3, 3, 3), sides).state


def test_channels_and_kernel_together():
    weight, image = torch.randn(4, 1, 3, 3, 3), torch.randn(1, 1, 9, 9, 9)
    matched = kernel_rule(weight, (5, 3, 3), adapt_kernels_and_channels({"stem"}), channels=3)
    now = F.conv3d(image.expand(-1, 3, -1, -1, -1), matched.state["stem"], padding=(2, 1, 1))
    assert torch.allclose(F.conv3d(image, weight, padding=1), now, atol=1e-5)
    assert "1 input channel made 3" in matched.report.rows[0].note
    assert "kernel" in matched.report.rows[0].note


@pytest.mark.parametrize("channels", [1, 3])
def test_a_fresh_unet_computes_the_pretrained_features(nnssl_file, channels):
    path, backbone = nnssl_file("resenc-xs")
    network = unet(input_channels=channels)
    decoder = {n: v.clone() for n, v in network.decoder.named_parameters() if "encoder." not in n}
    fitted = load_encoder_weights(network, read_weights(path))
    image = torch.randn(1, 1, 16, 16, 16)
    expected = backbone.net.encoder(image)
    for ours, theirs in zip(network.encoder(image.expand(-1, channels, -1, -1, -1)), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert fitted.encoder_share == 1.0
    assert fitted.report.counts()["adapted"] == (channels != 1)
    for name, value in network.decoder.named_parameters():
        if name in decoder:
            assert torch.equal(value, decoder[name]), f"{name} is no part of the encoder"


def test_fewer_channels_than_in_pretraining():
    torch.manual_seed(0)
    given = build_unet("resenc-xs", 4, 1)
    network = unet(input_channels=1)
    load_encoder_weights(network, make_source(given.state_dict(), "four.pth"))
    image = torch.randn(1, 1, 16, 16, 16)
    same = given.encoder(image.expand(-1, 4, -1, -1, -1))[0]
    assert torch.allclose(network.encoder(image)[0], same, atol=1e-4)


def test_a_primus_of_the_same_size_computes_the_same_and_of_another_is_resized(nnssl_file):
    path, backbone = nnssl_file("primus-xs", size=(16, 16, 24), trainer="viewalign_mae")
    source = read_weights(path)
    image = torch.randn(1, 1, 16, 16, 24)
    same = build_primus("primus-xs", 1, 3, (16, 16, 24))
    load_encoder_weights(same, source, (16, 16, 24))
    tokens, _ = same.eva(same.down_projection(image).flatten(2).transpose(1, 2))
    assert torch.allclose(tokens, backbone.encode(image).tokens, atol=1e-5)
    other = build_primus("primus-xs", 2, 3, (24, 16, 32))
    fitted = load_encoder_weights(other, source, (24, 16, 32))
    adapted = [name for name, what in whats(fitted).items() if what == "adapted"]
    assert sorted(adapted) == ["down_projection.proj.weight", "eva.pos_embed"]
    assert fitted.encoder_share == 1.0
    grid = source.state["eva.pos_embed"].transpose(1, 2).unflatten(2, (4, 4, 6))
    expected = F.interpolate(grid, size=(6, 4, 8), mode="trilinear").flatten(2).transpose(1, 2)
    assert torch.allclose(other.eva.pos_embed, expected, atol=1e-6)


def test_a_primus_without_its_size_is_not_filled(nnssl_file):
    """Its positions would stay random, or be another grid's; they are a small share of the weights."""
    path, _ = nnssl_file("primus-xs", trainer="viewalign_mae")
    for shape in ((24, 16, 32), (8, 16, 32), (16, 16, 16)):
        with pytest.raises(UserError, match=r"size=\(D, H, W\)"):
            load_encoder_weights(build_primus("primus-xs", 1, 3, shape), read_weights(path))


def test_other_depths_match_by_name_and_the_share_is_reported(nnssl_file):
    path, _ = nnssl_file("resenc-xs")
    source = read_weights(path)
    arguments = unet_arguments("resenc-xs")
    deeper = {
        "n_stages": 5,
        "features_per_stage": [16, 32, 64, 128, 128],
        "kernel_sizes": [[1, 3, 3]] + [[3, 3, 3]] * 4,
        "strides": [1, [1, 2, 2], 2, 2, 2],
        "n_blocks_per_stage": [1, 2, 2, 2, 2],
        "n_conv_per_stage_decoder": [1] * 4,
    }
    with pytest.raises(UserError, match=r"\d\d\.\d%.*min_share=0\.9"):
        load_encoder_weights(unet(**deeper), source)
    fitted = load_encoder_weights(unet(**deeper), source, min_share=0.5)
    what = whats(fitted)
    assert {name.split(".")[2] for name, w in what.items() if w == "fresh"} == {"4"}
    assert what["encoder.stem.convs.0.conv.weight"] == "adapted"
    assert what["encoder.stages.3.blocks.1.conv2.conv.weight"] == "loaded"
    shallower = {key: value[:3] for key, value in arguments.items() if isinstance(value, list)}
    shallower |= {"n_stages": 3, "n_conv_per_stage_decoder": [1, 1]}
    fitted = load_encoder_weights(unet(**shallower), source)
    assert fitted.encoder_share == 1.0
    left = [row for row in fitted.report.rows if row.what == "left"]
    assert left
    assert not any(row.wanted for row in left)


def test_a_rejected_transfer_changes_nothing(nnssl_file):
    path, _ = nnssl_file("resenc-xs")
    wide = unet(features_per_stage=[16, 32, 64, 256])
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(UserError, match="min_share"):
        load_encoder_weights(wide, read_weights(path))
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())


def test_a_random_first_convolution_is_rejected_however_much_else_fits(nnssl_file):
    path, _ = nnssl_file("resenc-xs")
    root = torch.load(path, weights_only=True)
    kept = {n: v for n, v in root["network_weights"].items() if "stem.convs.0" not in n}
    source = make_source(kept, "no-stem.pth")
    with pytest.raises(UserError, match=r"encoder\.stem\.convs\.0\.conv\.weight"):
        load_encoder_weights(unet(), source, min_share=0.5)


@pytest.mark.parametrize(("given", "target"), [("resenc-xs", "primus-xs"), ("primus-xs", "resenc-xs")])
def test_the_other_kind_of_network_is_rejected(given, target, nnssl_file):
    source = read_weights(nnssl_file(given, trainer="viewalign_mae")[0])
    network = build_backbone(target, (16, 16, 16)).net
    with pytest.raises(UserError, match=r"ResEnc.*Primus|Primus.*ResEnc"):
        load_encoder_weights(network, source, (16, 16, 16))


class Classifier(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.backbone = build_backbone(name, (16, 16, 16))
        self.head = nn.Linear(4, 2)


@pytest.mark.parametrize("name", ["resenc-xs", "primus-xs"])
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: nn.Sequential(net, nn.Identity())])
def test_an_encoder_is_found_wherever_it_lies(name, wrap, nnssl_file):
    path, backbone = nnssl_file(name, trainer="viewalign_mae")
    network = Classifier(name)
    head = network.head.weight.clone()
    fitted = load_encoder_weights(wrap(network), read_weights(path), (16, 16, 16))
    assert fitted.encoder_share == 1.0
    assert torch.equal(network.head.weight, head)
    encoder = "encoder." if name == "resenc-xs" else "eva."
    for key, value in backbone.net.named_parameters():
        if key.startswith(encoder):
            assert torch.equal(dict(network.backbone.net.named_parameters())[key], value), key


def test_none_and_two_encoders(nnssl_file):
    source = read_weights(nnssl_file("resenc-xs")[0])
    with pytest.raises(UserError, match="no encoder"):
        load_encoder_weights(nn.Linear(2, 2), source)
    two = nn.ModuleList([unet(), unet()])
    with pytest.raises(UserError, match="2 encoders"):
        load_encoder_weights(two, source)
    assert load_encoder_weights(two, source, prefix="1.").encoder_share == 1.0
    assert find_encoder(list(dict(unet().named_parameters()))).prefix == ""


def test_the_report_is_plain_values_without_paths(nnssl_file):
    import json

    path, _ = nnssl_file("resenc-xs")
    fitted = load_encoder_weights(unet(input_channels=3), read_weights(path))
    written = json.dumps(fitted.as_json())
    assert str(path.parent) not in written
    assert json.loads(written)["counts"]["adapted"] == 1
    assert "100.0% of the encoder is covered" in fitted.text()
    assert isinstance(build_primus("primus-xs", 1, 1, (16, 16, 16)), Primus)


@pytest.mark.parametrize(("network", "size"), [("resenc-xs", None), ("primus-xs", (24, 16, 16))])
def test_weights_read_on_the_cpu_fill_a_network_on_another_device(network, size, nnssl_file):
    """As nnU-Net's trainer has it: its network is on the GPU before the encoder is loaded."""
    source = read_weights(nnssl_file(network)[0], order="dhw")
    here = build_backbone(network, size or (16, 16, 16))
    with second_device():
        there = build_backbone(network, size or (16, 16, 16)).to(DEVICE)
        fitted = load_encoder_weights(there, source, size)
    assert load_encoder_weights(here, source, size).report == fitted.report
    for name in fitted.state:
        held = there.get_parameter(find_encoder(list(dict(there.named_parameters()))).prefix + name)
        assert held.device == DEVICE
        assert torch.equal(held.cpu(), fitted.state[name])
