"""An encoder ready for use: from a run, from an export, or untrained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import build_backbone
from viewalign.utils.shapes import Size
from viewalign.weights import checkpoints, remote
from viewalign.weights.files import load_safetensors
from viewalign.weights.run_folder import RunFolder

Weights = Literal["student", "teacher"]

FORMAT = "viewalign-encoder"
VERSION = 1
WEIGHTS_FILE, FACTS_FILE = "encoder.safetensors", "encoder.json"


@dataclass(frozen=True)
class EncoderOutput:
    """What an encoder gives for images (N, C, D, H, W).

    Attributes:
        maps: feature maps (N, C, d, h, w), finest first: every stage of a ResEnc, the one token grid of a Primus. A
            cell f of a grid of d cells over D voxels lies at voxel (f + 1/2)·D/d - 1/2.
        pooled: (N, ΣC) one vector an image: the mean of each map, concatenated.
    """

    maps: list[Tensor]
    pooled: Tensor


class Encoder(nn.Module):
    """A backbone without decoders and heads.

    Attributes:
        size: (D, H, W) of the views of pretraining. A Primus takes this size alone, a ResEnc any multiple of `stride`.
        stride: what sides must be a multiple of.
        facts: how it came to be; see `read_facts`.
    """

    def __init__(self, backbone: Backbone, size: Size, facts: dict[str, Any]) -> None:
        super().__init__()
        backbone.drop_decoder()
        self.backbone, self.size, self.stride, self.facts = backbone, size, backbone.stride, facts

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map."""
        return self.backbone.stage_channels

    def forward(self, images: Tensor) -> EncoderOutput:
        """Encode images (N, C, D, H, W), prepared as in pretraining."""
        maps = self.backbone.maps(self.backbone.encode(images))
        return EncoderOutput(maps, torch.cat([one.float().mean((2, 3, 4)) for one in maps], dim=1))


def encoder_keys(backbone: Backbone) -> list[str]:
    """Return the names, without aliases, of the weights that an encoder needs."""
    prefixes = ("net.encoder.", "net.eva.", "net.down_projection.")
    return [name for name, _ in backbone.named_parameters() if name.startswith(prefixes)]


def load_encoder(path: str | Path, weights: Weights = "student") -> Encoder:
    """Load a pretrained encoder.

    Args:
        path: a run's folder (its newest checkpoint is read), the folder of an export, or `hf:OWNER/NAME` of one.
        weights: of a run, whether the student's or the averaged teacher's; an export has settled that.

    Returns:
        The encoder in evaluation mode on the CPU; call it on (N, C, D, H, W) and see `EncoderOutput`.

    Raises:
        UserError: nothing to load there, or weights that do not fit the network they name.
    """
    folder = remote.resolve_hub_name(path)
    if (folder / FACTS_FILE).is_file():
        return _from_export(folder)
    if (folder / "config.yaml").is_file():
        return from_run(folder, weights)
    if (folder / "export" / FACTS_FILE).is_file():
        return _from_export(folder / "export")
    raise UserError(f"{folder} is neither a run (config.yaml) nor an export ({FACTS_FILE}).")


def build_untrained(recipe: Recipe, seed: int = 0) -> Encoder:
    """Build the same encoder with fresh weights: the baseline that pretraining has to beat."""
    torch.manual_seed(seed)
    return Encoder(_backbone(recipe), recipe.views.patch_size, {"untrained": True}).eval()


def _backbone(recipe: Recipe) -> Backbone:
    network = recipe.network
    return build_backbone(network.name, recipe.views.patch_size, network.channels, recipe.masking.block)


def run_state(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return a run's recipe and the state of its newest readable checkpoint.

    Raises:
        UserError: no run, or no checkpoint yet.
    """
    run = RunFolder(folder)
    recipe = run.recipe()
    state, complaints = checkpoints.load_newest(run.checkpoints)
    if state is None:
        told = " ".join(complaints) or "It has not come to its first checkpoint."
        raise UserError(f"The run {folder} has no checkpoint to read. {told}")
    return recipe, state


def branch_state(state: dict[str, Any], weights: Weights) -> dict[str, Tensor]:
    """Cut one network's backbone out of a run's state.

    Raises:
        UserError: the run's method has no such network.
    """
    prefix = f"{weights}.backbone."
    if weights == "student" and not any(name.startswith(prefix) for name in state["method"]):
        prefix = "backbone."  # a method without a teacher has one network
    cut = {name.removeprefix(prefix): value for name, value in state["method"].items() if name.startswith(prefix)}
    if not cut:
        raise UserError(f"This run has no {weights} weights.")
    return cut


def from_run(folder: Path, weights: Weights = "student") -> Encoder:
    """Load the encoder of a run's newest checkpoint."""
    recipe, state = run_state(folder)
    backbone = _backbone(recipe)
    _fill(backbone, branch_state(state, weights), str(folder))
    return Encoder(backbone, recipe.views.patch_size, {"steps": state["step"], "weights": weights}).eval()


def _from_export(folder: Path) -> Encoder:
    facts = read_facts(folder)
    network, size = facts["network"], facts["size"]
    backbone = build_backbone(network["name"], (size[0], size[1], size[2]), network["channels"])
    tensors, _ = load_safetensors(folder / WEIGHTS_FILE, FACTS_FILE)
    _fill(backbone, {f"net.{name}": value for name, value in tensors.items()}, str(folder))
    return Encoder(backbone, (size[0], size[1], size[2]), facts).eval()


def read_facts(folder: Path) -> dict[str, Any]:
    """Read the JSON beside exported weights.

    Raises:
        UserError: it is not of this package, or of a newer version.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text())
    except (OSError, ValueError) as problem:
        raise UserError(f"{folder / FACTS_FILE} cannot be read: {problem}.") from None
    if facts.get("format") != FORMAT or facts.get("version", 0) > VERSION:
        raise UserError(
            f"{folder / FACTS_FILE} is of format {facts.get('format')!r} version {facts.get('version')}; "
            f"this viewalign reads {FORMAT!r} up to version {VERSION}."
        )
    return facts


def _fill(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    """Load every encoder weight; aliases of it need not be there."""
    needed = encoder_keys(backbone)
    missing = [name for name in needed if name not in state]
    own = dict(backbone.named_parameters())
    odd = [name for name in needed if name in state and state[name].shape != own[name].shape]
    if missing or odd:
        raise UserError(
            f"The weights in {source} do not fit the network they name: {len(missing)} missing, {len(odd)} of another "
            f"shape (first: {(missing + odd)[0]})."
        )
    with torch.no_grad():
        for name in needed:
            own[name].copy_(state[name])
