"""Which volumes of a store a run draws from, and how often each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from viewalign.data.store import Store
from viewalign.errors import UserError
from viewalign.utils.overrides import similar

Unit = Literal["image", "subject", "dataset"]


def admitted(store: Store, modalities: Sequence[str] = (), max_quality_score: float | None = None) -> NDArray[np.bool_]:
    """Say of each volume whether it is let in: bool (N,).

    Args:
        store: the volumes.
        modalities: names, in any case; empty lets all in.
        max_quality_score: leave out what scores higher (a lower score is better, as in OpenMind); volumes without a
            score stay.

    Raises:
        UserError: a modality that no volume has, or nothing is left.
    """
    inside = np.ones(len(store), dtype=bool)
    if modalities:
        each = np.array([name.lower() for name in store.modalities])
        there = np.unique(each)
        for name in modalities:
            if name.lower() not in there:
                raise UserError(
                    f"sampling.modalities: no volume is of modality '{name}'; there are {', '.join(there)}."
                )
        inside &= np.isin(each, [name.lower() for name in modalities])
    if max_quality_score is not None:
        inside &= ~(store.quality > max_quality_score)
    if not inside.any():
        raise UserError("sampling.modalities and sampling.max_quality_score together leave no volume to train on.")
    return inside


def check_channels(store: Store, inside: NDArray[np.bool_], channels: int) -> None:
    """Refuse volumes whose channels the network does not take.

    Raises:
        UserError: some volume that is let in has another number of channels.
    """
    others = np.flatnonzero(inside & (store.channels != channels))
    if len(others):
        k = int(others[0])
        raise UserError(
            f"{len(others)} volumes of the store have another number of channels than network.channels={channels}, "
            f"such as {store.ids[k]} with {int(store.channels[k])}. Set network.channels to what all of them have, or "
            "prepare 4-D images with --frames volumes."
        )


def weights_of(
    store: Store, chosen: NDArray[np.int64], by: Unit = "image", factors: Mapping[str, float] | None = None
) -> NDArray[np.float64] | None:
    """Return how often each chosen volume is drawn, relative to the others; None where all are drawn alike.

    A volume's share is 1, divided by the number of chosen volumes of its subject or dataset, times the factor that
    names it, its subject or its dataset; the narrowest name counts, and what has no name has 1.

    Args:
        store: the volumes.
        chosen: their numbers.
        by: what is drawn alike.
        factors: by image id, subject id or dataset; 0 leaves out.

    Raises:
        UserError: a name that is nowhere in the store, a negative factor, or nothing is left.
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
    for place, k in enumerate(chosen):
        for name in (store.ids[int(k)], store.subjects[int(k)], store.datasets[int(k)]):
            if name in factors:
                values[place] = factors[name]
                used.add(name)
                break
    unknown = [name for name in factors if name not in used]
    known = set(store.datasets) | set(store.subjects) | set(store.ids) if unknown else set()
    for name in unknown:
        if name not in known:
            hint = similar(name, sorted(known)) or f"; its datasets are {', '.join(sorted(set(store.datasets)))}"
            raise UserError(f"sampling.weights: the store has no dataset, subject or image '{name}'{hint}.")
    return values
