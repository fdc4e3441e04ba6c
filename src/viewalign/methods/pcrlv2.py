"""PCRLv2 (Zhou et al., arXiv:2301.00772): restore a view from one coarse map, and let views agree at every scale.

A decoder without skips restores two large views, its coarser maps restoring coarser images. Pooled, the maps of each
scale are compared between the large views, and between small views inside them and the large ones.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from viewalign.config import Count, Fraction, Positive, Range, Recipe, Settings, Triple
from viewalign.errors import UserError
from viewalign.losses.consistency import siamese_cosine
from viewalign.losses.reconstruction import masked_mse
from viewalign.losses.reduction import mean_per_view
from viewalign.methods import rng
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.dense_features import grid_of
from viewalign.methods.pooled_features import pooled
from viewalign.methods.requirements import NORM, build_for, norm_for, used_settings
from viewalign.methods.single_network import SingleNetwork, total
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.utils.precision import at_least_float32
from viewalign.views.alignment import valid_share
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import resize
from viewalign.views.layouts import NestedViewConfig, sample_nested


class MethodSettings(Settings):
    """The layout of views; see `views.nested_views.Nesting`."""

    region: Positive = 1.41
    extent: Range = (0.75, 1.25)
    min_iou: Fraction = 0.3
    locals: Count = 6
    local_size: Triple = (64, 64, 64)
    local_extent: Range = (0.5, 1.0)


class PCRLv2(SingleNetwork):
    """One network: an encoder, a decoder without skips, and an image head, projector and predictor for each scale.

    Args:
        backbone: whose encoder is trained.
        width, predictor_width, norm: of the heads.
        seed: stochastic depth derives from (seed, sample, view).
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
        """Restore the large views at every scale; pool every scale of large and small views."""
        assert batch.local is not None, "views are drawn by `draw_nested`"
        made: Latents = {}
        for name, views in (("large", batch), ("small", batch.local)):
            maps = self._decoded(views, f"drop path of {name}")
            valid = views.valid.flatten(0, 1)
            for scale, one in enumerate(maps):
                made[f"{name}{scale}"] = pooled([one], valid).unflatten(0, views.count)
                if name == "large":
                    made[f"image{scale}"] = self.images[scale](one).unflatten(0, views.count)
        return made

    def _decoded(self, views: ViewBatch, purpose: str) -> list[Tensor]:
        self.backbone.sample_drop_path(rng.generators(views, self._seed, purpose) if self.training else None)
        return self.backbone.decode_with(self.plain_decoder, self.backbone.encode(views.views.flatten(0, 1)))

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Add up: the image, the coarser images, and what large views, and small and large ones, lack in likeness."""
        scales = range(len(self.images))
        images = [latents[f"image{scale}"].flatten(0, 1) for scale in scales]
        target, valid = batch.targets.flatten(0, 1), batch.valid.flatten(0, 1)
        compared = [self._compare(scale, latents) for scale in scales]
        terms = {
            "reconstruction": masked_mse(images[0], target, valid),
            "coarse_reconstruction": torch.stack([coarse_mse(one, target, valid) for one in images[1:]]).mean(),
            "global_distance": torch.stack([one[0] for one in compared]).mean(),
            "local_distance": torch.stack([one[1] for one in compared]).mean(),
        }
        features = {"projected": compared[0][2].flatten(0, 1)}
        return self.result(total(terms), latents, terms, {"reconstruction": images[0]}, features)

    def _compare(self, scale: int, latents: Latents) -> tuple[Tensor, Tensor, Tensor]:
        """Return the distances among large views and from small to large ones, and the large ones' vectors."""
        projector, predictor = self.projectors[scale], self.predictors[scale]
        assert isinstance(projector, heads.MLP)
        assert isinstance(predictor, heads.MLP)
        # Large and small views are two populations, and so pass the heads apart, with statistics of their own.
        large, small = (heads.embed(latents[f"{name}{scale}"], projector) for name in ("large", "small"))
        among = siamese_cosine(heads.embed(large, predictor), large, same_views=True)
        across = siamese_cosine(heads.embed(small, predictor), large, same_views=False)
        return among, across, large


def coarse_mse(image: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the squared error of a coarse image (N, C, d, h, w) from the mean of the valid voxels in each cell.

    Args:
        image: of cells that are whole blocks of voxels.
        target: (N, C, D, H, W).
        valid: (N, 1, D, H, W) bool; each cell counts by its valid share.
    """
    share = valid_share(valid, grid_of(image)).to(torch.promote_types(image.dtype, torch.float32))
    mean = resize(target * valid, grid_of(image)) / share.clamp(min=1e-6)
    return mean_per_view((at_least_float32(image) - mean).square(), share)


USED_SETTINGS = NORM | used_settings("heads.width", "heads.predictor_width")


def requirements(recipe: Recipe) -> MethodRequirements:
    """Ask for two large views and small ones inside them."""
    pretext = MethodSettings.model_validate(recipe.pretext)
    share = float(torch.tensor(pretext.local_size).prod() / torch.tensor(recipe.views.size).prod())
    nesting = NestedViewConfig(**pretext.model_dump())
    return MethodRequirements(draw=partial(sample_nested, nesting=nesting), images=2.0 + pretext.locals * share)


def build(recipe: Recipe) -> PCRLv2:
    """Build the method that a recipe describes.

    Raises:
        UserError: a size of large or small views that the network cannot take, or a layout that cannot be.
    """
    pretext, backbone = MethodSettings.model_validate(recipe.pretext), build_for(recipe)
    _check(pretext, backbone, recipe.views.size)
    norm = norm_for(recipe, 2 * recipe.batch)
    return PCRLv2(
        backbone,
        recipe.heads.width,
        recipe.heads.predictor_width,
        norm,
        seed=recipe.seed,
        channels=recipe.network.channels,
    )


def _check(pretext: MethodSettings, backbone: Backbone, size: tuple[int, int, int]) -> None:
    local = pretext.local_size
    try:
        backbone.check_size(local, "pretext.local_size")
    except ValueError as problem:
        raise UserError(str(problem)) from None
    if any(n > most for n, most in zip(local, size, strict=True)):
        raise UserError(f"pretext.local_size = {list(local)} is larger than views.size = {list(size)}.")
    for name in ("extent", "local_extent"):
        low, high = getattr(pretext, name)
        if not 0 < low <= high:
            raise UserError(f"pretext.{name} must be two shares 0 < low ≤ high, not {[low, high]}.")
