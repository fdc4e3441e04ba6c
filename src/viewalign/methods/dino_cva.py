"""DINO with aligned dense targets: `dino` plus a term between the same positions of a volume in different views.

Positions correspond by the affines of the views, as in Consistent View Alignment (arXiv:2509.13846), not by similarity.
"""

from __future__ import annotations

from pydantic import Field

from viewalign.config import Recipe
from viewalign.methods import dino
from viewalign.methods.aligned_targets import AlignedTargets
from viewalign.methods.base import MethodRequirements
from viewalign.methods.self_distillation import DINO
from viewalign.utils.settings import Count, Positive

USED_SETTINGS = dino.USED_SETTINGS


class MethodSettings(dino.MethodSettings):
    """DINO with aligned dense targets: the settings of `dino`, and of the additional term."""

    alignment_weight: Positive = Field(
        1.0, description="Weight of the prediction at the same positions of other views."
    )
    positions: Count = Field(128, description="Positions of each view that are compared with other views.")


def requirements(recipe: Recipe) -> MethodRequirements:
    """Return the requirements, which are those of `dino`."""
    return dino.requirements_for(recipe, MethodSettings.model_validate(recipe.pretext))


def build(recipe: Recipe) -> DINO:
    """Build the method of a recipe; errors as of `dino.build`."""
    settings = MethodSettings.model_validate(recipe.pretext)
    return dino.build_with(recipe, settings, settings.alignment_weight, AlignedTargets(settings.positions))
