"""Masked autoencoder (He et al., arXiv:2111.06377).

A CNN receives zeros in masked blocks, as in OpenMind (Wald et al., arXiv:2412.17041); a transformer encodes only the
other tokens, and a small decoder restores all. Without masking this is a plain autoencoder.
"""

from __future__ import annotations

from torch import Tensor

from viewalign.config import Recipe
from viewalign.methods.base import MethodRequirements
from viewalign.methods.requirements import build_for, used_settings
from viewalign.methods.single_network import MASKED_LOSS, MaskedModelling, check_masked_modelling, masked_loss
from viewalign.networks.masking import BlockMask

USED_SETTINGS = used_settings("masking.ratio", "masking.block") | MASKED_LOSS


class MaskedAutoencoder(MaskedModelling):
    """Encodes the visible part of a view and decodes all of it."""

    def restore(self, images: Tensor, mask: BlockMask | None) -> Tensor:
        """Encode and decode."""
        return self.backbone.reconstruct(self.backbone.encode(images, mask))


def requirements(recipe: Recipe) -> MethodRequirements:  # noqa: ARG001
    """Return the requirements: one view per volume."""
    return MethodRequirements(drops_tokens=True)


def build(recipe: Recipe) -> MaskedAutoencoder:
    """Build the method of a recipe.

    Raises:
        UserError: it would train on nothing.
    """
    backbone, ratio = build_for(recipe, masked=True), recipe.masking.ratio
    check_masked_modelling(recipe, backbone)
    backbone.freeze_unused(decode=True, to_image=True, fill=ratio > 0)
    return MaskedAutoencoder(backbone, seed=recipe.seed, mask_ratio=ratio, loss=masked_loss(recipe))
