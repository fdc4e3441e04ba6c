"""Pretrained encoder weights for a network of any kind: which rules may bend them, and when they are refused.

The target may have other image channels, another input size, other kernels or another depth. It need not be of this
package: whatever has an encoder under dynamic-network-architectures' names can be filled, wherever in it that lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

_NAMED = 3
"""How many missing weights a refusal names."""


@dataclass(frozen=True)
class FittedWeights:
    """What became of pretrained weights in a network.

    Attributes:
        source: the weights as read.
        report: what became of each, under the names of `weight_names`.
        encoder_share: the covered share of the target encoder's elements.
        state: tensors to load, by those names.
    """

    source: Source
    report: matching.Report
    encoder_share: float
    state: dict[str, Tensor] = field(repr=False)

    def text(self) -> str:
        """Return what a person should see of it: the share, what was assumed, and a table."""
        head = f"Starting from {self.source.file}: {self.encoder_share:.1%} of the encoder is covered."
        return "\n".join([head, *self.source.notes, self.report.table()])

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values; of the file its name alone."""
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
    """Find what of a source fits a target, and refuse where that is too little.

    Args:
        target: tensors under the names of `weight_names`; shapes alone are looked at.
        source: pretrained weights.
        size: (D, H, W) of the images that the target takes; only a Primus needs it, for its table of positions.
        min_share: of the target encoder's elements that must be covered. Its first convolution must be in any case,
            unless this is 0: behind a random one the rest is worth nothing.
        setting: what a message calls `min_share`.
        encoder_only: leave out whatever is no part of an encoder, such as a decoder of the same name.

    Raises:
        UserError: weights of another kind of network, or that cover too little.
    """
    family = weight_names.family_of(target)
    if family is None:
        raise UserError("The network to fill has no encoder of a ResEnc or a Primus.")
    if source.family != family:
        raise UserError(
            f"{source.file} holds weights of a {family_words(source.family)}, but the network to fill is a "
            f"{family_words(family)}. Take weights of the same kind of network."
        )
    given: Mapping[str, Tensor] = source.state
    if encoder_only:
        target, given = _encoder_of(target, family), _encoder_of(given, family)
    matched = matching.match_weights(target, given, _rules(target, source, size))
    share = matched.report.share(ENCODER[family])
    stem_covered = STEM[family] in matched.state or min_share == 0
    if share < min_share or not stem_covered:
        raise UserError(_too_little(source.file, matched.report, share, min_share, setting, family))
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
    rows = report.missing(ENCODER[family])
    named = ", ".join(row.name + (f" ({row.note})" if row.note else "") for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return (
        f"{file} covers {share:.1%} of the encoder, and {setting}={least:g} asks for {least:.1%}. Not covered: "
        f"{named}{more}. Take weights of the same network, or lower {setting}."
    )


@dataclass(frozen=True)
class Place:
    """Where in a network an encoder lies: `prefix` stands before the names of `weight_names`."""

    prefix: str
    family: Family


def find_encoder(names: Sequence[str]) -> Place:
    """Find the encoder among a network's parameter names by its first convolution.

    Raises:
        UserError: there is none, or there are several (name one by `prefix` then).
    """
    places: list[Place] = []
    for family, stem in STEM.items():
        places += [Place(name.removesuffix(stem), family) for name in names if _ends_at_dot(name, stem)]
    # `decoder.encoder.` is how a U-Net of dynamic-network-architectures lists its encoder a second time.
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
    """Fill the encoder of a network, in place, and leave all else of it as it is.

    Args:
        network: holds an encoder of dynamic-network-architectures' names at any depth; DDP and compiled wrappers may
            stand around it. It is not changed at all where weights are refused.
        source: from `reading.read_source`.
        size: (D, H, W) of the images that the network takes; needed for a Primus of another input size.
        min_share: of the encoder's elements that must be covered, in [0, 1].
        setting: what a message calls `min_share`.
        prefix: where the encoder lies, such as "backbone.net."; found by itself where there is one.

    Returns:
        The report; store it beside what was trained from it.

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
