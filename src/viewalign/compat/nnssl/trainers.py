"""Recipes and settings of the trainer classes of LatentCampus and nnssl.

Names without "Gram" have the cosine objective, as in the paper's results. A later change of LatentCampus (2025-09-09)
switched these classes to Gram matrices without renaming them; `objectives.consistency=gram` gives that behaviour.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from viewalign.errors import UserError
from viewalign.utils.overrides import similar

_STEPS_PER_EPOCH = 250


@dataclass(frozen=True)
class Trainer:
    """A trainer class.

    Attributes:
        recipe: name of its recipe.
        overrides: `key=value` settings that differ from the recipe.
    """

    recipe: str
    overrides: tuple[str, ...] = ()


def _epochs(count: int) -> str:
    return f"steps={count * _STEPS_PER_EPOCH}"


def _warmup(epochs: int) -> str:
    return f"optim.warmup_steps={epochs * _STEPS_PER_EPOCH}"


_POOLED_ONLY = "heads.projector=pooled"
_DECODER = "objectives.dense=decoder"

_CVA = "objectives.consistency_weight"
_NO_CONTRAST = "objectives.contrastive_weight=0"
_PLAIN_RECONSTRUCTION = "objectives.reconstruction_weight=1"
_THIN, _THIN_SMALL = "views.patch_size=[256,256,32]", "views.patch_size=[128,128,32]"

# nnssl's MAE: mean squared error, and views with rotation and scaling but without intensity transforms.
_PHOTOMETRICS = ("brightness", "contrast", "gamma", "gamma_inverted", "low_resolution", "blur", "noise")
_MSE = (
    "objectives.reconstruction=mse",
    _PLAIN_RECONSTRUCTION,
    *(f"views.photometric.p_{name}=0" for name in _PHOTOMETRICS),
)

RESENC = {
    "MAETrainer": Trainer("mae-resenc-l"),
    "BaseMAETrainer": Trainer("mae-resenc-l", ("batch=2", *_MSE)),
    "BaseMAETrainer_BS8": Trainer("mae-resenc-l", _MSE),
    "BaseAlignedMAETrainer": Trainer(
        "cva-resenc-l", ("views.patch_size=160", "batch=2", _PLAIN_RECONSTRUCTION, f"{_CVA}=0.5", _POOLED_ONLY)
    ),
    "AlignedMAE128Trainer": Trainer("cva-resenc-l", (_PLAIN_RECONSTRUCTION, f"{_CVA}=0.5")),
    "AlignedMAETrainer": Trainer("cva-resenc-l", (_epochs(1000), f"{_CVA}=0.5")),
    "AlignedMAELR5Trainer": Trainer("cva-resenc-l", (_epochs(1000), f"{_CVA}=0.5", "optim.lr=5e-3")),
    "AlignedMAEFTTrainer": Trainer("cva-resenc-l"),
    "AlignedMAEFTConAnisoTrainer": Trainer("cva-aniso-resenc-l"),
    "AlignedMAEFTConAnisoB16Trainer": Trainer("cva-aniso-resenc-l", (_THIN_SMALL, "batch=16")),
    "AlignedMAEFTNoConTrainer": Trainer("mae-cva-resenc-l"),
    "GramAlignedMAEFTNoConTrainer": Trainer("gram-resenc-l", (_NO_CONTRAST,)),
    "GramAlignedMAEFTNoConNoProjTrainer": Trainer("gram-resenc-l", (_NO_CONTRAST, _POOLED_ONLY)),
    "GramAlignedMAEFTConTrainer": Trainer("gram-resenc-l"),
    "GramAlignedMAEFTConNoProjTrainer": Trainer("gram-resenc-l", (_POOLED_ONLY,)),
    "GramAlignedMAEFTConNoProjAnisoTrainer": Trainer("gram-aniso-resenc-l", (_POOLED_ONLY,)),
    "GramAlignedMAEFTConNoProjAnisoB16Trainer": Trainer("gram-aniso-resenc-l", (_THIN_SMALL, "batch=16", _POOLED_ONLY)),
    "AlignedConConMAETrainer": Trainer("mae-ccva-con-resenc-l", (_epochs(1000), f"{_CVA}=0.5", "optim.lr=5e-3")),
    "AlignedConConMAEFTTrainer": Trainer("mae-ccva-con-resenc-l"),
    "ConMAETrainer": Trainer("mae-con-resenc-l", (_epochs(1000), "optim.lr=5e-3")),
    "ConMAEFTTrainer": Trainer("mae-con-resenc-l"),
    "ConMAEFTAnisoTrainer": Trainer("mae-con-resenc-l", (_THIN,)),
    "ConMAEFTAnisoB16Trainer": Trainer("mae-con-resenc-l", (_THIN_SMALL, "batch=16")),
    "FeatConDecAlignedMAEFTTrainer": Trainer("cva-resenc-l", (f"{_CVA}=0.5", "optim.lr=5e-3", _DECODER)),
    "AlignedAETrainer": Trainer("ae-resenc-l", (_epochs(1000),)),
    "AlignedAEFTTrainer": Trainer("ae-resenc-l"),
    "SparkMAETrainer": Trainer("spark-resenc-l", ("batch=2",)),
    "ModelGenesisTrainer": Trainer("genesis-resenc-l", ("batch=2",)),
    "VolumeFusionTrainer": Trainer("fusion-resenc-l", ("batch=4",)),
    "SimCLRTrainer": Trainer("simclr-resenc-l", ("batch=2",)),
    "VoCoTrainer": Trainer("voco-resenc-l", ("batch=2",)),
    "SwinUNETRTrainer": Trainer("swinunetr-resenc-l", ("batch=2",)),
    "PCRLv2Trainer": Trainer("pcrlv2-resenc-l", ("batch=2",)),
    "GVSLTrainer": Trainer("gvsl-resenc-l"),
}
"""Classes that train a ResEnc-L."""

_SHORT = (_epochs(50), _warmup(5))

PRIMUS = {
    "MAEEvaTrainer": Trainer("mae-primus-m"),
    "BaseEvaMAETrainer": Trainer("mae-primus-m", ("batch=2", *_MSE)),
    "BaseEvaMAETrainer_BS8": Trainer("mae-primus-m", _MSE),
    "BaseAlignedMAETrainer": Trainer(
        "cva-primus-m", (_epochs(250), _PLAIN_RECONSTRUCTION, f"{_CVA}=0.5", "optim.lr=1e-4")
    ),
    "AlignedMAEEvaTrainer": Trainer("cva-primus-m", (_epochs(500), f"{_CVA}=0.5")),
    "AlignedMAEFTLR3EvaTrainer": Trainer("cva-primus-m"),
    "AlignedMAEFTNoConEvaLR3Trainer": Trainer("mae-cva-primus-m", _SHORT),
    "GramAlignedMAEFTNoConEvaLR3Trainer": Trainer("gram-primus-m", (*_SHORT, _NO_CONTRAST)),
    "GramAlignedMAEFTNoConNoProjEvaLR3Trainer": Trainer("gram-primus-m", (*_SHORT, _NO_CONTRAST, _POOLED_ONLY)),
    "GramAlignedMAEFTConEvaLR3Trainer": Trainer("gram-primus-m", _SHORT),
    "GramAlignedMAEFTConNoProjEvaLR3Trainer": Trainer("gram-primus-m", (*_SHORT, _POOLED_ONLY)),
    "ConMAEFTEvaLR3Trainer": Trainer("mae-con-primus-m"),
    "AlignedConConMAEFTEvaTrainer": Trainer("mae-ccva-con-primus-m"),
    "FeatConDecAlignedMAEFTEvaTrainer": Trainer(
        "cva-primus-m", (*_SHORT, f"{_CVA}=0.5", "objectives.cells=5", _DECODER)
    ),
    "AlignedAEEvaTrainer": Trainer("ae-primus-m", (_epochs(500),)),
    "AlignedAEFTEvaTrainer": Trainer("ae-primus-m"),
    "SimMIMEvaTrainer": Trainer("simmim-primus-m", ("batch=2",)),
    "ModelGenesisEvaTrainer": Trainer("genesis-primus-m", ("batch=2",)),
    "VolumeFusionEvaTrainer": Trainer("fusion-primus-m", ("batch=4",)),
    "SimCLREvaTrainer": Trainer("simclr-primus-m", ("batch=2",)),
    "VoCoEvaTrainer": Trainer("voco-primus-m", ("batch=2",)),
    "SwinUNETREvaTrainer": Trainer("swinunetr-primus-m", ("batch=2",)),
}
"""Classes that train a Primus-M."""

NETWORKS = {"resenc-l": RESENC, "primus-m": PRIMUS}
"""The published networks, each with its trainers."""


def resolve_trainer(name: str, network: str | None = None) -> Trainer:
    """Return the trainer of a name.

    Args:
        name: a class of LatentCampus or nnssl, with optional endings: `_BS8` (batch), `_192ps` (views), `_4000ep` or
            `_EP4000` (epochs), `_lr1e4` (learning rate); with masking also `_mask60` (percent) and `_block8` (voxels).
        network: "resenc-l" or "primus-m"; required if classes of the same name train different networks.

    Raises:
        UserError: an unknown name, or one of the other network or of both.
    """
    matches = {key: found for key, table in NETWORKS.items() if (found := _find(name, table)) is not None}
    if not matches:
        known = sorted({*RESENC, *PRIMUS})
        published = "the published ones are AlignedMAEFTTrainer and AlignedMAEFTLR3EvaTrainer"
        hint = similar(name, known, 0.6) or f"; {published}. All: {', '.join(known)}"
        raise UserError(f"There is no trainer '{name}'{hint}.")
    if network is None and len(matches) > 1:
        raise UserError(
            f"There are two trainers {name}. Choose one with {' or '.join(f'--network {key}' for key in matches)}."
        )
    if network is not None and network not in matches:
        raise UserError(f"{name} trains {' or '.join(matches)}, not {network}. Omit --network, or use another trainer.")
    return matches[network or next(iter(matches))]


_ENDINGS: dict[str, Callable[[int], str]] = {
    r"BS(\d+)": lambda n: f"batch={n}",
    r"(\d+)ps": lambda n: f"views.patch_size={n}",
    r"(\d+)(?i:ep)|(?i:ep)(\d+)": _epochs,
    r"(?i:lr)1e-?(\d)": lambda n: f"optim.lr=1e-{n}",
}
"""Settings of the endings of nnssl's names."""

_MASK_ENDINGS: dict[str, Callable[[int], str]] = {
    r"(?i:mask|maskratio|mr)(\d\d)": lambda n: f"masking.ratio={n / 100:g}",
    r"(?i:block|blocksize)(\d+)": lambda n: f"masking.block={n}",
}
"""Endings of methods with masked blocks; a Primus masks its tokens, whose size is fixed."""
_MASKED = ("mae-", "simmim-", "spark-")


def _find(name: str, table: dict[str, Trainer]) -> Trainer | None:
    """Return a trainer of a table, with the settings of the endings of its name."""
    if name in table:
        return table[name]
    base, *endings = name.split("_")
    changes = [_ending(ending, table[base].recipe) for ending in endings] if base in table else [None]
    known = [change for change in changes if change is not None]
    if not known or len(known) < len(changes):
        return None
    return Trainer(table[base].recipe, (*table[base].overrides, *known))


def _ending(text: str, recipe: str) -> str | None:
    masked = _MASK_ENDINGS if recipe.startswith(_MASKED) else {}
    for pattern, change in {**_ENDINGS, **masked}.items():
        found = re.fullmatch(pattern, text)
        if found:
            number = next(int(group) for group in found.groups() if group)
            if "primus" in recipe and change(number).startswith("masking.block"):
                return None
            # nnssl counts fused images, each of two volumes.
            twice = recipe.startswith("fusion") and text.startswith("BS")
            return change(2 * number if twice else number)
    return None
