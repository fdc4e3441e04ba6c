"""NT-Xent (Chen et al., arXiv:2002.05709) between views and networks, with a rule for who may be a negative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.losses.reduction import mean_per_view
from viewalign.utils.distributed import gather_over_processes, rank
from viewalign.utils.precision import full_precision, send

_NEVER = float("-inf")


class Contrast(NamedTuple):
    """The loss and how often the positive was the most similar candidate, both scalars."""

    loss: Tensor
    accuracy: Tensor


@full_precision
def global_nt_xent(student: Tensor, teacher: Tensor, subject: Tensor, temperature: float = 0.5) -> Contrast:
    """Return NT-Xent over image embeddings of two views, student against teacher, over all processes.

    Rows are the 2B student and the 2B teacher embeddings. A row's positive is the other view of its image by the other
    network; its negatives are all embeddings of other subjects, on whichever process they are. An image's other
    embeddings are left out. Each process answers for its own rows, so that the mean over processes is the whole loss.

    Args:
        student, teacher: (2, B, C) of this process.
        subject: (B,) equal where two images may not be strangers.
        temperature: divides the cosine.

    With one subject alone there are no negatives and the loss is 0: whoever draws the batch must see to it that there
    are more.
    """
    mine = F.normalize(torch.stack([student, teacher]), dim=-1)
    everyone = gather_over_processes(mine, dim=2)
    owners = gather_over_processes(send(subject, mine.device))
    _, views, images, _ = mine.shape
    total = owners.shape[0]
    network, view, image = torch.meshgrid(
        *(torch.arange(n, device=mine.device) for n in (2, views, images)), indexing="ij"
    )
    image = (image + rank() * images).flatten()
    positive = (1 - network.flatten()) * views * total + (1 - view.flatten()) * total + image
    stranger = owners[image][:, None] != owners.repeat(2 * views)[None]
    return _contrasted(mine.flatten(0, 2), everyone.flatten(0, 2), positive, stranger, temperature)


@full_precision
def view_nt_xent(embedded: Tensor, subject: Tensor, temperature: float = 0.5) -> Contrast:
    """Return NT-Xent between two views of each image by one network, as in SimCLR, over all processes.

    A row's positive is the other view of its image; its negatives are the views of other subjects.

    Args:
        embedded: (2, B, C) of this process.
        subject, temperature: as for `global_nt_xent`.
    """
    mine = F.normalize(embedded, dim=-1)
    everyone = gather_over_processes(mine, dim=1)
    owners = gather_over_processes(send(subject, mine.device))
    views, images, _ = mine.shape
    view, image = torch.meshgrid(*(torch.arange(n, device=mine.device) for n in (views, images)), indexing="ij")
    image = (image + rank() * images).flatten()
    positive = (1 - view.flatten()) * owners.shape[0] + image
    stranger = owners[image][:, None] != owners.repeat(views)[None]
    return _contrasted(mine.flatten(0, 1), everyone.flatten(0, 1), positive, stranger, temperature)


def _contrasted(rows: Tensor, candidates: Tensor, positive: Tensor, stranger: Tensor, temperature: float) -> Contrast:
    """Return the cross-entropy of rows (R, C) against their positive and all strangers among (K, C) candidates."""
    logits = rows @ candidates.T / temperature
    logits = logits.masked_fill(~stranger.scatter(1, positive[:, None], True), _NEVER)
    hits = logits.argmax(1) == positive
    return Contrast(F.cross_entropy(logits, positive), hits.float().mean())


@full_precision
def dense_nt_xent(
    prediction: Tensor, target: Tensor, weight: Tensor, temperature: float = 0.5, over_batch: bool = False
) -> Tensor:
    """Return NT-Xent over places: the consistency term of C-CVA (arXiv:2509.13846).

    Rows are the student's and the teacher's vectors of a pair of views; a row's positive is the other network's vector
    at the same place, its negatives are both networks' vectors at all other places.

    Args:
        prediction, target: (N, P, C) at the same P places of N pairs.
        weight: (N, P); places of weight 0 are neither anchors nor negatives.
        temperature: divides the cosine.
        over_batch: whether places of other pairs are negatives too, as published; else those of the pair alone.

    Returns:
        A scalar: the weighted mean over a pair's rows, then the plain mean over pairs.
    """
    pairs, places, channels = prediction.shape
    if over_batch:
        rows = [one.reshape(1, pairs * places, channels) for one in (prediction, target)]
        counts = weight.reshape(1, -1)
    else:
        rows, counts = [prediction, target], weight
    both = F.normalize(torch.cat(rows, dim=1), dim=-1)
    length = counts.shape[1]
    logits = both @ both.transpose(1, 2) / temperature
    itself = torch.eye(2 * length, dtype=torch.bool, device=logits.device)
    absent = (counts <= 0).repeat(1, 2)[:, None]
    positive = (torch.arange(2 * length, device=logits.device) + length) % (2 * length)
    kept = torch.zeros_like(itself).scatter(1, positive[:, None], True)
    logits = logits.masked_fill(itself | (absent & ~kept), _NEVER)
    losses = F.cross_entropy(logits.flatten(0, 1), positive.repeat(logits.shape[0]), reduction="none").view(
        -1, 2, length
    )
    return mean_per_view(losses.mean(1).view(pairs, places), weight)
