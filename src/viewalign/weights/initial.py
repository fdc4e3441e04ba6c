"""Initial weights of a run: read, matched with the method's student, copied to its teacher, and reported in a table."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods.base import Method
from viewalign.utils.io import write_text
from viewalign.utils.shapes import Size
from viewalign.weights import loading, remote, sources
from viewalign.weights import names as weight_names
from viewalign.weights.loading import FittedWeights
from viewalign.weights.names import Family
from viewalign.weights.nnssl_runs import resolve_checkpoint
from viewalign.weights.published import ENCODERS
from viewalign.weights.reading import read_source
from viewalign.weights.run_folder import RunFolder
from viewalign.weights.token_order import Order

_log = logging.getLogger(__name__)


def start_run(method: Method, recipe: Recipe, folder: RunFolder, write: bool) -> None:
    """Apply a recipe's `init`; nothing is done without weights.

    Args:
        method: freshly built.
        recipe: the run's settings.
        folder: where `init.json` is written.
        write: whether this process writes files.

    Raises:
        UserError: weights that cannot be read or do not fit.
    """
    settings = recipe.init
    if not settings.weights:
        return
    start = load_initial(method, settings.weights, recipe.views.patch_size, settings.token_order, settings.min_share)
    _log.info("%s", start.text())
    if write:
        write_text(folder.initial, json.dumps(start.as_json(), indent=1))


def load_initial(
    method: Method,
    path: str | Path,
    size: Size,
    token_order: Literal["auto"] | Order = "auto",
    min_share: float = 0.9,
) -> loading.FittedWeights:
    """Fill a method's student with pretrained weights and start its teacher as a copy.

    Args:
        method: as built; it is changed in place, and unchanged if the weights are rejected.
        path: a checkpoint of nnssl's layout, an export, or a run of this package.
        size: (D, H, W) of the run's views.
        token_order: of a Primus's weights; "auto" derives it from the trainer named in the file.
        min_share: of the encoder's elements that must be covered.

    Raises:
        UserError: weights that cannot be read, of another kind of network, or that cover too little of the encoder.
    """
    target = weight_names.own_branch(dict(method.named_parameters()))
    family = weight_names.family_of(target)
    assert family is not None, "every backbone has a known family"
    source = read_initial(path, family, token_order)
    if source.family != family:
        raise UserError(
            f"{path} holds weights of a {sources.family_words(source.family)}, but this run trains a "
            f"{sources.family_words(family)}. Use weights of the same network, or set network= to theirs."
        )
    fitted = loading.fit(target, source, size, min_share, "init.min_share")
    _fill(method, target, fitted.state)
    return fitted


def read_initial(path: str | Path, family: Family, token_order: Literal["auto"] | Order = "auto") -> sources.Source:
    """Read the weights that a run of a network of a family starts from; see `load_initial`.

    Raises:
        UserError: weights that cannot be read.
    """
    # A public name is kept, since its entry says more than its file.
    file, note = (path, "") if str(path) in ENCODERS else resolve_checkpoint(remote.locate(path), family)
    source = read_source(file, None if token_order == "auto" else token_order)
    return replace(source, notes=(note, *source.notes)) if note else source


@torch.no_grad()
def _fill(method: Method, target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy weights into the student, and from it into the teacher's parameters of the same names."""
    for name, value in state.items():
        target[name].copy_(value)
    everything = dict(method.named_parameters())
    for name, value in everything.items():
        twin = everything.get(f"student.{name.removeprefix('teacher.')}") if name.startswith("teacher.") else None
        if twin is not None:
            value.copy_(twin)


def transfer_encoder(
    network: nn.Module,
    encoder: str | Path | sources.Source,
    size: Size | None = None,
    min_share: float = 0.9,
    prefix: str | None = None,
    token_order: Order | None = None,
    report: str | Path | None = None,
) -> FittedWeights:
    """Load pretrained encoder weights into a network, in place, and report what happened to each.

    The network may have another number of image channels (repeated or summed, rescaled), another image size (a Primus's
    positions are resized in 3D), other kernel sizes (padded or folded) or another depth (common layers are matched by
    name). Everything outside its encoder is unchanged.

    Args:
        network: any module that contains an encoder of dynamic-network-architectures: nnU-Net's networks, this
            package's backbones, a classifier around one of them.
        encoder: see `reading.read_source`, or its result.
        size: (D, H, W) of the network's images; needed for a Primus only.
        min_share: of the encoder's elements that must be covered, in [0, 1].
        prefix: of the encoder's parameter names, such as "backbone.net."; detected if there is one encoder.
        token_order: see `reading.read_source`.
        report: a JSON file to write the report to.

    Returns:
        What happened to each weight; `print(fitted.text())` shows it.

    Raises:
        UserError: weights that cannot be read, are of another kind of network, or cover too little of the encoder.

    Example:
        ```python
        network = ResidualEncoderUNet(input_channels=3, num_classes=4, ...)
        print(viewalign.transfer_encoder(network, "run").text())
        ```
    """
    source = encoder if isinstance(encoder, sources.Source) else read_source(encoder, token_order)
    fitted = loading.load_encoder_weights(network, source, size, min_share, prefix=prefix)
    if report is not None:
        write_report(fitted, Path(report))
    return fitted


def write_report(fitted: FittedWeights, path: Path) -> None:
    """Write what happened to each weight as JSON, atomically."""
    write_text(path, json.dumps(fitted.as_json(), indent=1) + "\n")
