"""A pretrained encoder beside a dataset's plans: a copy in nnssl's layout, named and checked by its contents.

A plan names the copy relative to the dataset's folder, so it holds no path of this machine and still works when the
folder is moved; and the file is one that nnU-Net's coming native commands read too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viewalign.errors import UserError
from viewalign.formats import nnunet, pretrained
from viewalign.formats.nnssl import adaptation
from viewalign.formats.weight_names import ENCODER
from viewalign.writing import whole

FOLDER = "viewalign_encoders"


def store(folder: Path, source: pretrained.Source, name: str, minimum_share: float) -> dict[str, Any]:
    """Write an encoder into a dataset's folder of plans, and return what a plan says of it.

    Args:
        folder: `nnUNet_preprocessed/DatasetXXX_NAME`.
        source: the encoder.
        name: what to call it; a digest of its weights is added.
        minimum_share: of the target encoder that it must cover.

    Raises:
        UserError: an encoder without a plan.
    """
    digest = digest_of(source)
    file = folder / FOLDER / f"{name}-{digest[:8]}.pth"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as partial:
            torch.save(adaptation.checkpoint(listed_weights(source), _raster_plan(source), 0), partial)
    return {"file": f"{FOLDER}/{file.name}", "digest": digest, "minimum_share": minimum_share}


def read_stored(folder: Path, told: dict[str, Any]) -> pretrained.Source:
    """Read an encoder that a plan names.

    Raises:
        UserError: it is gone, damaged, or not the one that the plan was made with.
    """
    file = folder / told["file"]
    if not file.is_file():
        raise UserError(
            f"The plan's encoder {file} is not there. Run `viewalign finetune segmentation` again, or copy it from "
            "where the plan was made."
        )
    source = pretrained.read_weights(file, order="dhw")
    if digest_of(source) != told["digest"]:
        raise UserError(f"{file} holds other weights than the plan was made with; make the plan again.")
    return source


def digest_of(source: pretrained.Source) -> str:
    """Return the SHA-256 of an encoder's names and numbers, whatever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(name for name in source.state if name.startswith(ENCODER[source.family])):
        digest.update(name.encode())
        digest.update(source.state[name].float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def listed_weights(source: pretrained.Source) -> dict[str, Tensor]:
    """Return an encoder's weights as dynamic-network-architectures lists them, a tensor under each of its names.

    Raises:
        UserError: weights that do not fill the network that their plan describes.
    """
    network = pretraining_network(source)
    starts = ENCODER[source.family]
    # Names are taken from a real network, for which of its modules are listed twice is the library's business.
    return {name: value for name, value in network.state_dict().items() if name.startswith(starts)}


def pretraining_network(source: pretrained.Source) -> nn.Module:
    """Build the network of a pretraining with the encoder that it gave; the rest of it is fresh."""
    from viewalign.formats.fitting import load_encoder_weights

    architecture = nnunet.architecture_of(source.plan, source.file)
    size = source.size or tuple(source.plan.get("pretrain_patch_size") or (160, 160, 160))
    if source.family == "primus" and source.grid is not None:
        d, h, w = (cells * side for cells, side in zip(source.grid, nnunet.strides_of(architecture), strict=True))
        size = (d, h, w)
    channels = int(source.plan.get("pretrain_num_input_channels", 1))
    network = nnunet.build_network(architecture, channels, 1, size)
    load_encoder_weights(network, source, size, 1.0, "the share of the pretraining's own network")
    return network


def _raster_plan(source: pretrained.Source) -> dict[str, Any]:
    """Return the source's plan; where its token order was repaired, the trainer's name must no longer tell the old."""
    plan = dict(source.plan)
    if source.family == "primus":
        name = str(plan.get("trainer_name") or source.trainer_name)
        plan["trainer_name"] = name if name.startswith("viewalign_") else f"viewalign_from_{name}"
    plan.setdefault("trainer_name", source.trainer_name)
    return plan
