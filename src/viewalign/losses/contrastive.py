"""NT-Xent (Chen et al., arXiv:2002.05709) over images and over positions; images of one subject are not negatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.losses.reduction import mean_per_view
from viewalign.utils.distributed import gather_over_processes, rank
from viewalign.utils.precision import at_least_float32, full_precision, send


class Contrast(NamedTuple):
    """The loss, and how often the positive was the most similar candidate; both scalars."""

    loss: Tensor
    accuracy: Tensor


def view_nt_xent(embedded: Tensor, subject: Tensor, temperature: float = 0.5) -> Contrast:
    """Return NT-Xent between two views of each image, as in SimCLR, over the batches of all processes.

    The positive of a row is the other view of its image; its negatives are the views of other subjects. Without a
    second subject there are no negatives and the loss is 0.

    Args:
        embedded: (2, B, C) embeddings of this process.
        subject: (B,) integers, equal for images of one subject.
        temperature: divides the cosine similarity.

    Example:
        >>> loss, accuracy = view_nt_xent(torch.randn(2, 8, 128), subject=torch.arange(8), temperature=0.1)
    """
    return _nt_xent(embedded[None], subject, temperature)


def global_nt_xent(student: Tensor, teacher: Tensor, subject: Tensor, temperature: float = 0.5) -> Contrast:
    """Return NT-Xent between the views of student and teacher, over the batches of all processes.

    The positive of a row is the other view of its image by the other network; its negatives are all views of other
    subjects by both networks. Each process returns the loss of its own rows; their mean is that of the global batch.

    Args:
        student, teacher: (2, B, C) embeddings of this process.
        subject, temperature: as for `view_nt_xent`.
    """
    return _nt_xent(torch.stack([student, teacher]), subject, temperature)


@full_precision
def _nt_xent(embedded: Tensor, subject: Tensor, temperature: float) -> Contrast:
    """Return NT-Xent of embeddings (networks, 2, B, C)."""
    rows = F.normalize(at_least_float32(embedded), dim=-1)
    candidates = gather_over_processes(rows, dim=2)
    owners = gather_over_processes(send(subject, rows.device))
    networks, views, images, _ = rows.shape
    network, view, image = torch.meshgrid(
        *(torch.arange(n, device=rows.device) for n in (networks, views, images)), indexing="ij"
    )
    image = (image + rank() * images).flatten()
    other = (networks - 1 - network.flatten()) * views + 1 - view.flatten()
    positive = other * owners.shape[0] + image
    negative = owners[image][:, None] != owners.repeat(networks * views)[None]
    logits = rows.flatten(0, 2) @ candidates.flatten(0, 2).T / temperature
    logits = logits.masked_fill(~negative.scatter(1, positive[:, None], True), float("-inf"))
    return Contrast(F.cross_entropy(logits, positive), (logits.argmax(1) == positive).float().mean())


@full_precision
def dense_nt_xent(
    prediction: Tensor, target: Tensor, weight: Tensor, temperature: float = 0.5, over_batch: bool = False
) -> Tensor:
    """Return NT-Xent over positions: the consistency term of C-CVA (Vaish et al., arXiv:2509.13846).

    Rows are the student's and the teacher's vectors of a pair of views. The positive of a row is the other network's
    vector at the same position; its negatives are the vectors of both networks at all other positions.

    Args:
        prediction, target: (N, P, C) at the same P positions of N pairs.
        weight: (N, P); positions of weight 0 are neither anchors nor negatives.
        temperature: divides the cosine similarity.
        over_batch: whether positions of other pairs, over all processes, are negatives too, as published; else only
            those of the pair.

    Returns:
        A scalar: the weighted mean over the rows of a pair, then the mean over the pairs of this process.
    """
    mine = prediction.shape[0]
    if over_batch:
        parts = (prediction, target, weight)
        prediction, target, weight = (gather_over_processes(at_least_float32(part)) for part in parts)
    pairs, positions, channels = prediction.shape
    groups = 1 if over_batch else pairs
    rows = [at_least_float32(vectors).reshape(groups, -1, channels) for vectors in (prediction, target)]
    counts = weight.reshape(groups, -1)
    length = counts.shape[1]
    both = F.normalize(torch.cat(rows, dim=1), dim=-1)
    logits = both @ both.transpose(1, 2) / temperature
    itself = torch.eye(2 * length, dtype=torch.bool, device=logits.device)
    absent = (counts <= 0).repeat(1, 2)[:, None]
    positive = (torch.arange(2 * length, device=logits.device) + length) % (2 * length)
    kept = torch.zeros_like(itself).scatter(1, positive[:, None], True)
    logits = logits.masked_fill(itself | (absent & ~kept), float("-inf"))
    losses = F.cross_entropy(logits.flatten(0, 1), positive.repeat(groups), reduction="none")
    by_pair = losses.view(-1, 2, length).mean(1).view(pairs, positions)
    own = slice(rank() * mine, (rank() + 1) * mine) if over_batch else slice(None)
    return mean_per_view(by_pair[own], weight[own])
