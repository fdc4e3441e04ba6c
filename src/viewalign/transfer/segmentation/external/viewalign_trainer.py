"""Where nnU-Net looks for our trainer: it searches this folder when `nnUNet_extTrainer` names it."""

from viewalign.transfer.segmentation.trainer import ViewalignTrainer

__all__ = ["ViewalignTrainer"]
