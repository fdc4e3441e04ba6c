"""The head of self-distillation: features to logits over prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.utils.precision import at_least_float32, full_precision


class PrototypeHead(nn.Module):
    """The head of DINO (Caron et al., arXiv:2104.14294): three layers, a unit vector, and its cosines with prototypes.

    Prototypes have unit length (weight normalisation with a fixed gain of 1). Without normalisation over the batch,
    so that each row depends on itself only.

    Args:
        inputs: length of the features.
        width: of the two hidden layers.
        bottleneck: length of the unit vector.
        prototypes: K.
    """

    def __init__(self, inputs: int, width: int = 2048, bottleneck: int = 256, prototypes: int = 8192) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                # 0.02 at a width of 2048 as published; narrower layers keep the scale, so that biases do not take over.
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                nn.init.zeros_(parameter)

    def forward(self, rows: Tensor, fixed: bool = False) -> Tensor:
        """Map rows (..., C) to logits (..., K) in [-1, 1]; the prototypes get a gradient of 0 if they are `fixed`."""
        return cosines(self.layers(rows), _without_gradient(self.prototypes) if fixed else self.prototypes)


def _without_gradient(parameter: Tensor) -> Tensor:
    """Return a parameter with a gradient of 0; without any gradient several processes would wait for it."""
    return parameter.detach() + 0 * parameter


@full_precision
def cosines(rows: Tensor, prototypes: Tensor) -> Tensor:
    """Return the cosines of rows (..., C) with prototypes (K, C), outside autocast: small temperatures divide them."""
    return F.normalize(at_least_float32(rows), dim=-1) @ F.normalize(prototypes, dim=-1).T
