"""The three tasks of SwinUNETR's pretraining (Tang et al., arXiv:2111.14791): inpainting, rotation and contrast.

Each view is copied twice; each copy is turned by a multiple of 90° in the plane of the last two axes and loses boxes to
noise and to another subject's voxels. One network restores the turned view, tells the turn, and tells the copies of one
view from those of other subjects.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.config import Count, Fraction, Recipe, Settings
from viewalign.errors import UserError
from viewalign.losses.contrastive import view_nt_xent
from viewalign.losses.reconstruction import masked_l1
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.pooled_features import pooled
from viewalign.methods.requirements import build_for, used_settings
from viewalign.methods.single_network import SingleNetwork, total
from viewalign.networks.backbone import Backbone
from viewalign.utils.precision import at_least_float32, send
from viewalign.utils.rng import make_rng, make_torch_generator
from viewalign.views.batch import ViewBatch
from viewalign.views.corruption import sample_cutout_boxes

_COPIES = 2


class MethodSettings(Settings):
    """How much of a copy is cut out: at most `cut` of it to noise and as much to another subject, in boxes of at most
    `largest` of a side; and the width of the contrasted vectors."""

    cut: Fraction = 0.3
    largest: Fraction = 0.25
    width: Count = 512


class SwinTasks(SingleNetwork):
    """One network for three tasks of equal weight.

    Args:
        backbone: what is trained.
        cut, largest, width: see `Pretext`.
        temperature: of NT-Xent.
        seed: turns and boxes derive from (seed, sample, copy).
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
        """Spoil, encode, pool and restore both copies of every view."""
        given, aim, valid, turns = self.copies(batch)
        self.backbone.sample_drop_path(self._generators(batch, "drop path") if self.training else None)
        encoded = self.backbone.encode(given)
        vectors = pooled(self.backbone.maps(encoded), valid)
        image = self.backbone.to_image([self.backbone.finest(encoded)])
        made = {"pooled": vectors, "image": image, "input": given, "aim": aim, "valid": valid, "turns": turns}
        return {name: value.unflatten(0, (_COPIES, batch.count[1])) for name, value in made.items()}

    def copies(self, batch: ViewBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the network is given, what it shall restore, what is valid, and the turns, for N = 2·B copies."""
        columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        volumes, device = batch.count[1], batch.views.device
        for number, rng in enumerate(self._generators(batch, "copies")):
            copy, k = divmod(number, volumes)
            turn = int(rng.integers(4))
            view, aim, valid = (torch.rot90(x[0, k], turn, (2, 3)) for x in (batch.views, batch.targets, batch.valid))
            other = torch.rot90(batch.views[0, k ^ 1], turn, (2, 3))
            noise = make_torch_generator(device, self._seed, int(batch.sample[k]), copy, "cut-out")
            filling = torch.randn(view.shape, generator=noise, device=device, dtype=view.dtype)
            for content in (filling, other):
                where = send(sample_cutout_boxes(rng, batch.size, self._cut, self._largest), device)
                view = torch.where(where & valid, content, view)
            columns.append((view, aim, valid, torch.tensor(turn)))
        given, aims, valids, turns = (torch.stack([column[k] for column in columns]) for k in range(4))
        return given, aims, valids, send(turns, device)

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Add the losses of the three tasks up."""
        image, aim, valid, turns = (latents[name].flatten(0, 1) for name in ("image", "aim", "valid", "turns"))
        told = at_least_float32(self.rotation_head(latents["pooled"].flatten(0, 1)))
        contrast = view_nt_xent(self.contrast_head(latents["pooled"]), batch.subject_id, self._temperature)
        terms = {
            "reconstruction": masked_l1(image, aim, valid),
            "rotation": F.cross_entropy(told, turns),
            "contrastive": contrast.loss,
        }
        right = (told.argmax(1) == turns).float().mean()
        logs = {**terms, "rotation_accuracy": right, "contrast_accuracy": contrast.accuracy}
        pictures = {"input": latents["input"][0], "reconstruction": latents["image"][0], "targets": latents["aim"][0]}
        return self.result(total(terms), latents, logs, pictures)

    def _generators(self, batch: ViewBatch, purpose: str) -> list[np.random.Generator]:
        samples = batch.sample.tolist()
        return [make_rng(self._seed, sample, copy, purpose) for copy in range(_COPIES) for sample in samples]


USED_SETTINGS = used_settings("objectives.temperature")


def requirements(recipe: Recipe) -> MethodRequirements:  # noqa: ARG001
    """Ask for volumes in twos, of several subjects."""
    return MethodRequirements(
        group=2, needs_multiple_subjects="add some, or take another method.", images=float(_COPIES)
    )


def build(recipe: Recipe) -> SwinTasks:
    """Build the method that a recipe describes.

    Raises:
        UserError: a view size that the network cannot take, or that cannot be turned.
    """
    size = recipe.views.size
    if size[1] != size[2]:
        raise UserError(f"views.size = {list(size)} cannot be turned by 90°: its last two sides must be equal.")
    pretext, temperature = MethodSettings.model_validate(recipe.pretext), recipe.objectives.temperature
    return SwinTasks(build_for(recipe), **pretext.model_dump(), temperature=temperature, seed=recipe.seed)
