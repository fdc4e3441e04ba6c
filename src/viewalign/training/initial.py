"""Starting a run from weights: read, matched with the method's student, copied to its teacher, told in a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.formats import matching, pretrained, weight_names
from viewalign.formats.resolving import resolve_checkpoint
from viewalign.formats.token_order import Order
from viewalign.formats.weight_names import ENCODER, STEM, Family
from viewalign.methods.base import Method
from viewalign.networks.backbone import Size
from viewalign.training import checkpoints
from viewalign.training.folder import RunFolder

_NAMED = 3
"""How many missing weights a refusal names."""


@dataclass(frozen=True)
class Start:
    """What a run started from.

    Attributes:
        source: the weights as read.
        report: what became of each.
        encoder_share: the covered share of the encoder's elements.
        notes: sentences on what was assumed, resolved or repaired.
    """

    source: pretrained.Source
    report: matching.Report
    encoder_share: float
    notes: tuple[str, ...]

    def text(self) -> str:
        """Return what a person should see of it."""
        head = f"Starting from {self.source.file}: {self.encoder_share:.1%} of the encoder is covered."
        return "\n".join([head, *self.notes, self.report.table()])

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values; of the file its name alone."""
        source = self.source
        facts = {"file": source.file, "network": source.family, "trainer_name": source.trainer_name}
        sizes = {"size": source.size, "token_grid": source.grid, "encoder_share": self.encoder_share}
        return {**facts, **sizes, "notes": list(self.notes), **self.report.as_json()}


def start_run(method: Method, recipe: Recipe, folder: RunFolder, say: Callable[[str], None], write: bool) -> None:
    """Do what a recipe's `init` asks for; nothing where it names no weights.

    Args:
        method: freshly built.
        recipe: the run's settings.
        folder: where `init.json` is written.
        say: takes the table.
        write: whether this process writes files.

    Raises:
        UserError: weights that cannot be read or do not fit.
    """
    settings = recipe.init
    if not settings.weights:
        return
    start = load_initial(method, settings.weights, recipe.views.size, settings.token_order, settings.min_share)
    say(start.text())
    if write:
        folder.initial.write_text(json.dumps(start.as_json(), indent=1))


def load_initial(
    method: Method,
    path: str | Path,
    size: Size,
    token_order: Literal["auto"] | Order = "auto",
    minimum_share: float = 0.9,
) -> Start:
    """Fill a method's student from given weights and start its teacher as a copy.

    Args:
        method: as built; it is changed in place, and not at all where weights are refused.
        path: a checkpoint of nnssl's layout, an export, or a run of this package.
        size: (D, H, W) of the run's views.
        token_order: of a Primus's weights; "auto" goes by the trainer that the file names.
        minimum_share: of the encoder's elements that must be covered.

    Raises:
        UserError: weights that cannot be read, of another kind of network, or that cover too little of the encoder.
    """
    target = weight_names.own_branch(dict(method.named_parameters()))
    family = weight_names.family_of(target)
    assert family is not None, "every backbone is of a known family"
    file, note = resolve_checkpoint(path, family)
    source = _read(file, None if token_order == "auto" else token_order)
    if source.family != family:
        raise UserError(
            f"{file} holds weights of a {pretrained.family_words(source.family)}, but this run trains a "
            f"{pretrained.family_words(family)}. Take weights of the same network, or set network= to theirs."
        )
    grid = method.encoder().grids(size)[0] if family == "primus" else None
    matched = matching.match_weights(target, source.state, _adapters(family, source.grid, grid))
    share = matched.report.share(ENCODER[family])
    if share < minimum_share:
        raise UserError(_too_little(file, matched.report, share, minimum_share, family))
    _fill(method, target, matched.state)
    return Start(source, matched.report, share, (*([note] if note else []), *source.notes))


def _read(file: Path, order: Order | None) -> pretrained.Source:
    """Read weights; those of a run come from its newest checkpoint that can be read."""
    run = RunFolder(file)
    if not run.config.is_file():
        return pretrained.read_weights(file, order)
    state, complaints = checkpoints.load_newest(run.checkpoints)
    if state is None:
        raise UserError(" ".join([f"The run {file} has no checkpoint to start from.", *complaints]))
    settings = state["recipe"]
    branch = weight_names.own_branch(state["method"])
    trainer = f"viewalign_{settings['method']}"
    return pretrained.make_source(branch, file.name, tuple(settings["views"]["size"]), trainer, order)


def _adapters(family: Family, before: Size | None, after: Size | None) -> list[matching.Adapter]:
    rules = [matching.adapt_channels({STEM[family]})]
    if before is not None and after is not None:
        rules.append(matching.resize_positions(before, after))
    return rules


def _too_little(file: Path, report: matching.Report, share: float, least: float, family: Family) -> str:
    rows = report.missing(ENCODER[family])
    named = ", ".join(row.name + (f" ({row.note})" if row.note else "") for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return (
        f"{file} covers {share:.1%} of the encoder, and init.min_share={least:g} asks for {least:.1%}. Not covered: "
        f"{named}{more}. Take weights of the same network, or lower init.min_share."
    )


@torch.no_grad()
def _fill(method: Method, target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy weights into the student, and the student's into whatever the teacher has of the same name."""
    for name, value in state.items():
        target[name].copy_(value)
    everything = dict(method.named_parameters())
    for name, value in everything.items():
        twin = everything.get(f"student.{name.removeprefix('teacher.')}") if name.startswith("teacher.") else None
        if twin is not None:
            value.copy_(twin)
