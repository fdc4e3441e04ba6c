"""DINO (Caron et al., arXiv:2104.14294) with iBOT's masked positions (arXiv:2111.07832), KoLeo and Gram anchoring."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.losses import PrototypeTargets
from viewalign.methods.aligned_targets import AlignedTargets
from viewalign.methods.base import MethodRequirements
from viewalign.methods.requirements import build_for, check_local_views, check_masks, used_settings
from viewalign.methods.self_distillation import DINO, Network, Schedules, TermWeights
from viewalign.networks.backbone import Backbone
from viewalign.networks.prototypes import PrototypeHead
from viewalign.networks.teacher import MomentumSchedule
from viewalign.utils.settings import Count, Fraction, Number, Positive, PositiveRange, Settings, Triple
from viewalign.views.layouts import MultiCropConfig, sample_multi_crop

USED_SETTINGS = used_settings("masking.ratio", "masking.block", "heads.width", "teacher")
Weight = Annotated[float, Field(ge=0.0)]


class MethodSettings(Settings):
    """DINO: crops, targets, schedules and weights of the terms (arXiv:2104.14294, 2304.07193)."""

    region: Positive = Field(1.25, description="Side of the region of the global views, as a multiple of a view's.")
    extent: PositiveRange = Field((0.75, 1.25), description="Range of the scale of the two global views.")
    locals: Count = Field(8, description="Local views of a volume.")
    local_size: Triple = Field((64, 64, 64), description="Size of a local view (D, H, W) in voxels.")
    local_extent: PositiveRange = Field((0.5, 1.0), description="Range of the scale of the local views.")
    prototypes: Count = Field(8192, description="Prototypes of each of the two heads.")
    bottleneck: Count = Field(256, description="Length of the unit vectors that are compared with prototypes.")
    targets: Literal["centering", "sinkhorn"] = Field(
        "centering",
        description="What keeps targets from collapsing: a running mean of the teacher's logits, or Sinkhorn-Knopp, "
        "which needs large batches.",
    )
    center_momentum: Fraction = Field(0.9, description="Momentum of the running mean of `centering`.")
    sinkhorn_iterations: Count = Field(3, description="Iterations of `sinkhorn`.")
    temperature: Positive = Field(0.1, description="Temperature of the student.")
    teacher_temperature: PositiveRange = Field(
        (0.04, 0.07), description="Temperature of the teacher at the first step and after its warm-up."
    )
    teacher_warmup_steps: Number = Field(0, description="Steps of the linear warm-up of the teacher's temperature.")
    freeze_steps: Number = Field(0, description="Steps at the start in which the student's prototypes are not trained.")
    dino_weight: Weight = Field(1.0, description="Weight of the prediction of other global views.")
    ibot_weight: Weight = Field(1.0, description="Weight of the prediction at masked positions.")
    koleo_weight: Weight = Field(0.1, description="Weight of KoLeo, which spreads the global features.")
    gram_weight: Weight = Field(0.0, description="Weight of Gram anchoring (arXiv:2508.10104).")
    gram_start: Number = Field(0, description="Step from which Gram anchoring is used.")
    gram_every: Count = Field(10_000, description="Steps after which the teacher becomes the new Gram anchor.")


def requirements(recipe: Recipe) -> MethodRequirements:
    """Return the requirements: two global views, and local views inside them."""
    return requirements_for(recipe, MethodSettings.model_validate(recipe.pretext))


def requirements_for(recipe: Recipe, settings: MethodSettings) -> MethodRequirements:
    """Return the requirements with these settings of the method."""
    crops = MultiCropConfig(
        settings.region, settings.extent, settings.locals, settings.local_size, settings.local_extent
    )
    relative = math.prod(settings.local_size) / math.prod(recipe.views.patch_size)
    return MethodRequirements(
        sampler=partial(sample_multi_crop, crops=crops),
        images=2.0 + settings.locals * relative,
        teacher_images=2.0 if settings.gram_weight == 0 else 4.0,
        uses_decoder=False,
    )


def build(recipe: Recipe) -> DINO:
    """Build the method of a recipe.

    Raises:
        UserError: sizes, ranges or weights that are not possible.
    """
    return build_with(recipe, MethodSettings.model_validate(recipe.pretext))


def build_with(
    recipe: Recipe, settings: MethodSettings, alignment: float = 0.0, aligned: AlignedTargets | None = None
) -> DINO:
    """Build the method with these settings and, with `aligned`, a term of aligned positions of weight `alignment`."""
    backbone = build_for(recipe, masked=True)
    _check(recipe, settings, backbone, alignment)
    sizes = (recipe.heads.width, settings.bottleneck, settings.prototypes)
    student = Network(backbone, *(PrototypeHead(backbone.map_channels, *sizes) for _ in range(2)))
    targets = [
        PrototypeTargets(settings.prototypes, settings.targets, settings.center_momentum, settings.sinkhorn_iterations)
        for _ in range(2)
    ]
    return DINO(
        student,
        (targets[0], targets[1]),
        MomentumSchedule(recipe.teacher.momentum, recipe.teacher.final_momentum, recipe.steps),
        Schedules(
            recipe.batch,
            settings.teacher_temperature,
            settings.teacher_warmup_steps,
            settings.freeze_steps,
            settings.gram_start,
            settings.gram_every,
        ),
        TermWeights(settings.dino_weight, settings.ibot_weight, settings.koleo_weight, settings.gram_weight, alignment),
        aligned,
        mask_ratio=recipe.masking.ratio,
        temperature=settings.temperature,
        seed=recipe.seed,
    )


def _check(recipe: Recipe, settings: MethodSettings, backbone: Backbone, alignment: float) -> None:
    sizes = {"views.patch_size": recipe.views.patch_size, "pretext.local_size": settings.local_size}
    check_local_views(backbone, settings.local_size, sizes["views.patch_size"])
    block = backbone.block
    for name, size in sizes.items():
        if any(side % n or (n & (n - 1)) for side, n in zip(size, block, strict=True)):
            raise UserError(
                f"masking.block = {list(block)} must be powers of two that divide {name} = {list(size)}: features are "
                "compared on the grid of the blocks."
            )
    if settings.ibot_weight > 0:
        check_masks(recipe, block, "pretext.ibot_weight=0")
    if max(settings.dino_weight, settings.ibot_weight, alignment) == 0:
        raise UserError("All weights of `pretext` that compare student and teacher are 0; set pretext.dino_weight=1.")
