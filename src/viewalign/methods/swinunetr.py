"""The three tasks of SwinUNETR's pretraining (Tang et al., arXiv:2111.14791): inpainting, rotation and contrast.

Each view is copied twice; each copy is rotated by a multiple of 90° in the plane of the last two axes and has boxes
replaced by noise and by voxels of another subject. One network restores the rotated view, predicts the rotation, and
contrasts the copies of a view with those of other subjects.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.losses.contrastive import view_nt_xent
from viewalign.losses.reconstruction import masked_l1
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.requirements import build_for, used_settings
from viewalign.methods.single_network import SingleNetwork, step_result, sum_terms
from viewalign.networks.backbone import Backbone
from viewalign.utils.pooling import masked_mean
from viewalign.utils.precision import at_least_float32, send
from viewalign.utils.rng import make_rng, make_torch_generator
from viewalign.utils.settings import Count, Fraction, Settings
from viewalign.views.batch import ViewBatch
from viewalign.views.corruption import sample_cutouts

USED_SETTINGS = used_settings("objectives.temperature")
_COPIES = 2


class MethodSettings(Settings):
    """SwinUNETR's tasks: cut-outs of a view's two copies, and their contrast (arXiv:2111.14791)."""

    cut: Fraction = Field(0.3, description="Largest fraction replaced by noise; as much by another subject.")
    largest: Fraction = Field(0.25, description="Largest side of a cut-out box, as a fraction of the view's side.")
    width: Count = Field(512, description="Width of the contrasted vectors.")


class SwinTasks(SingleNetwork):
    """One network for three tasks of equal weight.

    Args:
        backbone, seed: as for `SingleNetwork`.
        cut, largest, width: see `MethodSettings`.
        temperature: of NT-Xent.
    """

    def __init__(
        self,
        backbone: Backbone,
        cut: float = 0.3,
        largest: float = 0.25,
        width: int = 512,
        temperature: float = 0.5,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, seed=seed)
        self.rotation_head = nn.Linear(backbone.map_channels, 4)
        self.contrast_head = nn.Linear(backbone.map_channels, width)
        self._cut, self._largest, self._temperature = cut, largest, temperature
        backbone.freeze_unused(finest=True, to_image=True)

    def run(self, batch: ViewBatch) -> Latents:
        """Encode, pool and restore both copies of every view."""
        inputs, targets, valid, rotations = self.copies(batch)
        self.backbone.sample_drop_path(self._generators(batch, "drop path") if self.training else None)
        encoded = self.backbone.encode(inputs)
        latents = {
            "pooled": masked_mean(self.backbone.maps(encoded), valid),
            "image": self.backbone.to_image([self.backbone.finest(encoded)]),
            "input": inputs,
            "target": targets,
            "valid": valid,
            "rotations": rotations,
        }
        return {name: value.unflatten(0, (_COPIES, batch.count[1])) for name, value in latents.items()}

    def copies(self, batch: ViewBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return inputs, targets, valid voxels and rotations (in quarter turns) of N = 2·B copies."""
        columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        volumes, device = batch.count[1], batch.views.device
        for number, rng in enumerate(self._generators(batch, "copies")):
            copy, k = divmod(number, volumes)
            turn = int(rng.integers(4))
            view, aim, valid = (torch.rot90(x[0, k], turn, (2, 3)) for x in (batch.views, batch.targets, batch.valid))
            other = torch.rot90(batch.views[0, k ^ 1], turn, (2, 3))
            generator = make_torch_generator(device, self._seed, int(batch.sample[k]), copy, "cut-out")
            noise = torch.randn(view.shape, generator=generator, device=device, dtype=view.dtype)
            for content in (noise, other):
                where = send(sample_cutouts(rng, batch.size, self._cut, self._largest), device)
                view = torch.where(where & valid, content, view)
            columns.append((view, aim, valid, torch.tensor(turn)))
        inputs, targets, valids, rotations = (torch.stack([column[k] for column in columns]) for k in range(4))
        return inputs, targets, valids, send(rotations, device)

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Return the sum of the losses of the three tasks."""
        names = ("image", "target", "valid", "rotations")
        image, target, valid, rotations = (latents[name].flatten(0, 1) for name in names)
        logits = at_least_float32(self.rotation_head(latents["pooled"].flatten(0, 1)))
        contrast = view_nt_xent(self.contrast_head(latents["pooled"]), batch.subject_id, self._temperature)
        terms = {
            "reconstruction": masked_l1(image, target, valid),
            "rotation": F.cross_entropy(logits, rotations),
            "contrastive": contrast.loss,
        }
        accuracy = (logits.argmax(1) == rotations).float().mean()
        logs = {**terms, "rotation_accuracy": accuracy, "contrast_accuracy": contrast.accuracy}
        shown = {"input": "input", "reconstruction": "image", "targets": "target"}
        return step_result(sum_terms(terms), latents, logs, {name: latents[key][0] for name, key in shown.items()})

    def _generators(self, batch: ViewBatch, purpose: str) -> list[np.random.Generator]:
        samples = batch.sample.tolist()
        return [make_rng(self._seed, sample, copy, purpose) for copy in range(_COPIES) for sample in samples]


def requirements(recipe: Recipe) -> MethodRequirements:  # noqa: ARG001
    """Return the requirements: volumes in pairs, of several subjects."""
    return MethodRequirements(
        group=2,
        needs_multiple_subjects="add some, or use another method.",
        distinct_subjects=True,
        images=float(_COPIES),
    )


def build(recipe: Recipe) -> SwinTasks:
    """Build the method of a recipe.

    Raises:
        UserError: views that cannot be rotated by 90°.
    """
    size = recipe.views.patch_size
    if size[1] != size[2]:
        raise UserError(f"views.patch_size = {list(size)} cannot be rotated by 90°: its last two sides must be equal.")
    settings, temperature = MethodSettings.model_validate(recipe.pretext), recipe.objectives.temperature
    return SwinTasks(build_for(recipe), **settings.model_dump(), temperature=temperature, seed=recipe.seed)
