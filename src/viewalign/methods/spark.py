"""SparK (Tian et al., arXiv:2301.03580): masked autoencoding with a CNN that ignores masked voxels.

The encoder is sparse. Before decoding, masked cells of every stage are filled with a learned vector, and a convolution
makes the stage dense.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods.requirements import build_for, used_settings
from viewalign.methods.single_network import (
    MASKED_LOSS,
    MaskedLoss,
    MaskedModelling,
    check_masked_modelling,
    masked_loss,
)
from viewalign.networks.backbone import Encoded
from viewalign.networks.layers import run_stage
from viewalign.networks.masking import BlockMask, masked_norm
from viewalign.networks.resenc import ResEncBackbone
from viewalign.utils.settings import Settings
from viewalign.utils.shapes import spatial_size

USED_SETTINGS = used_settings("masking.ratio", "masking.block") | MASKED_LOSS


class MethodSettings(Settings):
    """SparK (arXiv:2301.03580)."""

    densify: bool = Field(
        True, description="Normalise and convolve the filled holes of the encoder's stages; false is EfficientSpark."
    )


class SparK(MaskedModelling):
    """A sparse encoder, one learned filler per stage, and the U-Net's own decoder.

    Args:
        backbone: its encoder is made sparse in place. Sides of blocks must be powers of two.
        densify: see `MethodSettings`.
        seed, mask_ratio, loss: as for `MaskedModelling`.
    """

    def __init__(
        self,
        backbone: ResEncBackbone,
        densify: bool = True,
        *,
        seed: int = 0,
        mask_ratio: float = 0.75,
        loss: MaskedLoss,
    ) -> None:
        super().__init__(backbone, seed=seed, mask_ratio=mask_ratio, loss=loss)
        backbone.make_sparse()
        channels = backbone.stage_channels
        # Stages coarser than the blocks have no masked cells.
        filled = [k for k in range(len(channels)) if 2**k <= min(backbone.block)]
        self.fillers = nn.ParameterList(nn.Parameter(torch.randn(1, channels[k], 1, 1, 1) * 0.02) for k in filled)
        self.norms = nn.ModuleList([nn.InstanceNorm3d(n, affine=True) for n in channels] if densify else [])
        # As published without the finest stage: a convolution there would cost more than the encoder.
        self.convolutions = nn.ModuleList([nn.Conv3d(n, n, 3, padding=1) for n in channels[1:]] if densify else [])

    def restore(self, images: Tensor, mask: BlockMask | None) -> Tensor:
        """Encode visible voxels, fill the masked cells of every stage, and decode."""
        encoded = self.backbone.encode(images, mask)
        maps = tuple(self._densify(stage, features) for stage, features in enumerate(encoded.maps))
        return self.backbone.reconstruct(Encoded(maps=maps))

    def _densify(self, stage: int, maps: Tensor) -> Tensor:
        assert isinstance(self.backbone, ResEncBackbone)
        assert self.backbone.sparse_mask is not None
        grid = spatial_size(maps)
        visible = self.backbone.sparse_mask.at(grid)
        if len(self.norms):
            norm = self.norms[stage]
            assert isinstance(norm, nn.InstanceNorm3d)
            everywhere = maps.new_ones(maps.shape[0], 1, *grid, dtype=torch.bool)
            maps = masked_norm(maps, everywhere if visible is None else visible, norm.weight, norm.bias, norm.eps)
        if visible is not None:
            maps = torch.where(visible, maps, self.fillers[stage].to(maps.dtype))
        return maps if not len(self.convolutions) or stage == 0 else run_stage(self.convolutions[stage - 1], maps)


def build(recipe: Recipe) -> SparK:
    """Build the method of a recipe.

    Raises:
        UserError: nothing is masked, or the sides of blocks are not powers of two.
    """
    block = recipe.masking.block
    if recipe.masking.ratio == 0 or any(n & (n - 1) for n in block):
        raise UserError(
            f"SparK masks blocks whose sides are powers of two, not masking.ratio={recipe.masking.ratio} with "
            f"masking.block={list(block)}. Use masking.ratio=0.75 masking.block=16."
        )
    settings, backbone = MethodSettings.model_validate(recipe.pretext), build_for(recipe, masked=True)
    assert isinstance(backbone, ResEncBackbone), "the registry allows no other network"
    check_masked_modelling(recipe, backbone)
    backbone.freeze_unused(decode=True, to_image=True)
    return SparK(
        backbone, settings.densify, seed=recipe.seed, mask_ratio=recipe.masking.ratio, loss=masked_loss(recipe)
    )
