"""SimMIM (Xie et al., arXiv:2111.09886): a learned token replaces masked ones, and a small head restores the image."""

from __future__ import annotations

from torch import Tensor

from viewalign.config import Recipe
from viewalign.methods.requirements import build_for, used_settings
from viewalign.methods.single_network import MASKED_LOSS, MaskedModelling, check_masked_modelling, masked_loss
from viewalign.networks.masking import BlockMask

USED_SETTINGS = used_settings("masking.ratio") | MASKED_LOSS


class SimMIM(MaskedModelling):
    """An encoder of all tokens, and a head of transposed convolutions."""

    def restore(self, images: Tensor, mask: BlockMask | None) -> Tensor:
        """Encode all tokens and restore the image from them."""
        encoded = self.backbone.encode(images, mask, drop_tokens=False)
        return self.backbone.to_image([self.backbone.finest(encoded)])


def build(recipe: Recipe) -> SimMIM:
    """Build the method of a recipe.

    Raises:
        UserError: it would train on nothing.
    """
    backbone, ratio = build_for(recipe), recipe.masking.ratio
    check_masked_modelling(recipe, backbone)
    backbone.freeze_unused(finest=True, to_image=True, fill=ratio > 0)
    return SimMIM(backbone, seed=recipe.seed, mask_ratio=ratio, loss=masked_loss(recipe))
