"""An encoder ready for use: from a run, from an export, or untrained."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viewalign.config import Recipe
from viewalign.errors import UserError, os_reason, report_os_errors
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import build_backbone
from viewalign.utils.shapes import Size
from viewalign.weights import names as weight_names
from viewalign.weights import reading, remote
from viewalign.weights.files import check_finite, load_safetensors
from viewalign.weights.run_state import Weights, branch_state, run_state
from viewalign.weights.sources import Source
from viewalign.weights.token_order import Order

FORMAT = "viewalign-encoder"
VERSION = 1
_MOST = 1 << 14
"""Largest number of channels, and of voxels along an axis, that is accepted from an export."""
WEIGHTS_FILE, FACTS_FILE = "encoder.safetensors", "encoder.json"


@dataclass(frozen=True)
class EncoderOutput:
    """Output of an encoder for images (N, C, D, H, W).

    Attributes:
        maps: feature maps (N, C, d, h, w), finest first: all stages of a ResEnc, the token grid of a Primus. The
            centre of cell f of d cells over D voxels is at voxel (f + 1/2)·D/d - 1/2.
        pooled: (N, ΣC) one vector per image: the means of all maps, concatenated.
    """

    maps: list[Tensor]
    pooled: Tensor


class Encoder(nn.Module):
    """A backbone without decoders and heads.

    Attributes:
        size: (D, H, W) of the views of pretraining. A Primus accepts only this size, a ResEnc any multiple of `stride`.
        stride: sides of images must be multiples of it.
        facts: its origin; see `read_facts`.
    """

    def __init__(self, backbone: Backbone, size: Size, facts: dict[str, Any]) -> None:
        super().__init__()
        backbone.keep_encoder()
        self.backbone, self.size, self.stride, self.facts = backbone, size, backbone.stride, facts
        weights = {name.removeprefix("net."): value for name, value in backbone.named_parameters()}
        family = weight_names.family_of(weights)
        assert family is not None, "every backbone is of a known family"
        self._image_channels = weights[weight_names.STEM[family]].shape[1]
        self._one_size = family == "primus"

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map."""
        return self.backbone.stage_channels

    def forward(self, images: Tensor) -> EncoderOutput:
        """Encode images (N, C, D, H, W), prepared as in pretraining.

        Raises:
            ValueError: another number of axes or channels, or another size than that of a Primus.
            UserError: a size that the network does not support.
        """
        channels, size = self._image_channels, tuple(images.shape[2:])
        if images.ndim != 5 or images.shape[1] != channels:
            raise ValueError(f"the encoder takes images (N, {channels}, D, H, W), not {tuple(images.shape)}")
        if self._one_size and size != self.size:
            raise ValueError(f"this encoder takes images of {self.size} voxels only, not {size}")
        self.backbone.check_size((size[0], size[1], size[2]), "images")
        maps = self.backbone.maps(self.backbone.encode(images))
        return EncoderOutput(maps, torch.cat([one.float().mean((2, 3, 4)) for one in maps], dim=1))


def encoder_keys(backbone: Backbone) -> list[str]:
    """Return the names, without aliases, of the weights that an encoder needs."""
    prefixes = ("net.encoder.", "net.eva.", "net.down_projection.")
    return [name for name, _ in backbone.named_parameters() if name.startswith(prefixes)]


@report_os_errors()
def load_encoder(path: str | Path, weights: Weights = "student", token_order: Order | None = None) -> Encoder:
    """Load a pretrained encoder.

    Args:
        path: a run's folder (its newest checkpoint is read), an export, a checkpoint of nnssl, LatentCampus, nnU-Net or
            the FOMO baseline or a folder with one, `hf:OWNER/NAME[@REVISION][/FILE]`, `zenodo:RECORD[/FILE]`, or a name
            of `list_encoders`. It is downloaded if necessary.
        weights: of a run: the student's or the averaged teacher's; ignored for other files.
        token_order: of a Primus of nnssl whose trainer is unknown; see `weights.token_order`.

    Returns:
        The encoder in evaluation mode on the CPU; call it on (N, C, D, H, W) and see `EncoderOutput`. What was assumed
        or converted is a warning, and in `facts["notes"]`.

    Raises:
        UserError: nothing to load there, not reachable, or weights of no network of this package.

    Example:
        ```python
        encoder = viewalign.load_encoder("openmind-mae-resenc-l")
        ```
    """
    folder = remote.locate(path)
    if (folder / FACTS_FILE).is_file():
        return _from_export(folder)
    if (folder / "config.yaml").is_file():
        return from_run(folder, weights)
    if (folder / "export" / FACTS_FILE).is_file():
        return _from_export(folder / "export")
    return _from_source(reading.read_located(path, folder, token_order))


def _from_source(source: Source) -> Encoder:
    """Build the network that weights belong to.

    Raises:
        UserError: none of this package fits, or a Primus whose token grid is unknown.
    """
    name = reading.network_of(source)
    if source.family == "primus" and source.grid is None:
        raise UserError(f"{source.file} does not state the view size of its Primus, so that it cannot be built.")
    size = reading.size_of(name, source)
    channels = source.state[weight_names.STEM[source.family]].shape[1]
    backbone = build_backbone(name, size, channels)
    _fill(backbone, {f"net.{key}": value for key, value in source.state.items()}, source.file)
    for note in source.notes:
        warnings.warn(note, stacklevel=3)
    facts = {"file": source.file, "network": name, "trainer_name": source.trainer_name, "notes": list(source.notes)}
    return Encoder(backbone, size, facts).eval()


def build_untrained(recipe: Recipe, seed: int = 0) -> Encoder:
    """Build the same encoder with random weights, the baseline for pretraining."""
    torch.manual_seed(seed)
    return Encoder(_backbone(recipe), recipe.views.patch_size, {"untrained": True}).eval()


def _backbone(recipe: Recipe) -> Backbone:
    network = recipe.network
    return build_backbone(network.name, recipe.views.patch_size, network.channels, recipe.masking.block)


def from_run(folder: Path, weights: Weights = "student") -> Encoder:
    """Load the encoder of a run's newest checkpoint."""
    recipe, state = run_state(folder)
    backbone = _backbone(recipe)
    _fill(backbone, branch_state(state, weights), str(folder))
    return Encoder(backbone, recipe.views.patch_size, {"steps": state["step"], "weights": weights}).eval()


def _from_export(folder: Path) -> Encoder:
    facts = read_facts(folder)
    name, channels, size = _claims(facts, folder)
    tensors, _ = load_safetensors(folder / WEIGHTS_FILE, FACTS_FILE)
    state = {f"net.{key}": value for key, value in tensors.items()}
    with torch.device("meta"):  # needs no memory, even if the facts are wrong
        _check_fit(build_backbone(name, size, channels), state, str(folder))
    backbone = build_backbone(name, size, channels)
    _fill(backbone, state, str(folder))
    return Encoder(backbone, size, facts).eval()


def _claims(facts: dict[str, Any], folder: Path) -> tuple[str, int, Size]:
    """Return network, channels and view size of an export.

    Raises:
        UserError: they are missing or invalid.
    """
    network, size = facts.get("network"), facts.get("size")
    name, channels = (network.get("name"), network.get("channels")) if isinstance(network, dict) else (None, None)
    numbers = [channels, *(size if isinstance(size, list) and len(size) == 3 else [None])]
    counts = [n for n in numbers if type(n) is int and 0 < n <= _MOST]
    if not isinstance(name, str) or len(counts) < len(numbers):
        raise UserError(
            f"{folder / FACTS_FILE} does not describe an encoder: network.name must be a text, network.channels "
            f"and the three numbers of size whole numbers from 1 to {_MOST}."
        )
    return name, counts[0], (counts[1], counts[2], counts[3])


def read_facts(folder: Path) -> dict[str, Any]:
    """Read the JSON beside exported weights.

    Raises:
        UserError: it was not written by this package, or by a newer version.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        found, version = facts.get("format"), facts.get("version", 0)
        known = found == FORMAT and int(version) <= VERSION
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as problem:
        raise UserError(f"{folder / FACTS_FILE} cannot be read: {os_reason(problem)}.") from None
    if not known:
        raise UserError(
            f"{folder / FACTS_FILE} is of format {found!r} version {version}; this viewalign reads {FORMAT!r} up to "
            f"version {VERSION}."
        )
    return facts


def _check_fit(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    """Check that no weight is missing or has another shape; aliases may be missing.

    Raises:
        UserError: some do.
    """
    own = dict(backbone.named_parameters())
    needed = encoder_keys(backbone)
    missing = [name for name in needed if name not in state]
    odd = [name for name in needed if name in state and state[name].shape != own[name].shape]
    if missing or odd:
        raise UserError(
            f"The weights in {source} do not fit the network they name: {len(missing)} missing, {len(odd)} of another "
            f"shape (first: {(missing + odd)[0]})."
        )


def _fill(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    """Load every encoder weight.

    Raises:
        UserError: weights that do not fit, or are not finite.
    """
    _check_fit(backbone, state, source)
    needed = encoder_keys(backbone)
    check_finite({name: state[name] for name in needed}, source)
    own = dict(backbone.named_parameters())
    with torch.no_grad():
        for name in needed:
            own[name].copy_(state[name])
