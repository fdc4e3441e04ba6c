"""SparK (Tian et al., arXiv:2301.03580): masked autoencoding for CNNs whose encoder does not see the holes.

The encoder computes over seen voxels alone; before the decoder, holes of every stage are filled by a learned vector,
and a convolution makes the stage dense.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viewalign.config import Recipe, Settings
from viewalign.errors import UserError
from viewalign.methods.dense_features import grid_of
from viewalign.methods.masked_modelling import LOSS, MaskedLoss, MaskedRestoration, loss_of
from viewalign.methods.requirements import build_for, used_settings
from viewalign.networks.backbone import Encoded
from viewalign.networks.layers import run_stage
from viewalign.networks.masking import BlockMask, masked_norm
from viewalign.networks.resenc import ResEncBackbone


class MethodSettings(Settings):
    """`densify`: whether a norm and a convolution follow the filled holes (SparK), or nothing does (EfficientSpark)."""

    densify: bool = True


class SparK(MaskedRestoration):
    """A sparse encoder, one filler a stage, and the U-Net's own decoder.

    Args:
        backbone: a U-Net; its encoder is made sparse in place. Blocks must be powers of two.
        densify: see `Pretext`.
        seed, mask_ratio, loss: as for `MaskedRestoration`.
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
        # Stages coarser than the blocks have no holes to fill.
        holed = [k for k in range(len(channels)) if 2**k <= min(backbone.block)]
        self.fillers = nn.ParameterList(nn.Parameter(torch.randn(1, channels[k], 1, 1, 1) * 0.02) for k in holed)
        self.norms = nn.ModuleList([nn.InstanceNorm3d(n, affine=True) for n in channels] if densify else [])
        # The finest stage keeps its maps, as published: a convolution there would cost more than the encoder.
        self.convolutions = nn.ModuleList([nn.Conv3d(n, n, 3, padding=1) for n in channels[1:]] if densify else [])

    def restore(self, images: Tensor, mask: BlockMask | None) -> Tensor:
        """Encode what is seen, fill the holes of every stage, and decode."""
        encoded = self.backbone.encode(images, mask)
        maps = tuple(self._dense(stage, one) for stage, one in enumerate(encoded.maps))
        return self.backbone.reconstruct(Encoded(maps=maps))

    def _dense(self, stage: int, maps: Tensor) -> Tensor:
        """Fill a stage's holes; where the stage is coarser than the blocks there are none."""
        assert isinstance(self.backbone, ResEncBackbone)
        assert self.backbone.seen is not None
        seen = self.backbone.seen.at(grid_of(maps))
        if len(self.norms):
            norm = self.norms[stage]
            assert isinstance(norm, nn.InstanceNorm3d)
            everywhere = maps.new_ones(maps.shape[0], 1, *grid_of(maps), dtype=torch.bool)
            maps = masked_norm(maps, everywhere if seen is None else seen, norm.weight, norm.bias, norm.eps)
        if seen is not None:
            maps = torch.where(seen, maps, self.fillers[stage].to(maps.dtype))
        return maps if not len(self.convolutions) or stage == 0 else run_stage(self.convolutions[stage - 1], maps)


USED_SETTINGS = used_settings("masking") | LOSS


def build(recipe: Recipe) -> SparK:
    """Build the method that a recipe describes.

    Raises:
        UserError: a view size that the network cannot take.
    """
    block = recipe.masking.block
    if recipe.masking.ratio == 0 or any(n & (n - 1) for n in block):
        raise UserError(
            f"SparK hides blocks whose sides are powers of two; masking.ratio={recipe.masking.ratio} with "
            f"masking.block={list(block)} cannot be. Take masking.ratio=0.75 masking.block=16."
        )
    pretext, backbone = MethodSettings.model_validate(recipe.pretext), build_for(recipe, masked=True)
    assert isinstance(backbone, ResEncBackbone), "the registry lets no other network through"
    backbone.freeze_unused(decode=True, to_image=True)
    return SparK(backbone, pretext.densify, seed=recipe.seed, mask_ratio=recipe.masking.ratio, loss=loss_of(recipe))
