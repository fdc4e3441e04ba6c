"""What must not be lowered is not, on whichever device its tensors lie and however they are handed over."""

from unittest import mock

import pytest
import torch
from second_device import DEVICE, second_device

from viewalign.networks.registry import build_backbone
from viewalign.utils.precision import full_precision


@full_precision
def product(_, left, right):
    return left[0] @ right


def test_autocast_is_off_for_tensors_in_lists():
    rows = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (rows @ rows).dtype == torch.bfloat16
        assert product("name", [rows], right=rows).dtype == torch.float32


@pytest.mark.parametrize("network", ["resenc-xs", "primus-xs"])
def test_pooling_is_off_autocast_on_the_device_of_its_maps(network):
    """Its maps come in a list; the device was taken for the CPU, so that a GPU pooled in bfloat16."""
    told = []
    plain = torch.autocast

    class Told(plain):
        def __init__(self, kind, *given, **settings):
            told.append((kind, settings.get("enabled")))
            super().__init__("cpu", *given, **settings)

    backbone = build_backbone(network, (16, 16, 16))
    with second_device():
        backbone = backbone.to(DEVICE)
        maps = [torch.randn(1, n, 4, 4, 4).to(DEVICE) for n in backbone.stage_channels]
        valid = torch.ones(1, 1, 16, 16, 16).to(DEVICE)
        with mock.patch.object(torch, "autocast", Told):
            backbone.pool(maps, valid)
    assert (DEVICE.type, False) in told
