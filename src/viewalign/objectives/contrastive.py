"""NT-Xent between views and networks, with a rule for who may be a negative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.precision import full_precision

_NEVER = float("-inf")


class Contrast(NamedTuple):
    """The loss and how often the positive was the most similar candidate, both scalars."""

    loss: Tensor
    accuracy: Tensor


@full_precision
def global_nt_xent(student: Tensor, teacher: Tensor, subject: Tensor, temperature: float = 0.5) -> Contrast:
    """Return NT-Xent over image embeddings of two views (Chen et al., arXiv:2002.05709), student against teacher.

    Rows are the 2B student and the 2B teacher embeddings. A row's positive is the other view of its image by the other
    network; its negatives are all embeddings of other subjects. An image's other embeddings are left out.

    Args:
        student, teacher: (2, B, C).
        subject: (B,) equal where two images may not be strangers.
        temperature: divides the cosine.

    With one subject alone there are no negatives and the loss is 0: whoever draws the batch must see to it that there
    are more.
    """
    views, images, _ = student.shape
    rows = F.normalize(torch.cat([student, teacher]).flatten(0, 1), dim=-1)
    owner = subject.to(rows.device).repeat(2 * views)
    place = torch.arange(2 * views * images, device=rows.device)
    network, view, image = place // (views * images), place // images % views, place % images
    positive = (1 - network) * views * images + (1 - view) * images + image
    logits = rows @ rows.T / temperature
    stranger = owner[:, None] != owner[None]
    candidate = stranger.scatter(1, positive[:, None], True)
    logits = logits.masked_fill(~candidate, _NEVER)
    hits = logits.argmax(1) == positive
    return Contrast(F.cross_entropy(logits, positive), hits.float().mean())
