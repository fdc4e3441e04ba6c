"""Weights of one network for another: matched by name, adapted by the rules stated here, reported in a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.text import counted

What = Literal["loaded", "adapted", "left", "fresh"]
Size = tuple[int, int, int]
Adapter = Callable[[str, torch.Size, Tensor], "tuple[Tensor, str] | None"]
"""A function of name, wanted shape and tensor; returns the adapted tensor and how, or None without a rule."""

_LINES = 8
"""Largest number of remarks in a table."""


@dataclass(frozen=True)
class Row:
    """What happened to one weight.

    Attributes:
        name: its name in the target, or in the source if the target has none of that name.
        what: "loaded" as it is, "adapted", "left" (present, but it does not fit), or "fresh" (not present).
        note: how it was adapted, or why it was not used.
        elements: number of its elements.
        wanted: whether the target has it; others do not count in any share.
    """

    name: str
    what: What
    note: str = ""
    elements: int = 0
    wanted: bool = True


@dataclass(frozen=True)
class Report:
    """What happened to all weights."""

    rows: tuple[Row, ...]

    def counts(self) -> dict[What, int]:
        """Return how many weights were loaded, adapted, left and fresh."""
        return {what: sum(row.what == what for row in self.rows) for what in get_args(What)}

    def share(self, prefixes: Sequence[str] = ("",)) -> float:
        """Return the covered fraction of the target's elements whose names start with a prefix."""
        rows = [row for row in self.rows if row.wanted and row.name.startswith(tuple(prefixes))]
        covered = sum(row.elements for row in rows if row.what in ("loaded", "adapted"))
        return covered / max(1, sum(row.elements for row in rows))

    def missing(self, prefixes: Sequence[str] = ("",)) -> list[Row]:
        """Return the target's weights that are not covered, in the target's order."""
        names = tuple(prefixes)
        return [r for r in self.rows if r.wanted and r.what in ("left", "fresh") and r.name.startswith(names)]

    def table(self) -> str:
        """Return a table for a terminal: one line per part of the network, then the remarks."""
        parts = list(dict.fromkeys(_part(row.name) for row in self.rows))
        width = max([len(part) for part in parts] + [len("weights")])
        head = f"{'weights':<{width}}" + "".join(f"  {what:>7}" for what in get_args(What)) + "  covered"
        return "\n".join([head, *(self._line(part, width) for part in parts), *_remarks(self.rows)])

    def _line(self, part: str, width: int) -> str:
        rows = tuple(row for row in self.rows if _part(row.name) == part)
        counts = "".join(f"  {count:>7}" for count in Report(rows).counts().values())
        covered = f"{Report(rows).share():.0%}" if any(row.wanted for row in rows) else "-"
        return f"{part:<{width}}{counts}  {covered:>7}"

    def as_json(self) -> dict[str, Any]:
        """Return counts, share and every row as plain values."""
        rows = [{"name": r.name, "what": r.what, "note": r.note, "elements": r.elements} for r in self.rows]
        return {"share": self.share(), "counts": self.counts(), "weights": rows}


def _part(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _remarks(rows: Sequence[Row]) -> Iterator[str]:
    """Return how and why, in one line for all weights with the same note."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.note:
            groups.setdefault((row.what, row.note), []).append(row.name)
    for (what, note), names in list(groups.items())[:_LINES]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{what} {names[0]}{more}: {note}"
    if len(groups) > _LINES:
        yield f"and {counted(len(groups) - _LINES, 'more remark')}"


@dataclass(frozen=True)
class Matched:
    """Tensors to load, by the target's names, and what happened to all."""

    state: dict[str, Tensor] = field(repr=False)
    report: Report


def match_weights(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], adapters: Sequence[Adapter] = ()
) -> Matched:
    """Find the source's tensor for each of the target's; tensors are adapted only by rules.

    Args:
        target: tensors to fill; only their shapes are used.
        source: available tensors, by the same names.
        adapters: rules, the first that returns a tensor is used, also if shapes are equal, since their meaning
            may differ.
    """
    state: dict[str, Tensor] = {}
    rows: list[Row] = []
    for name, wanted in target.items():
        if name not in source:
            rows.append(Row(name, "fresh", elements=wanted.numel()))
            continue
        tensor, what, note = _fit(name, wanted.shape, source[name], adapters)
        rows.append(Row(name, what, note, wanted.numel()))
        if tensor is not None:
            state[name] = tensor
    unknown = [name for name in source if name not in target]
    rows += [Row(name, "left", "the network has no such weight", source[name].numel(), False) for name in unknown]
    return Matched(state, Report(tuple(rows)))


def _fit(name: str, shape: torch.Size, given: Tensor, adapters: Sequence[Adapter]) -> tuple[Tensor | None, What, str]:
    for adapter in adapters:
        bent = adapter(name, shape, given)
        if bent is not None and bent[0].shape == shape:
            return bent[0], "adapted", bent[1]
    if given.shape == shape:
        return given, "loaded", ""
    return None, "left", f"its shape is {list(given.shape)}, {list(shape)} is needed"


def resize_positions(before: Size, after: Size) -> Adapter:
    """Return the rule for tables of learned positions `*.pos_embed` (1, tokens, C), tokens in raster order.

    Args:
        before: the source's token grid (d, h, w).
        after: the target's.
    """

    def adapt(name: str, shape: torch.Size, given: Tensor) -> tuple[Tensor, str] | None:
        fits = given.ndim == 3 and given.shape[1] == math.prod(before) and shape[1:2] == (math.prod(after),)
        if before == after or not fits or not name.endswith("pos_embed"):
            return None
        grid = given.float().transpose(1, 2).unflatten(2, before)
        resized = F.interpolate(grid, size=after, mode="trilinear", align_corners=False)
        return resized.flatten(2).transpose(1, 2), f"positions resized from {_times(before)} to {_times(after)} tokens"

    return adapt


def adapt_channels(names: Collection[str]) -> Adapter:
    """Return the rule for convolutions (out, in, ...), named in full, that have another number of image channels.

    Channels are repeated and divided by how often, or summed in groups: for an image that is the same in all channels
    the output is unchanged.
    """

    def adapt(name: str, shape: torch.Size, given: Tensor) -> tuple[Tensor, str] | None:
        same = len(shape) == given.ndim > 2 and shape[:1] == given.shape[:1] and shape[2:] == given.shape[2:]
        if name not in names or not same or shape[1] == given.shape[1]:
            return None
        before, after = given.shape[1], shape[1]
        how = "repeated and divided by how often" if after > before else "summed in groups"
        return _regroup(given.float(), after), f"{counted(before, 'input channel')} made {after}: {how}"

    return adapt


def adapt_kernels() -> Adapter:
    """Return the rule for 3D convolutions (out, in, kd, kh, kw) whose kernels have other odd sides.

    A larger kernel is padded with zeros: the output is unchanged. A smaller one keeps its centre and adds each removed
    tap to the nearest kept one: for an image that is constant along that axis the output is unchanged.
    """

    def adapt(_: str, shape: torch.Size, given: Tensor) -> tuple[Tensor, str] | None:
        if len(shape) != 5 or given.ndim != 5 or shape[:2] != given.shape[:2]:
            return None
        return _refit_kernel(given, shape)

    return adapt


def adapt_kernels_and_channels(names: Collection[str]) -> Adapter:
    """Return the rule for named convolutions with other image channels and another kernel: both rules."""
    channels = adapt_channels(names)

    def adapt(name: str, shape: torch.Size, given: Tensor) -> tuple[Tensor, str] | None:
        if len(shape) != 5 or given.ndim != 5:
            return None
        bent = channels(name, torch.Size([*shape[:2], *given.shape[2:]]), given)
        kernel = None if bent is None else _refit_kernel(bent[0], shape)
        return None if bent is None or kernel is None else (kernel[0], f"{bent[1]}; {kernel[1]}")

    return adapt


def _refit_kernel(weight: Tensor, shape: torch.Size) -> tuple[Tensor, str] | None:
    """Convert the kernel (..., kd, kh, kw) to the sides of `shape`; None if sides are even or all are equal."""
    before, after = _sides(weight.shape), _sides(shape)
    if before == after or any(side % 2 == 0 for side in (*before, *after)):
        return None
    for axis, side in enumerate(after, start=2):
        weight = _refit_axis(weight.float(), axis, side)
    return weight, f"kernel {_times(before)} made {_times(after)}"


def _refit_axis(weight: Tensor, axis: int, side: int) -> Tensor:
    before = weight.shape[axis]
    shift = (side - before) // 2
    index = (torch.arange(before) + shift).clamp(0, side - 1)
    size = list(weight.shape)
    size[axis] = side
    return weight.new_zeros(size).index_add_(axis, index, weight)


def _sides(shape: torch.Size) -> Size:
    return shape[-3], shape[-2], shape[-1]


def _regroup(weight: Tensor, channels: int) -> Tensor:
    """Repeat or sum the input channels of (out, in, ...), keeping their sum."""
    before = weight.shape[1]
    if channels >= before:
        index = torch.arange(channels) % before
        times = torch.bincount(index, minlength=before)[index]
        return weight[:, index] / times.view(1, -1, *[1] * (weight.ndim - 2))
    index = torch.arange(before) % channels
    return weight.new_zeros(weight.shape[0], channels, *weight.shape[2:]).index_add_(1, index, weight)


def _times(grid: Size) -> str:
    return "×".join(str(n) for n in grid)
