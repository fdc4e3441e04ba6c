"""PCRLv2 (Zhou et al., arXiv:2301.00772): restore views at several scales, and make views consistent at every scale.

A decoder without skip connections restores two large views; its coarser maps restore downsampled images. The pooled
maps of each scale are compared between the large views, and between local views inside them and the large ones.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from viewalign.config import Recipe
from viewalign.losses.consistency import siamese_cosine
from viewalign.losses.reconstruction import masked_mse
from viewalign.losses.reduction import mean_per_view
from viewalign.methods import rng
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.requirements import NORM, build_for, check_local_views, norm_for, used_settings
from viewalign.methods.single_network import SingleNetwork, step_result, sum_terms
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.utils.pooling import masked_mean, valid_fraction
from viewalign.utils.precision import at_least_float32
from viewalign.utils.settings import Count, Fraction, Positive, PositiveRange, Settings, Triple
from viewalign.utils.shapes import spatial_size
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import resize
from viewalign.views.layouts import NestedViewConfig, sample_nested

USED_SETTINGS = NORM | used_settings("heads.width", "heads.predictor_width")


class MethodSettings(Settings):
    """PCRLv2: large and local views of one region (arXiv:2301.00772)."""

    region: Positive = Field(1.41, description="Side of the region that all views lie in, as a multiple of a view's.")
    extent: PositiveRange = Field((0.75, 1.25), description="Range of the scale of the two large views.")
    min_iou: Fraction = Field(0.3, description="Smallest intersection over union of the two large views.")
    locals: Count = Field(6, description="Local views of a volume.")
    local_size: Triple = Field((64, 64, 64), description="Size of a local view (D, H, W) in voxels.")
    local_extent: PositiveRange = Field((0.5, 1.0), description="Range of the scale of the local views.")


class PCRLv2(SingleNetwork):
    """An encoder, a decoder without skips, and an image head, projector and predictor for each scale.

    Args:
        backbone, seed: as for `SingleNetwork`; only its encoder is trained.
        width, predictor_width, norm: of the heads.
        channels: of images.
    """

    def __init__(
        self,
        backbone: Backbone,
        width: int = 2048,
        predictor_width: int = 512,
        norm: heads.Norm = "batch",
        *,
        seed: int = 0,
        channels: int = 1,
    ) -> None:
        super().__init__(backbone, seed=seed)
        self.plain_decoder = backbone.plain_decoder()
        scales = self.plain_decoder.channels
        self.images = nn.ModuleList(nn.Conv3d(n, channels, 1) for n in scales)
        self.projectors = nn.ModuleList(heads.projector(n, width, norm) for n in scales)
        self.predictors = nn.ModuleList(heads.predictor(width, predictor_width, norm) for _ in scales)
        backbone.freeze_unused()

    def run(self, batch: ViewBatch) -> Latents:
        """Restore the large views and pool all views, at every scale."""
        assert batch.local is not None, "views are from `sample_nested`"
        latents: Latents = {}
        for name, views in (("large", batch), ("small", batch.local)):
            maps = self._decode(views, f"drop path of {name}")
            valid = views.valid.flatten(0, 1)
            for scale, features in enumerate(maps):
                latents[f"{name}{scale}"] = masked_mean([features], valid).unflatten(0, views.count)
                if name == "large":
                    latents[f"image{scale}"] = self.images[scale](features).unflatten(0, views.count)
        return latents

    def _decode(self, views: ViewBatch, purpose: str) -> list[Tensor]:
        self.backbone.sample_drop_path(rng.generators(views, self._seed, purpose) if self.training else None)
        return self.backbone.decode_with(self.plain_decoder, self.backbone.encode(views.views.flatten(0, 1)))

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Return the sum of the errors of image and downsampled images and of the distances between views."""
        scales = range(len(self.images))
        images = [latents[f"image{scale}"].flatten(0, 1) for scale in scales]
        target, valid = batch.targets.flatten(0, 1), batch.valid.flatten(0, 1)
        compared = [self._compare(scale, latents) for scale in scales]
        terms = {
            "reconstruction": masked_mse(images[0], target, valid),
            "coarse_reconstruction": torch.stack([coarse_mse(image, target, valid) for image in images[1:]]).mean(),
            "global_distance": torch.stack([large for large, _, _ in compared]).mean(),
            "local_distance": torch.stack([local for _, local, _ in compared]).mean(),
        }
        features = {"projected": compared[0][2].flatten(0, 1)}
        return step_result(sum_terms(terms), latents, terms, {"reconstruction": images[0]}, features)

    def _compare(self, scale: int, latents: Latents) -> tuple[Tensor, Tensor, Tensor]:
        """Return the distances between large views and from local to large ones, and the projected large views."""
        projector, predictor = self.projectors[scale], self.predictors[scale]
        assert isinstance(projector, heads.MLP)
        assert isinstance(predictor, heads.MLP)
        # Large and local views pass the heads separately, with separate batch statistics.
        large, local = (heads.embed(latents[f"{name}{scale}"], projector) for name in ("large", "small"))
        among = siamese_cosine(heads.embed(large, predictor), large, same_views=True)
        across = siamese_cosine(heads.embed(local, predictor), large, same_views=False)
        return among, across, large


def coarse_mse(image: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the squared error of a coarse image from the mean of the valid target voxels in each cell.

    Args:
        image: (N, C, d, h, w), whose cells are whole blocks of voxels.
        target: (N, C, D, H, W).
        valid: (N, 1, D, H, W) bool; each cell is weighted by its valid fraction.
    """
    grid = spatial_size(image)
    fraction = valid_fraction(valid, grid).to(torch.promote_types(image.dtype, torch.float32))
    mean = resize(target * valid, grid) / fraction.clamp(min=1e-6)
    return mean_per_view((at_least_float32(image) - mean).square(), fraction)


def requirements(recipe: Recipe) -> MethodRequirements:
    """Return the requirements: two large views, and local views inside them."""
    settings = MethodSettings.model_validate(recipe.pretext)
    relative = math.prod(settings.local_size) / math.prod(recipe.views.patch_size)
    sampler = partial(sample_nested, nesting=NestedViewConfig(**settings.model_dump()))
    return MethodRequirements(sampler=sampler, images=2.0 + settings.locals * relative)


def build(recipe: Recipe) -> PCRLv2:
    """Build the method of a recipe.

    Raises:
        UserError: sizes or ranges of local views that are not possible.
    """
    settings, backbone = MethodSettings.model_validate(recipe.pretext), build_for(recipe)
    check_local_views(backbone, settings.local_size, recipe.views.patch_size)
    return PCRLv2(
        backbone,
        recipe.heads.width,
        recipe.heads.predictor_width,
        norm_for(recipe, 2 * recipe.batch),
        seed=recipe.seed,
        channels=recipe.network.channels,
    )
