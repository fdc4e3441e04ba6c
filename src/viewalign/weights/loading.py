"""Pretrained encoder weights for any network: the rules that adapt them, and when they are rejected.

The target may have other image channels, another input size, other kernels or another depth. Any
module that contains an encoder with dynamic-network-architectures' names can be filled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from viewalign.errors import UserError
from viewalign.weights import matching
from viewalign.weights import names as weight_names
from viewalign.weights.names import ENCODER, STEM, Family
from viewalign.weights.sources import Source, family_words

Size = tuple[int, int, int]

_POSITIONS = "eva.pos_embed"
_NAMED = 3
"""Largest number of missing weights in a message."""


@dataclass(frozen=True)
class FittedWeights:
    """Result of matching pretrained weights with a network.

    Attributes:
        source: the weights as read.
        report: what happened to each, by the names of `weight_names`.
        encoder_share: covered fraction of the target encoder's elements.
        state: tensors to load, by the same names.
    """

    source: Source
    report: matching.Report
    encoder_share: float
    state: dict[str, Tensor] = field(repr=False)

    def text(self) -> str:
        """Return a text: the covered share, assumptions, and a table."""
        head = f"Starting from {self.source.file}: {self.encoder_share:.1%} of the encoder is covered."
        return "\n".join([head, *self.source.notes, self.report.table()])

    def as_json(self) -> dict[str, Any]:
        """Return plain values; the file without its folder."""
        source = self.source
        facts = {"file": source.file, "network": source.family, "trainer_name": source.trainer_name}
        sizes = {"size": source.size, "token_grid": source.grid, "encoder_share": self.encoder_share}
        return {**facts, **sizes, "notes": list(source.notes), **self.report.as_json()}


def fit(
    target: Mapping[str, Tensor],
    source: Source,
    size: Size | None = None,
    min_share: float = 0.9,
    setting: str = "min_share",
    encoder_only: bool = False,
) -> FittedWeights:
    """Match a source with a target; too few matching weights are an error.

    Args:
        target: tensors by the names of `weight_names`; only their shapes are used.
        source: pretrained weights.
        size: (D, H, W) of the target's images; a Primus needs it, for its positions: their number does not tell it.
        min_share: of the target encoder's elements that must be covered. Unless it is 0, the first convolution and the
            positions must be covered too: behind random ones the other weights are useless.
        setting: name of `min_share` in messages.
        encoder_only: ignore weights outside the encoder, such as those of a decoder.

    Raises:
        UserError: weights of another kind of network, or that cover too little.
    """
    family = weight_names.family_of(target)
    if family is None:
        raise UserError("The network to fill has no encoder of a ResEnc or a Primus.")
    if source.family != family:
        raise UserError(
            f"{source.file} holds weights of a {family_words(source.family)}, but the network to fill is a "
            f"{family_words(family)}. Use weights of the same kind of network."
        )
    if size is None and _POSITIONS in target:
        raise UserError("A Primus needs size=(D, H, W), the size of the network's images, to place its positions.")
    given: Mapping[str, Tensor] = source.state
    if encoder_only:
        target, given = _encoder_of(target, family), _encoder_of(given, family)
    matched = matching.match_weights(target, given, _rules(target, source, size))
    share = matched.report.share(ENCODER[family])
    if share < min_share:
        raise UserError(_too_little(source.file, matched.report, share, min_share, setting, family))
    first = {STEM[family], _POSITIONS} & target.keys() - matched.state.keys()
    if first and min_share > 0:
        raise UserError(
            f"{source.file} has no {_named(matched.report, first)} that fits, without which its other weights are "
            f"useless. Use weights of the same network, or {setting}=0."
        )
    return FittedWeights(source, matched.report, share, matched.state)


def _encoder_of(weights: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name.startswith(ENCODER[family])}


def _rules(target: Mapping[str, Tensor], source: Source, size: Size | None) -> list[matching.Adapter]:
    """Return the rules: image channels of the first convolution, then positions or kernels."""
    stem = STEM[source.family]
    rules = [matching.adapt_channels({stem})]
    if source.family == "resenc":
        return [*rules, matching.adapt_kernels(), matching.adapt_kernels_and_channels({stem})]
    if size is not None and source.grid is not None and stem in target:
        patch = target[stem].shape[2:]
        grid = (size[0] // patch[0], size[1] // patch[1], size[2] // patch[2])
        rules.append(matching.resize_positions(source.grid, grid))
    return rules


def _too_little(file: str, report: matching.Report, share: float, least: float, setting: str, family: Family) -> str:
    names = [row.name for row in report.missing(ENCODER[family])]
    named, more = _named(report, names[:_NAMED]), f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"{file} covers {share:.1%} of the encoder, and {setting}={least:g} requires {least:.1%}. Not covered: "
        f"{named}{more}. Use weights of the same network, or lower {setting}."
    )


def _named(report: matching.Report, names: Collection[str]) -> str:
    """Return names of weights with the notes of the report."""
    rows = [row for row in report.rows if row.name in names]
    return ", ".join(row.name + (f" ({row.note})" if row.note else "") for row in rows)


@dataclass(frozen=True)
class Place:
    """Position of an encoder in a network: `prefix` precedes the names of `weight_names`."""

    prefix: str
    family: Family


def find_encoder(names: Sequence[str]) -> Place:
    """Find the encoder among a network's parameter names by its first convolution.

    Raises:
        UserError: there is none, or there are several (set `prefix` then).
    """
    places: list[Place] = []
    for family, stem in STEM.items():
        places += [Place(name.removesuffix(stem), family) for name in names if _ends_at_dot(name, stem)]
    # A U-Net of dynamic-network-architectures lists its encoder again as `decoder.encoder.`.
    places = [place for place in places if not place.prefix.endswith("decoder.")]
    if not places:
        raise UserError("The network to fill has no encoder of a ResEnc or a Primus.")
    if len(places) > 1:
        raise UserError(f"The network to fill has {len(places)} encoders, at {[place.prefix for place in places]}.")
    return places[0]


def _ends_at_dot(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


@torch.no_grad()
def load_encoder_weights(
    network: nn.Module,
    source: Source,
    size: Size | None = None,
    min_share: float = 0.9,
    setting: str = "min_share",
    prefix: str | None = None,
) -> FittedWeights:
    """Fill the encoder of a network, in place; everything else is unchanged.

    Args:
        network: contains an encoder with dynamic-network-architectures' names; it may be wrapped by DDP or compiled. It
            is unchanged if the weights are rejected.
        source: from `reading.read_source`.
        size: (D, H, W) of the network's images; needed for a Primus.
        min_share: of the encoder's elements that must be covered, in [0, 1].
        setting: name of `min_share` in messages.
        prefix: of the encoder's parameter names, such as "backbone.net."; detected if there is one encoder.

    Returns:
        The report; store it with the network that is trained from it.

    Raises:
        UserError: no encoder in the network, weights of another kind of network, or that cover too little.
    """
    own = dict(network.named_parameters())
    if prefix is None:
        prefix = find_encoder(list(own)).prefix
    target = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
    fitted = fit(target, source, size, min_share, setting, encoder_only=True)
    for name, value in fitted.state.items():
        target[name].copy_(value)
    return fitted
