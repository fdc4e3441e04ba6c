"""Heads that tell how one image is moved onto another, from the features of both; they begin by moving nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from viewalign.config import Count, Fraction, Recipe, Settings
from viewalign.losses.reconstruction import masked_mse
from viewalign.losses.registration import local_ncc, roughness
from viewalign.methods import rng as draws
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.dense_features import grid_of
from viewalign.methods.pooled_features import pooled
from viewalign.methods.requirements import build_for
from viewalign.methods.single_network import SingleNetwork, total
from viewalign.networks.backbone import Backbone
from viewalign.networks.layers import run_stage
from viewalign.utils.precision import at_least_float32, send
from viewalign.views.batch import ViewBatch
from viewalign.views.corruption import CorruptionConfig
from viewalign.views.feature_grids import resize
from viewalign.views.resampling import map_places, sample_displacement_field, to_cells, warp

_MOST = 0.5


class AffineHead(nn.Module):
    """From pooled features of a pair to an affine.

    Args:
        inputs: channels of both vectors together.
        width: of the hidden layer.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 12))
        _begin_at_zero(self.layers[2])

    def forward(self, pairs: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Return affines (N, 3, 4) between voxel indices of views of `size`, about their middle.

        No entry of the linear part differs from the identity's by more than a half, no shift exceeds half a side.
        """
        told = _MOST * torch.tanh(at_least_float32(self.layers(pairs)))
        sides = send(torch.tensor(size, dtype=told.dtype), told.device)
        middle = (sides - 1) / 2
        linear = torch.eye(3, dtype=told.dtype, device=told.device) + told[:, :9].unflatten(1, (3, 3))
        shift = middle + told[:, 9:] * sides - (linear * middle).sum(-1)
        return torch.cat([linear, shift[..., None]], dim=-1)


class FieldHead(nn.Module):
    """From maps of a pair, laid over each other, to displacements.

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
        _begin_at_zero(self.layers[4])

    def forward(self, pairs: Tensor) -> Tensor:
        """Return displacements (N, 3, d, h, w) in voxels of the view."""
        return at_least_float32(run_stage(self.layers, pairs))


def _begin_at_zero(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear | nn.Conv3d)
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class MethodSettings(Settings):
    """How views are bent and spoilt, how wide the heads are, and the window of the correlation in voxels.

    `p_elastic` is the probability of bending, `elastic` its deviation as a share of a side; for the others see
    `views.distortion.Distortions`.
    """

    p_elastic: Fraction = 0.5
    elastic: Fraction = 0.03
    p_shuffle: Fraction = 0.5
    p_bend: Fraction = 0.9
    p_paint: Fraction = 0.5
    p_outer: Fraction = 0.0
    largest: Fraction = 0.1
    width: Count = 32
    window: Count = 9


class GVSL(SingleNetwork):
    """One network whose features match volumes, taken in twos, and restore them.

    Args:
        backbone: what is trained.
        changes: how views are spoilt.
        p_elastic, elastic, width, window: see `Pretext`.
        seed: what happens to a view derives from (seed, sample, view).
    """

    def __init__(
        self,
        backbone: Backbone,
        changes: CorruptionConfig,
        p_elastic: float = 0.5,
        elastic: float = 0.03,
        width: int = 32,
        window: int = 9,
        *,
        features: int,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, seed=seed)
        self._changes = changes
        self.affine_head = AffineHead(2 * backbone.map_channels, 4 * width)
        self.field_head = FieldHead(2 * features, width)
        self._p_elastic, self._elastic, self._window = p_elastic, elastic, window
        backbone.freeze_unused(finest=True, to_image=True)

    def run(self, batch: ViewBatch) -> Latents:
        """Bend, spoil, restore, and move each volume of a pair onto the other one."""
        bent = self.bend(batch)
        given, aim, valid = draws.corrupt_views(bent, self._changes, self._seed), bent.targets[0], bent.valid[0]
        self.sample_drop_path(batch)
        encoded = self.backbone.encode(given)
        finest = self.backbone.finest(encoded)
        affine, field = self.match(pooled(self.backbone.maps(encoded), valid), finest, batch.size)
        places = map_places(affine, batch.size, batch.size, resize(field, batch.size))
        moved = warp(swapped(aim * valid), places)
        made = {"image": self.backbone.to_image([finest]), "moved": moved, "field": field}
        made |= {"input": given, "aim": aim, "valid": valid}
        return {name: value[None] for name, value in made.items()}

    def clean(self, batch: ViewBatch) -> ViewBatch:
        """Return the bent views, which are what is restored."""
        return self.bend(batch)

    def bend(self, batch: ViewBatch) -> ViewBatch:
        """Return the batch with views, targets and validity bent elastically, each in its own way or not at all."""
        images, valid = batch.views[0], batch.valid[0]
        still = torch.eye(3, 4, dtype=images.dtype, device=images.device)[None]
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        for k, rng in enumerate(draws.generators(batch, self._seed, "elastic")):
            one = (images[k], batch.targets[0, k], valid[k])
            if rng.random() < self._p_elastic:
                field = send(sample_displacement_field(rng, batch.size, self._elastic), images.device).to(images.dtype)
                where = map_places(still, batch.size, batch.size, field[None])
                seen = warp(valid[k : k + 1].to(images), where)[0] > 0.999
                one = (warp(one[0][None], where)[0] * seen, warp(one[1][None], where)[0] * seen, seen)
            columns.append(one)
        views, aims, seen = (torch.stack([column[k] for column in columns])[None] for k in range(3))
        return replace(batch, views=views, targets=aims, valid=seen)

    def match(self, vectors: Tensor, finest: Tensor, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Tell how the other volume of each pair is moved onto this one.

        Args:
            vectors: (B, C) of whole images.
            finest: (B, C, d, h, w), their finest maps.
            size: of the views.

        Returns:
            Affines (B, 3, 4) from this view's voxels to the other's, and displacements (B, 3, d, h, w) in voxels that
            come before them, on the maps' grid, or at half the resolution of the view where they are as fine as it.
        """
        affine = self.affine_head(torch.cat([vectors, swapped(vectors)], dim=1), size)
        grid = grid_of(finest)
        if grid == size:
            grid = (size[0] // 2, size[1] // 2, size[2] // 2)
        features = resize(finest, grid)
        where = to_cells(map_places(affine, grid, size), grid, size)
        return affine, self.field_head(torch.cat([warp(swapped(features), where), features], dim=1))

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Add up how unlike the moved and the fixed image are, how rough the field is, and the error of restoring."""
        image, moved, field, aim, valid = (latents[name][0] for name in ("image", "moved", "field", "aim", "valid"))
        terms = {
            "reconstruction": masked_mse(image, aim, valid),
            "dissimilarity": local_ncc(moved, aim, valid, self._window),
            "roughness": roughness(field),
        }
        pictures = {"input": latents["input"][0], "reconstruction": image, "targets": aim}
        return self.result(total(terms), latents, terms, pictures)


def swapped(values: Tensor) -> Tensor:
    """Return values (B, ...) with the two of each pair exchanged."""
    exchanged: Tensor = values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return exchanged


def requirements(recipe: Recipe) -> MethodRequirements:  # noqa: ARG001
    """Ask for volumes in twos; torch has no gradient of `warp` that repeats on a GPU."""
    return MethodRequirements(group=2, repeats=False)


def build(recipe: Recipe) -> GVSL:
    """Build the method that a recipe describes.

    Raises:
        UserError: a view size that the network cannot take.
    """
    pretext, backbone = MethodSettings.model_validate(recipe.pretext), build_for(recipe)
    changes = {"p_shuffle", "p_bend", "p_paint", "p_outer", "largest"}
    return GVSL(
        backbone,
        CorruptionConfig(**pretext.model_dump(include=changes)),
        **pretext.model_dump(exclude=changes),
        features=backbone.finest_channels,
        seed=recipe.seed,
    )
