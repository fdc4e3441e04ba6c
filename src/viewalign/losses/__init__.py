"""Losses: functions and modules on plain tensors, independent of networks."""

from viewalign.losses.modules import (
    CosineConsistencyLoss,
    DenseNTXentLoss,
    GramConsistencyLoss,
    MaskedReconstructionLoss,
    NTXentLoss,
)

__all__ = [
    "CosineConsistencyLoss",
    "DenseNTXentLoss",
    "GramConsistencyLoss",
    "MaskedReconstructionLoss",
    "NTXentLoss",
]
