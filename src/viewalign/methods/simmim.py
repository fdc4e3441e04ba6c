"""SimMIM (Xie et al., arXiv:2111.09886) for Primus: hidden tokens stay in place as a learned filler, and the encoder
itself restores the image through a light head."""

from __future__ import annotations

from torch import Tensor

from viewalign.config import Recipe
from viewalign.methods.masked_modelling import LOSS, MaskedRestoration, loss_of
from viewalign.methods.requirements import build_for, used_settings
from viewalign.networks.masking import BlockMask


class SimMIM(MaskedRestoration):
    """An encoder that sees every token, most of them the filler, and a head of transposed convolutions."""

    def restore(self, images: Tensor, mask: BlockMask | None) -> Tensor:
        """Encode all tokens and paint the image from them."""
        encoded = self.backbone.encode(images, mask, drop=False)
        return self.backbone.to_image([self.backbone.finest(encoded)])


USED_SETTINGS = used_settings("masking.ratio") | LOSS


def build(recipe: Recipe) -> SimMIM:
    """Build the method that a recipe describes.

    Raises:
        UserError: a view size that the network cannot take.
    """
    backbone, ratio = build_for(recipe), recipe.masking.ratio
    backbone.freeze_unused(finest=True, to_image=True, fill=ratio > 0)
    return SimMIM(backbone, seed=recipe.seed, mask_ratio=ratio, loss=loss_of(recipe))
