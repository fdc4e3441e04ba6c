"""What changes each time a case is seen in training: geometry and intensities, by the rules of pretraining's views.

It is worked out on the device that the case lies on: a GPU would wait for a CPU that does it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from viewalign.randomness import torch_generator_of
from viewalign.views import drawing, photometric, resample
from viewalign.views.drawing import Drawing
from viewalign.views.photometric import Photometrics


def augment(
    image: Tensor,
    valid: Tensor,
    present: np.ndarray,
    rng: np.random.Generator,
    geometry: Drawing,
    colours: Photometrics,
    channel_dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Draw one change of a case.

    Args:
        image: float32 (C, D, H, W), on any device.
        valid: bool (1, D, H, W), on the same.
        present: bool (C,), which channels the case has; at least one of them always stays.
        rng: the sample's own generator.
        geometry: mirror, rotation, scale; its size is the field of view.
        colours: changes of intensity, drawn for each channel by itself.
        channel_dropout: probability that a channel is taken away.
    """
    size = (image.shape[1], image.shape[2], image.shape[3])
    affine = drawing.draw_single(rng, size, geometry)
    moved = resample.cut(image, affine, size)
    inside = resample.cut(valid.float(), affine, size) > 0.5
    kept = np.flatnonzero(present)
    drops = rng.random(len(present)) < channel_dropout
    spared = int(rng.choice(kept))
    out = torch.zeros_like(moved)
    for channel in kept:
        change = photometric.draw(rng, colours)
        noise = torch_generator_of(image.device, int(rng.integers(2**31)))
        if not drops[channel] or channel == spared:
            view = photometric.recolour(moved[channel : channel + 1], inside, change)
            out[channel] = photometric.degrade(view, inside, change, noise)[0]
    return out, inside
