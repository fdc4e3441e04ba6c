"""Encoders that a study evaluates without pretraining them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from viewalign.finetuning.segmentation.encoders import digest_of
from viewalign.networks.registry import PRIMUS
from viewalign.weights.initial import read_initial
from viewalign.weights.names import Family
from viewalign.weights.reading import network_of, read_source
from viewalign.weights.token_order import Order


@dataclass(frozen=True)
class ExternalEncoder:
    """A finished run, an export, a checkpoint or a public encoder.

    Attributes:
        path: as `load_encoder` takes it; absolute if it is a file or folder.
        plan: its adaptation plan.
        network: a name of `networks.registry`.
        digest: of the names and values of its weights.
    """

    path: str
    plan: dict[str, Any]
    network: str
    digest: str


def read_external(encoder: str, root: Path) -> ExternalEncoder:
    """Read an encoder; a path is relative to `root`, the folder of the study's data.

    Raises:
        UserError: no weights there, or not reachable.
    """
    local = root / encoder
    path = str(local.absolute()) if local.exists() else encoder
    source = read_source(path)
    return ExternalEncoder(path, dict(source.plan), network_of(source), digest_of(source))


def initial_digest(weights: str, network: str, token_order: Literal["auto"] | Order) -> str:
    """Return a digest of the weights that a recipe starts from; the arguments are settings of the recipe.

    Raises:
        UserError: no weights there, or not reachable.
    """
    family: Family = "primus" if network in PRIMUS else "resenc"
    return digest_of(read_initial(weights, family, token_order), decoder=True)
