"""Losses of VoCo (Wu et al., arXiv:2402.17300), which predict the overlap of views from the similarity of features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.precision import at_least_float32, full_precision


@full_precision
def overlap_similarity(targets: Tensor, bases: Tensor) -> Tensor:
    """Return relu(cos) between targets (B, K, C) and bases (B, M, C) of each image, (B, K, M)."""
    a, b = F.normalize(at_least_float32(targets), dim=-1), F.normalize(at_least_float32(bases), dim=-1)
    return (a @ b.transpose(1, 2)).relu()


@full_precision
def overlap_loss(similarity: Tensor, overlap: Tensor, counts: Tensor) -> Tensor:
    """Compare similarities with overlaps: weighted entropy for pairs that overlap, squared similarity for the others.

    Per image Σ y·(-log(1 - |y - p|)) / Σ y over overlapping pairs, plus the mean of p² over the others; then the mean
    over images, so that several processes agree with one.

    Args:
        similarity: (B, K, M) p in [0, 1].
        overlap: (B, K, M) y in [0, 1].
        counts: (B, K, M) bool, false for pairs with a view that shows too little of the volume.
    """
    overlap = overlap.to(similarity.dtype)
    share = overlap * counts
    entropy = -torch.log((1 - (overlap - similarity).abs()).clamp(min=1e-6))
    near = (share * entropy).sum((1, 2)) / share.sum((1, 2)).clamp(min=1e-6)
    apart = ((overlap <= 0) & counts).to(similarity.dtype)
    far = (apart * similarity.square()).sum((1, 2)) / apart.sum((1, 2)).clamp(min=1)
    return (near + far).mean()


@full_precision
def orthogonality(bases: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of relu(cos)² over valid pairs (B, M) of an image's bases (B, M, C), then over images."""
    similarity = overlap_similarity(bases, bases)
    both = torch.triu((counts[:, :, None] & counts[:, None]).to(similarity.dtype), diagonal=1)
    return ((both * similarity.square()).sum((1, 2)) / both.sum((1, 2)).clamp(min=1)).mean()
