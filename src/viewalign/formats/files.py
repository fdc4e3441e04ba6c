"""Reading files of tensors without ever running what they may hold."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from viewalign.errors import UserError


def load_checkpoint(file: Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """Load a `.pth` file onto the CPU.

    Args:
        file: what to load.
        allowed: classes and functions besides torch's own that it may hold; they must do nothing but hold values.

    Raises:
        UserError: it is damaged, holds objects that need pickle, or is no dictionary.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            root = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        if "unsupported global" in str(problem).lower():
            raise UserError(
                f"{file} is refused: besides tensors and plain values it holds pickled objects, which could run code."
            ) from None
        raise UserError(
            f"{file} cannot be read as tensors and plain values alone: it is damaged, or it needs pickle."
        ) from None
    except Exception as problem:
        reason = str(problem).split(". ")[0].splitlines() or [type(problem).__name__]
        raise UserError(f"{file} cannot be read ({reason[0]}); it is damaged or no checkpoint.") from None
    if not isinstance(root, dict):
        raise UserError(f"{file} is no checkpoint: it holds a {type(root).__name__} where names and tensors should be.")
    return root


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file."""
    try:
        tree = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise UserError(f"{file} cannot be read: {problem}.") from None
    return tree if isinstance(tree, dict) else {}


def load_safetensors(file: Path, facts_file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read exported tensors and the facts beside them.

    Raises:
        UserError: the file is damaged, or its checksum is not the one among the facts.
    """
    facts = read_json(file.with_name(facts_file))
    try:
        told = facts.get("sha256")
        if told and hashlib.sha256(file.read_bytes()).hexdigest() != told:
            raise UserError(f"{file} is damaged: its checksum is not the one in {facts_file}.")
        return load_file(file), facts
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{file} cannot be read ({problem}); it is damaged or something else.") from None
