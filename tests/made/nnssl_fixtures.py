import pytest
import torch

from viewalign.networks.registry import build_backbone
from viewalign.weights import adaptation_plan


@pytest.fixture
def nnssl_file(tmp_path):
    """Write a checkpoint as nnssl's masked autoencoders do; returns its path and the network whose weights it has."""

    def write(network, size=(16, 16, 16), trainer="BaseMAETrainer_BS8", prefix="", file="checkpoint_final.pth", **root):
        torch.manual_seed(1)
        backbone = build_backbone(network, size)
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        state = {name.removeprefix("net."): value for name, value in backbone.state_dict().items()}
        if network.startswith("primus"):
            state["mask_token"] = state.pop("filler")[None, None]
            state = {k: v for k, v in state.items() if not k.startswith(("feature_decoder.", "attention_pool."))}
        plan = adaptation_plan.adaptation_plan(network, 1, size, (1.0, 1.0, 1.0), False, trainer)
        whole = adaptation_plan.checkpoint({prefix + name: value for name, value in state.items()}, plan, 1000)
        torch.save({**whole, **root}, tmp_path / file)
        return tmp_path / file, backbone

    return write
