"""Export of a run: weights for other programs, with a description of how to use them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

import viewalign
from viewalign.config import Recipe, public_settings
from viewalign.errors import UserError
from viewalign.methods import health
from viewalign.methods.registry import entry_of
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import PRIMUS, RESENC, build_backbone, unet_arguments
from viewalign.utils.io import replaced_folder, write_bytes, write_tensors
from viewalign.utils.outputs import check_file, check_folder
from viewalign.weights import adaptation_plan, client_forms, model_card
from viewalign.weights import encoder as encoders
from viewalign.weights.files import check_finite, sha256_of
from viewalign.weights.run_folder import RunFolder, read_log
from viewalign.weights.run_state import Weights, branch_state, run_state
from viewalign.weights.token_order import HDW_PREFIX

_STEPS_PER_EPOCH = 250
_NNSSL_FILES = ("checkpoint_final.pth", "adaptation_plan.json")
CONFIG_FILE = "config.json"
_OWN_FILES = {*_NNSSL_FILES, CONFIG_FILE, "encoder.safetensors", "encoder.json", "README.md"}
"""All files of exports; a folder with others is not replaced."""


def export_run(
    run: str | Path,
    out: str | Path | None = None,
    weights: Weights = "student",
    licence: str | None = None,
    cite: str = "",
    hub: str | None = None,
) -> Path:
    """Export a run's encoder and return the folder.

    It contains `encoder.safetensors` + `encoder.json` + `README.md` (the model card) for viewalign and the Hub, and
    `checkpoint_final.pth` + `adaptation_plan.json` + `config.json` for nnssl and nnU-Net, which fetches these three
    names from the Hub. No subject data, no local path.

    Args:
        run: the run's folder; its newest checkpoint is exported.
        out: destination; default: `export/` in the run's folder.
        weights: the student's, as published, or the averaged teacher's.
        licence: of the weights, for the card, as the Hugging Face Hub abbreviates it: `cc-by-4.0`.
        cite: further citations for the card, besides method and software.
        hub: repository `OWNER/NAME` from which the card loads it; by default from the folder.

    Raises:
        UserError: no run, no checkpoint, an invalid licence, or a disk that cannot be written.
    """
    folder = RunFolder(Path(run))
    recipe, state = run_state(folder.root)
    backbone = _full_backbone(recipe, state, weights)
    target = folder.export if out is None else Path(out)
    with _writing(target) as partial:
        plan = _plan(recipe, state, f"viewalign_{recipe.method}")
        write_checkpoint(partial, client_forms.network_state(backbone), plan, _epochs(state))
        facts = _write_native(partial, recipe, state, backbone, weights, read_log(folder.log))
        _write_card(partial, recipe, facts, f"hf:{hub}" if hub else target.name, licence, cite)
    return target


def export_nnssl(run: str | Path, out: str | Path | None = None, weights: Weights = "student") -> Path:
    """Write a run's network for another pretraining with nnssl (`-pretrained_weights`) and return the folder.

    A Primus is written with decoder and mask token, and with its tokens in nnssl's order; a ResEnc as in
    `export_run`.

    Args:
        run: the run's folder; its newest checkpoint is exported.
        out: destination; default: `nnssl/` in the run's folder.
        weights: the student's or the averaged teacher's.

    Raises:
        UserError: as for `export_run`.
    """
    folder = RunFolder(Path(run))
    recipe, state = run_state(folder.root)
    backbone = _full_backbone(recipe, state, weights)
    target = folder.root / "nnssl" if out is None else Path(out)
    with _writing(target) as partial:
        if recipe.network.name in PRIMUS:
            network = client_forms.whole_primus(backbone, recipe.views.patch_size)
            plan = _plan(recipe, state, f"{HDW_PREFIX}{recipe.method}")
        else:
            network = client_forms.network_state(backbone)
            plan = _plan(recipe, state, f"viewalign_{recipe.method}")
        write_checkpoint(partial, network, plan, _epochs(state))
    return target


def export_fomo(run: str | Path, out: str | Path | None = None, weights: Weights = "student") -> Path:
    """Write a ResEnc's encoder for `finetune.py --pretrained_weights_path` of the FOMO baseline and return the file.

    Args:
        run: the run's folder; its newest checkpoint is exported.
        out: the file; default is `fomo.pth` in the run's folder.
        weights: the student's or the averaged teacher's.

    Raises:
        UserError: a Primus, which the baseline does not have, or as for `export_run`.
    """
    folder = RunFolder(Path(run))
    recipe, state = run_state(folder.root)
    if recipe.network.name in PRIMUS:
        raise UserError(f"The FOMO baseline has no Primus, so {recipe.network.name} has no form for it. Use a ResEnc.")
    target = folder.root / "fomo.pth" if out is None else Path(out)
    check_file(target, "export", ours=None if out else lambda _: True)
    flat = client_forms.fomo_state(_full_backbone(recipe, state, weights))
    try:
        write_bytes(target, _saved(flat))
    except OSError as problem:
        raise UserError(f"The export could not be written to {target}: {problem.strerror}.") from None
    return target


@contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces an earlier export in `target` when the block succeeds.

    Raises:
        UserError: `target` is a file or contains other files than an export, or the disk cannot be written.
    """
    target = target.absolute()
    earlier = (target / "adaptation_plan.json").is_file()
    check_folder(target, "export", False, _OWN_FILES if earlier else ())
    try:
        with replaced_folder(target) as partial:
            yield partial
    except (OSError, RuntimeError, SafetensorError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"The export could not be written to {target}: {reason}.") from None


def _full_backbone(recipe: Recipe, state: dict[str, Any], weights: Weights) -> Backbone:
    """Build the student with its decoder; the teacher's encoder replaces the student's with weights="teacher"."""
    network = recipe.network
    backbone = build_backbone(network.name, recipe.views.patch_size, network.channels, recipe.masking.block)
    try:
        backbone.load_state_dict(branch_state(state, "student"))
    except RuntimeError as problem:
        raise UserError(
            f"The checkpoint of step {state['step']} does not fit the network {network.name} of the run's config.yaml: "
            f"{' '.join(str(problem).split())[:300]}."
        ) from None
    if weights == "teacher":
        averaged = branch_state(state, "teacher")
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
    weights: Weights,
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
    # nnU-Net downloads this file from the Hub, which counts downloads by it; its content is not used.
    config = {key: facts[key] for key in ("format", "viewalign_version", "method", "network", "size")}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
    return facts


def _verdicts(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last health measures of the features with their verdicts."""
    last: dict[str, Any] = next((row for row in reversed(log) if row["kind"] == "health"), {})
    found = [(measure, last[measure.name]) for measure in health.MEASURES if measure.name in last]
    return [{"name": m.name, "title": m.title, "value": value, "level": m.level(value)} for m, value in found]


def _write_card(
    folder: Path, recipe: Recipe, facts: dict[str, Any], source: str, licence: str | None, cite: str
) -> None:
    method = entry_of(recipe.method)
    (folder / "README.md").write_text(model_card.render(facts, source, method.title, method.paper, licence, cite))


def _arguments(network: str) -> dict[str, Any]:
    if network in RESENC:
        return {"architecture": "ResidualEncoderUNet", "arguments": unet_arguments(network)}
    spec = PRIMUS[network]
    names = ("embed_dim", "patch_embed_size", "eva_depth", "eva_numheads")
    return {"architecture": "Primus", "arguments": {name: spec[name] for name in names}}


def _plan(recipe: Recipe, state: dict[str, Any], trainer_name: str) -> dict[str, Any]:
    network = recipe.network
    size, preparation = recipe.views.patch_size, state["preparation"]
    return {
        **adaptation_plan.plan_of(network.name, network.channels, size, recipe.method, preparation),
        "trainer_name": trainer_name,
    }


def _epochs(state: dict[str, Any]) -> int:
    epochs: int = state["step"] // _STEPS_PER_EPOCH
    return epochs


def write_checkpoint(folder: Path, state: Mapping[str, Tensor], plan: dict[str, Any], epochs: int) -> None:
    """Write `checkpoint_final.pth` and `adaptation_plan.json` into a folder; see `adaptation_plan.checkpoint`.

    Raises:
        OSError: the disk cannot be written.
    """
    (folder / _NNSSL_FILES[0]).write_bytes(_saved(adaptation_plan.checkpoint(state, plan, epochs)))
    (folder / _NNSSL_FILES[1]).write_text(json.dumps(plan, indent=4, sort_keys=True))


def _saved(root: Mapping[str, Any]) -> bytes:
    content = io.BytesIO()  # torch's own writer does not report that the disk is full
    torch.save(root, content)
    return content.getvalue()
