"""Exporting a run: weights that load elsewhere, and what others need to know to use them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import viewalign
from viewalign.config import Recipe, public_settings
from viewalign.errors import UserError
from viewalign.methods import health
from viewalign.methods.registry import entry_of
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import PRIMUS, RESENC, build_backbone, unet_arguments
from viewalign.utils.io import write_tensors
from viewalign.weights import adaptation_plan as adaptation
from viewalign.weights import encoder as encoders
from viewalign.weights import model_card
from viewalign.weights.files import check_finite, sha256_of
from viewalign.weights.run_folder import RunFolder, read_log

_STEPS_PER_EPOCH = 250
_NNSSL_FILES = ("checkpoint_final.pth", "adaptation_plan.json")


def export_run(
    run: str | Path,
    out: str | Path | None = None,
    weights: encoders.Weights = "student",
    licence: str | None = None,
    cite: str = "",
) -> Path:
    """Write a run's encoder for others and return the folder.

    It holds `encoder.safetensors` + `encoder.json` + `README.md` (the model card) for viewalign and the Hub, and
    `checkpoint_final.pth` + `adaptation_plan.json` for nnssl and nnU-Net. No subject data, no local path.

    Args:
        run: the run's folder; its newest checkpoint is exported.
        out: where to; default is `export/` in the run's folder.
        weights: the student's, as published, or the averaged teacher's.
        licence: of the weights, for the card, as the Hugging Face Hub abbreviates it: `cc-by-4.0`.
        cite: what the card asks to cite besides method and software.

    Raises:
        UserError: no run, no checkpoint, no licence's abbreviation, or a disk that cannot be written.
    """
    folder = RunFolder(Path(run))
    recipe, state = encoders.run_state(folder.root)
    backbone = _full_backbone(recipe, state, weights)
    target = folder.export if out is None else Path(out)
    partial = target.with_name(f".writing-{target.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_nnssl(partial, recipe, state, backbone)
        facts = _write_native(partial, recipe, state, backbone, weights, read_log(folder.log))
        _write_card(partial, recipe, facts, licence, cite)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    except (OSError, RuntimeError, SafetensorError) as problem:
        raise UserError(f"The export could not be written to {target}: {problem}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _full_backbone(recipe: Recipe, state: dict[str, Any], weights: encoders.Weights) -> Backbone:
    """Build the student with its decoder; the teacher's encoder replaces the student's with weights="teacher"."""
    network = recipe.network
    backbone = build_backbone(network.name, recipe.views.patch_size, network.channels, recipe.masking.block)
    try:
        backbone.load_state_dict(encoders.branch_state(state, "student"))
    except RuntimeError as problem:
        raise UserError(
            f"The checkpoint of step {state['step']} does not fit the network {network.name} of the run's config.yaml: "
            f"{' '.join(str(problem).split())[:300]}."
        ) from None
    if weights == "teacher":
        averaged = encoders.branch_state(state, "teacher")
        own = dict(backbone.named_parameters())
        with torch.no_grad():
            for name in encoders.encoder_keys(backbone):
                own[name].copy_(averaged[name])
    check_finite(dict(backbone.named_parameters()), f"The checkpoint of step {state['step']}")
    return backbone


def _write_native(
    folder: Path,
    recipe: Recipe,
    state: dict[str, Any],
    backbone: Backbone,
    weights: encoders.Weights,
    log: list[dict[str, Any]],
) -> dict[str, Any]:
    own = dict(backbone.named_parameters())
    tensors = {name.removeprefix("net."): own[name] for name in encoders.encoder_keys(backbone)}
    write_tensors(tensors, folder / encoders.WEIGHTS_FILE)
    data = next((row for row in log if row["kind"] == "data"), {})
    facts = {
        "format": encoders.FORMAT,
        "version": encoders.VERSION,
        "viewalign_version": viewalign.__version__,
        "method": recipe.method,
        "network": {**recipe.network.model_dump(), **_arguments(recipe.network.name)},
        "size": list(recipe.views.patch_size),
        "weights": weights,
        "steps": state["step"],
        "batch": recipe.batch,
        "preparation": state["preparation"],
        "data": {key: data[key] for key in ("volumes", "subjects") if key in data},
        "encoder_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "sha256": sha256_of(folder / encoders.WEIGHTS_FILE),
        "sha256_of": {name: sha256_of(folder / name) for name in _NNSSL_FILES},
        "health": _verdicts(log),
        "recipe": public_settings(recipe),
    }
    (folder / encoders.FACTS_FILE).write_text(json.dumps(facts, indent=1))
    return facts


def _verdicts(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last figures of the features and what they mean."""
    last: dict[str, Any] = next((row for row in reversed(log) if row["kind"] == "health"), {})
    found = [(measure, last[measure.name]) for measure in health.MEASURES if measure.name in last]
    return [{"name": m.name, "title": m.title, "value": value, "level": m.level(value)} for m, value in found]


def _write_card(folder: Path, recipe: Recipe, facts: dict[str, Any], licence: str | None, cite: str) -> None:
    method = entry_of(recipe.method)
    (folder / "README.md").write_text(model_card.render(facts, "export", method.title, method.paper, licence, cite))


def _arguments(network: str) -> dict[str, Any]:
    if network in RESENC:
        return {"architecture": "ResidualEncoderUNet", "arguments": unet_arguments(network)}
    spec = PRIMUS[network]
    names = ("embed_dim", "patch_embed_size", "eva_depth", "eva_numheads")
    return {"architecture": "Primus", "arguments": {name: spec[name] for name in names}}


def _write_nnssl(folder: Path, recipe: Recipe, state: dict[str, Any], backbone: Backbone) -> None:
    network = recipe.network
    plan = adaptation.plan_of(
        network.name, network.channels, recipe.views.patch_size, recipe.method, state["preparation"]
    )
    everything = backbone.state_dict().items()
    state_dict = {name.removeprefix("net."): value for name, value in everything if name.startswith("net.")}
    root = adaptation.checkpoint(state_dict, plan, state["step"] // _STEPS_PER_EPOCH)
    content = io.BytesIO()  # torch's own writer names no cause where the disk is full
    torch.save(root, content)
    (folder / _NNSSL_FILES[0]).write_bytes(content.getbuffer())
    (folder / _NNSSL_FILES[1]).write_text(json.dumps(plan, indent=4, sort_keys=True))
