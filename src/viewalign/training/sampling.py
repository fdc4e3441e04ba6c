"""Which volumes of a store are used for training, and how often each is sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from viewalign.data.store import Store
from viewalign.errors import ExcludedImageError, UserError
from viewalign.utils.overrides import similar
from viewalign.utils.rng import make_rng
from viewalign.views import resampling
from viewalign.views.sampling import ViewSampler, ViewSamplingConfig

Unit = Literal["image", "subject", "dataset"]


def admitted(
    store: Store,
    modalities: Sequence[str] = (),
    max_quality_score: float | None = None,
    factors: Mapping[str, float] | None = None,
) -> NDArray[np.bool_]:
    """Return which volumes are used, bool (N,).

    Args:
        store: the volumes.
        modalities: names, in any case; empty admits all.
        max_quality_score: exclude volumes with a higher score (lower is better, as in OpenMind); volumes without a
            score are kept.
        factors: by image id, subject id or dataset, as for `weights_of`; those of factor 0 are excluded.

    Raises:
        UserError: a modality that no volume has, a name that is not in the store, or no volume is left.
    """
    inside = np.ones(len(store), dtype=bool)
    if modalities:
        names = np.array([name.lower() for name in store.modalities])
        known = np.unique(names)
        for name in modalities:
            if name.lower() not in known:
                raise UserError(
                    f"sampling.modalities: no volume is of modality '{name}'; there are {', '.join(known)}."
                )
        inside &= np.isin(names, [name.lower() for name in modalities])
    if max_quality_score is not None:
        inside &= ~(store.quality > max_quality_score)
    if factors:
        inside &= _factors(store, np.arange(len(store)), factors) > 0
    if not inside.any():
        raise UserError(
            "sampling.modalities, sampling.max_quality_score and sampling.weights together leave no volume to train on."
        )
    return inside


def check_channels(store: Store, inside: NDArray[np.bool_], channels: int) -> None:
    """Check that all volumes that are used have the network's number of channels.

    Raises:
        UserError: some have another number.
    """
    others = np.flatnonzero(inside & (store.channels != channels))
    if len(others):
        k = int(others[0])
        raise UserError(
            f"network.channels={channels}, but not all volumes have as many: {len(others):,} of {len(store):,} differ, "
            f"such as {store.ids[k]} with {int(store.channels[k])}. Set network.channels to the number "
            "of channels of all volumes, or prepare 4-D images with frames=volumes."
        )


def check_contrast(store: Store, chosen: NDArray[np.int64]) -> None:
    """Reject a store whose volumes are constant, such as zeros.

    Three volumes are read, and only if all have the same foreground threshold, as in such a store.

    Raises:
        UserError: the volumes that were read are constant.
    """
    if np.ptp(store.foreground_thresholds[chosen]) > 0:
        return
    looked_at = chosen[np.unique(np.linspace(0, len(chosen) - 1, 3).astype(int))]
    if all(_is_constant(store, int(k)) for k in looked_at):
        names = ", ".join(str(store.ids[int(k)]) for k in looked_at)
        raise UserError(f"Each volume of the store has one value only (read: {names}); training on it is not possible.")


def check_sizes(
    store: Store, chosen: NDArray[np.int64], sample: ViewSampler, views: ViewSamplingConfig, least: float
) -> None:
    """Reject a store in which a method that compares views of a volume has nothing to compare.

    Args:
        store: the volumes.
        chosen: numbers of the training volumes, of which at most 40 are checked, by one sample each.
        sample, views: how views are sampled.
        least: `MethodRequirements.min_valid`.

    Raises:
        UserError: in most volumes fewer than two views count.
    """
    looked_at = chosen[np.unique(np.linspace(0, len(chosen) - 1, 40).astype(int))]
    empty = 0
    for k in map(int, looked_at):
        found = sample(make_rng(0, "sizes", k), store.shape(k), views, store.spacing(k)).to_volume
        valid = [float(resampling.inside(store.shape(k), view, views.size).double().mean()) for view in found]
        empty += sum(share >= least for share in valid) < 2
    if 2 * empty > len(looked_at):
        raise UserError(
            f"views.patch_size={list(views.size)} is too large for these volumes: in {empty} of {len(looked_at)} that "
            f"were checked, fewer than two views have {least:.0%} of their voxels inside (pretext.min_valid), and "
            "there is nothing to compare. Lower views.patch_size or pretext.grid."
        )


def _is_constant(store: Store, k: int) -> bool:
    try:
        return bool(np.ptp(store.read(k)) == 0)
    except ExcludedImageError:  # training excludes it and reports the reason
        return False


def weights_of(
    store: Store, chosen: NDArray[np.int64], by: Unit = "image", factors: Mapping[str, float] | None = None
) -> NDArray[np.float64] | None:
    """Return the relative sampling frequency of each chosen volume; None if it is uniform.

    It is 1, divided by the number of chosen volumes of its subject or dataset, times the factor of its image, subject
    or dataset (the first of these that has one).

    Args:
        store: the volumes.
        chosen: numbers of volumes.
        by: which of images, subjects or datasets are sampled uniformly.
        factors: by image id, subject id or dataset.

    Raises:
        UserError: a name that is not in the store, or all factors are 0.
    """
    if by == "image" and not factors:
        return None
    weights = np.ones(len(chosen))
    if by != "image":
        names = store.subjects if by == "subject" else store.datasets
        _, group, sizes = np.unique([names[int(k)] for k in chosen], return_inverse=True, return_counts=True)
        weights /= sizes[group]
    if factors:
        weights *= _factors(store, chosen, factors)
    if not weights.any():
        raise UserError("sampling.weights gives every volume the weight 0.")
    return weights


def _factors(store: Store, chosen: NDArray[np.int64], factors: Mapping[str, float]) -> NDArray[np.float64]:
    used: set[str] = set()
    values = np.ones(len(chosen))
    for position, k in enumerate(chosen):
        for name in (store.ids[int(k)], store.subjects[int(k)], store.datasets[int(k)]):
            if name in factors:
                values[position] = factors[name]
                used.add(name)
                break
    unknown = [name for name in factors if name not in used]
    known = set(store.datasets) | set(store.subjects) | set(store.ids) if unknown else set()
    for name in unknown:
        if name not in known:
            hint = similar(name, sorted(known)) or f"; its datasets are {', '.join(sorted(set(store.datasets)))}"
            raise UserError(f"sampling.weights: the store has no dataset, subject or image '{name}'{hint}.")
    return values
