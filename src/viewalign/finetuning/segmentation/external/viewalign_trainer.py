"""Where nnU-Net looks for our trainer: it searches this folder when `nnUNet_extTrainer` names it."""

from viewalign.finetuning.segmentation.trainer import ViewalignTrainer

__all__ = ["ViewalignTrainer"]
