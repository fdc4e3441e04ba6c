"""Masked autoencoder (He et al., arXiv:2111.06377): hide most of a view and give it back.

A CNN sees zeros where blocks are hidden, as in the benchmark OpenMind (Wald et al., arXiv:2412.17041); a transformer
sees the other tokens alone, and a light decoder fills in the rest. With nothing hidden it is a plain autoencoder.
"""

from __future__ import annotations

from torch import Tensor

from viewalign.config import Recipe
from viewalign.methods.base import MethodRequirements
from viewalign.methods.masked_modelling import LOSS, MaskedRestoration, loss_of
from viewalign.methods.requirements import build_for, used_settings
from viewalign.networks.masking import BlockMask


class MaskedAutoencoder(MaskedRestoration):
    """An encoder that sees what is left, and a decoder that restores the rest."""

    def restore(self, images: Tensor, mask: BlockMask | None) -> Tensor:
        """Encode what is left and decode all."""
        return self.backbone.reconstruct(self.backbone.encode(images, mask))


USED_SETTINGS = used_settings("masking") | LOSS


def requirements(recipe: Recipe) -> MethodRequirements:  # noqa: ARG001
    """Ask for one view of each volume."""
    return MethodRequirements(drops_tokens=True)


def build(recipe: Recipe) -> MaskedAutoencoder:
    """Build the method that a recipe describes.

    Raises:
        UserError: a view size that the network cannot take.
    """
    backbone, ratio = build_for(recipe, masked=True), recipe.masking.ratio
    backbone.freeze_unused(decode=True, to_image=True, fill=ratio > 0)
    return MaskedAutoencoder(backbone, seed=recipe.seed, mask_ratio=ratio, loss=loss_of(recipe))
