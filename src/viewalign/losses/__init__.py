"""Losses: functions and modules on plain tensors, independent of networks."""

from viewalign.losses.distillation import PrototypeTargets
from viewalign.losses.modules import (
    CosineConsistencyLoss,
    DenseNTXentLoss,
    DINOLoss,
    GramAnchoringLoss,
    GramConsistencyLoss,
    IBOTLoss,
    KoLeoLoss,
    MaskedReconstructionLoss,
    NTXentLoss,
)

__all__ = [
    "CosineConsistencyLoss",
    "DINOLoss",
    "DenseNTXentLoss",
    "GramAnchoringLoss",
    "GramConsistencyLoss",
    "IBOTLoss",
    "KoLeoLoss",
    "MaskedReconstructionLoss",
    "NTXentLoss",
    "PrototypeTargets",
]
