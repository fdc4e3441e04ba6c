"""GVSL (He et al., arXiv:2303.00874): register pairs of volumes from their features, and restore corrupted views."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from viewalign.config import Recipe
from viewalign.losses.reconstruction import masked_mse
from viewalign.losses.registration import local_ncc, roughness
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.requirements import build_for
from viewalign.methods.rng import corrupt_views, generators
from viewalign.methods.single_network import SingleNetwork, step_result, sum_terms
from viewalign.networks.backbone import Backbone
from viewalign.networks.layers import run_stage
from viewalign.utils.pooling import masked_mean
from viewalign.utils.precision import at_least_float32, send
from viewalign.utils.settings import Count, Fraction, OddCount, Settings
from viewalign.utils.shapes import Size, spatial_size
from viewalign.views.batch import ViewBatch
from viewalign.views.corruption import CorruptionConfig
from viewalign.views.feature_grids import resize
from viewalign.views.resampling import map_grid, sample_displacement_field, voxel_to_cell, warp

_LARGEST = 0.5
"""Largest entry of an affine's deviation from the identity, and largest shift relative to the side."""


class AffineHead(nn.Module):
    """Predicts an affine from the pooled features of a pair; initialised to the identity.

    Args:
        inputs: channels of both vectors together.
        width: of the hidden layer.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 12))
        _zero_init(self.layers[2])

    def forward(self, pairs: Tensor, size: Size) -> Tensor:
        """Return affines (N, 3, 4) between voxel indices of views of `size`, about their centre."""
        out = _LARGEST * torch.tanh(at_least_float32(self.layers(pairs)))
        sides = send(torch.tensor(size, dtype=out.dtype), out.device)
        middle = (sides - 1) / 2
        linear = torch.eye(3, dtype=out.dtype, device=out.device) + out[:, :9].unflatten(1, (3, 3))
        shift = middle + out[:, 9:] * sides - (linear * middle).sum(-1)
        return torch.cat([linear, shift[..., None]], dim=-1)


class FieldHead(nn.Module):
    """Predicts displacements in voxels from the concatenated maps of a pair; initialised to zero.

    Args:
        inputs: channels of both maps together.
        width: of the hidden layers.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(inputs, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, 3, 3, padding=1),
        )
        _zero_init(self.layers[4])

    def forward(self, pairs: Tensor) -> Tensor:
        """Return displacements (N, 3, d, h, w)."""
        return at_least_float32(run_stage(self.layers, pairs))


def _zero_init(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class MethodSettings(Settings):
    """GVSL: how views are deformed and corrupted, and its heads (arXiv:2303.00874)."""

    p_elastic: Fraction = Field(0.5, description="Probability of an elastic deformation.")
    elastic: Fraction = Field(0.03, description="Its standard deviation, as a fraction of a view's side.")
    p_shuffle: Fraction = Field(0.5, description="Probability of shuffling voxels within small boxes.")
    p_nonlinear: Fraction = Field(0.9, description="Probability of mapping intensities by a random Bézier curve.")
    p_paint: Fraction = Field(0.5, description="Probability of replacing boxes, or all but some boxes, by noise.")
    p_outpaint: Fraction = Field(0.0, description="Fraction of these cases in which all but some boxes are replaced.")
    shuffle_size: Fraction = Field(0.1, description="Largest side of a shuffled box, as a fraction of the view's side.")
    width: Count = Field(32, description="Width of the registration heads.")
    window: OddCount = Field(9, description="Window of the local correlation, in voxels; an odd number.")


class GVSL(SingleNetwork):
    """One network whose features register volumes, taken in pairs, and restore them.

    Args:
        backbone, seed: as for `SingleNetwork`.
        corruption: which corruptions are applied.
        p_elastic, elastic, width, window: see `MethodSettings`.
    """

    def __init__(
        self,
        backbone: Backbone,
        corruption: CorruptionConfig,
        p_elastic: float = 0.5,
        elastic: float = 0.03,
        width: int = 32,
        window: int = 9,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, seed=seed)
        self._corruption = corruption
        self.affine_head = AffineHead(2 * backbone.map_channels, 4 * width)
        self.field_head = FieldHead(2 * backbone.finest_channels, width)
        self._p_elastic, self._elastic, self._window = p_elastic, elastic, window
        backbone.freeze_unused(finest=True, to_image=True)

    def run(self, batch: ViewBatch) -> Latents:
        """Deform and corrupt views, restore them, and register each volume of a pair to the other."""
        deformed = self.clean_views(batch)
        inputs = corrupt_views(deformed, self._corruption, self._seed)
        target, valid = deformed.targets[0], deformed.valid[0]
        self.sample_drop_path(batch)
        encoded = self.backbone.encode(inputs)
        finest = self.backbone.finest(encoded)
        affine, field = self.register(masked_mean(self.backbone.maps(encoded), valid), finest, batch.size)
        moved = warp(swap_pairs(target * valid), map_grid(affine, batch.size, batch.size, resize(field, batch.size)))
        latents = {"image": self.backbone.to_image([finest]), "moved": moved, "field": field}
        latents |= {"input": inputs, "target": target, "valid": valid}
        return {name: value[None] for name, value in latents.items()}

    def clean_views(self, batch: ViewBatch) -> ViewBatch:
        """Return the batch with views, targets and validity deformed elastically, each image with its own field."""
        images, valid = batch.views[0], batch.valid[0]
        identity = torch.eye(3, 4, dtype=images.dtype, device=images.device)[None]
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        for k, rng in enumerate(generators(batch, self._seed, "elastic")):
            view, target, inside = images[k], batch.targets[0, k], valid[k]
            if rng.random() < self._p_elastic:
                field = send(sample_displacement_field(rng, batch.size, self._elastic), images.device).to(images.dtype)
                where = map_grid(identity, batch.size, batch.size, field[None])
                inside = warp(valid[k : k + 1].to(images), where)[0] > 0.999
                view, target = (warp(image[None], where)[0] * inside for image in (view, target))
            columns.append((view, target, inside))
        views, targets, valid = (torch.stack([column[k] for column in columns])[None] for k in range(3))
        return replace(batch, views=views, targets=targets, valid=valid)

    def register(self, vectors: Tensor, finest: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Predict how the other volume of each pair is moved onto this one.

        Args:
            vectors: (B, C) pooled features.
            finest: (B, C, d, h, w) finest maps.
            size: of the views.

        Returns:
            Affines (B, 3, 4) from voxels of this view to the other's, and displacements (B, 3, d, h, w) in voxels that
            are applied first, on the grid of the maps, or at half the resolution if that is the view's.
        """
        affine = self.affine_head(torch.cat([vectors, swap_pairs(vectors)], dim=1), size)
        grid = spatial_size(finest)
        if grid == size:
            grid = (size[0] // 2, size[1] // 2, size[2] // 2)
        features = resize(finest, grid)
        where = voxel_to_cell(map_grid(affine, grid, size), grid, size)
        return affine, self.field_head(torch.cat([warp(swap_pairs(features), where), features], dim=1))

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Return the sum of dissimilarity after registration, roughness of the field, and error of restoring."""
        names = ("image", "moved", "field", "target", "valid")
        image, moved, field, target, valid = (latents[name][0] for name in names)
        terms = {
            "reconstruction": masked_mse(image, target, valid),
            "dissimilarity": local_ncc(moved, target, valid, self._window),
            "roughness": roughness(field, batch.size),
        }
        pictures = {"input": latents["input"][0], "reconstruction": image, "targets": target}
        return step_result(sum_terms(terms), latents, terms, pictures)


def swap_pairs(values: Tensor) -> Tensor:
    """Return values (B, ...) with the two of each pair exchanged."""
    swapped: Tensor = values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return swapped


def requirements(recipe: Recipe) -> MethodRequirements:  # noqa: ARG001
    """Return the requirements: volumes in pairs; the gradient of `warp` is not deterministic on a GPU."""
    return MethodRequirements(group=2, distinct_subjects=True, deterministic=False)


def build(recipe: Recipe) -> GVSL:
    """Build the method of a recipe."""
    settings = MethodSettings.model_validate(recipe.pretext)
    corruption = {"p_shuffle", "p_nonlinear", "p_paint", "p_outpaint", "shuffle_size"}
    return GVSL(
        build_for(recipe),
        CorruptionConfig(**settings.model_dump(include=corruption)),
        **settings.model_dump(exclude=corruption),
        seed=recipe.seed,
    )
