"""Reading files of tensors without running code in them."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from viewalign.errors import UserError, is_access_error, os_reason


def load_checkpoint(file: Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """Load a `.pth` file onto the CPU.

    Args:
        file: what to load.
        allowed: classes and functions besides torch's own that it may contain; they must only hold values.

    Raises:
        UserError: it is damaged, contains objects that need pickle, or is not a dictionary.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            root = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        if "unsupported global" in str(problem).lower():
            raise UserError(
                f"{file} is rejected: it contains pickled objects besides tensors and plain values, and could run code."
            ) from None
        raise UserError(
            f"{file} cannot be read as tensors and plain values: it is damaged, or it needs pickle."
        ) from None
    except Exception as problem:
        if is_access_error(problem):
            raise UserError(f"{file} cannot be read: {os_reason(problem)}.") from None
        reason = str(problem).split(". ")[0].splitlines() or [type(problem).__name__]
        raise UserError(f"{file} cannot be read ({reason[0]}); it is damaged or not a checkpoint.") from None
    if not isinstance(root, dict):
        raise UserError(f"{file} is not a checkpoint but a {type(root).__name__}, without names and tensors.")
    return root


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Check that weights are finite; all are on one device, which is synchronised once.

    Args:
        weights: by name.
        source: their origin, for the message.

    Raises:
        UserError: some are not finite; the first is named.
    """
    if not weights:
        return
    finite = torch.stack([torch.isfinite(value).all() for value in weights.values()])
    if not finite.all():
        name = list(weights)[int((~finite).nonzero()[0])]
        raise UserError(f"{source} has values that are not finite, in {name}; use another checkpoint.")


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, read in pieces.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if there is no file."""
    try:
        if not file.exists():
            return {}
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{file} cannot be read: {os_reason(problem)}.") from None
    return tree if isinstance(tree, dict) else {}


def load_safetensors(file: Path, facts_file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read exported tensors and the facts beside them.

    Raises:
        UserError: the file is damaged, or its checksum differs from the one in the facts.
    """
    facts = read_json(file.with_name(facts_file))
    if not file.is_file():  # reading a pipe would block
        raise UserError(f"There are no weights at {file}.")
    try:
        digest = facts.get("sha256")
        if digest and sha256_of(file) != digest:
            raise UserError(f"{file} is damaged: its checksum differs from the one in {facts_file}.")
        return load_file(file), facts
    except (OSError, SafetensorError) as problem:
        if is_access_error(problem):
            raise UserError(f"{file} cannot be read: {os_reason(problem)}.") from None
        raise UserError(f"{file} cannot be read ({problem}); it is damaged or not a safetensors file.") from None


CHECKPOINT = "checkpoint_final.pth"
_LAYER = re.compile(r"torch\.nn\.(modules\.(conv|instancenorm|batchnorm|dropout|activation)\.)?[A-Z]\w*[a-z0-9]\w*")
_NETWORK = re.compile(r"dynamic_network_architectures\.architectures\.[a-z_]+\.[A-Z]\w+")


def harmless() -> list[Any]:
    """Return the types in nnU-Net's checkpoints besides tensors: NumPy's scalars, which only hold values."""
    from numpy._core.multiarray import scalar

    return [scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64"))]


def check_model(folder: Path, folds: Sequence[int | str]) -> None:
    """Reject a model that could make nnU-Net run foreign code.

    Args:
        folder: `TRAINER__PLANS__CONFIGURATION`, with `plans.json` and `fold_*`.
        folds: to be used.

    Raises:
        UserError: a checkpoint with pickled objects, or a plan that names anything else than a network of
            dynamic-network-architectures and layers of torch.
    """
    plans = folder / "plans.json"
    check_plan(read_json(plans), plans)
    for fold in folds:
        load_checkpoint(folder / f"fold_{fold}" / CHECKPOINT, harmless())


def check_plan(plan: Mapping[str, Any], file: Path) -> None:
    """Reject a plan that names foreign code.

    Raises:
        UserError: it does.
    """
    configurations = plan.get("configurations")
    for configuration in configurations.values() if isinstance(configurations, Mapping) else ():
        architecture = configuration.get("architecture") if isinstance(configuration, Mapping) else None
        if isinstance(architecture, Mapping):
            _check_architecture(architecture, file)


def _check_architecture(architecture: Mapping[str, Any], file: Path) -> None:
    arguments = architecture.get("arch_kwargs") or {}
    named = [(_NETWORK, architecture.get("network_class_name"))]
    named += [(_LAYER, arguments.get(key)) for key in architecture.get("_kw_requires_import") or ()]
    for allowed, name in named:
        if name is not None and not allowed.fullmatch(str(name)):
            raise UserError(
                f"{file} is rejected: it makes nnU-Net import {name}, which is neither a network of "
                "dynamic-network-architectures nor a layer of torch, and could run code."
            )
