"""The model card that goes with exported weights."""

from __future__ import annotations

from typing import Any

_TEXT = """---
library_name: viewalign
tags: [medical-imaging, self-supervised-learning, 3d, {family}]
---

# {network} pretrained by {method}

An encoder for 3D medical images, pretrained without labels by viewalign
{version} with {title} ({paper}).

| | |
|---|---|
| network | {network}, {channels} input channel(s), {parameters:,} encoder parameters |
| views | {size} voxels |
| voxel size | {spacing} |
| normalisation | {normalise} |
| trained | {steps} steps of {batch} volumes |
| data | {volumes} volumes of {subjects} subjects |
| weights | the {weights} network |

## Use

```python
import torch, viewalign

encoder = viewalign.load_encoder("{folder}")
features = encoder(torch.randn(1, {channels}, {shape}))
features.maps    # feature maps, finest first
features.pooled  # one vector an image
```

`checkpoint_final.pth` and `adaptation_plan.json` are for nnU-Net and nnssl. Images must be prepared as above: {axes}.
nnU-Net does not reorient images; see to it that yours lie alike.

## Limits

The encoder has seen only the data named above. It makes no diagnosis and was checked on no clinical task. Say here
where the data came from, under which licence, and whom it represents, before you publish these weights.
"""


def render(facts: dict[str, Any], folder: str, title: str, paper: str) -> str:
    """Fill the card.

    Args:
        facts: of the encoder, as an export tells them.
        folder: what to load it from.
        title, paper: the method's name in words, and where it comes from.
    """
    network = facts["network"]["name"]
    spacing = facts["preparation"].get("spacing")
    size = facts["size"]
    return _TEXT.format(
        family="resenc" if network.startswith("resenc") else "primus",
        network=network,
        method=facts["method"],
        version=facts["viewalign_version"],
        channels=facts["network"]["channels"],
        parameters=facts["encoder_parameters"],
        size=" × ".join(str(n) for n in size),
        shape=", ".join(str(n) for n in size),
        spacing="each image's own" if spacing is None else " × ".join(f"{mm:g}" for mm in spacing) + " mm",
        normalise=facts["preparation"].get("normalise", "unknown"),
        steps=facts["steps"],
        batch=facts["batch"],
        volumes=facts["data"].get("volumes", "unknown"),
        subjects=facts["data"].get("subjects", "unknown"),
        weights=facts["weights"],
        folder=folder,
        title=title,
        paper=paper,
        axes=_axes(facts["preparation"].get("nnssl_plans")),
    )


def _axes(plans: dict[str, Any] | None) -> str:
    """Say how axes lie: in our stores alike, in nnssl's layout as the files have them."""
    if plans is None:
        return "axes in LPS order with the array as (z, y, x)"
    forward = plans["transpose_forward"]
    turned = "" if forward == [0, 1, 2] else f", transposed to {forward}"
    return f"axes as the files have them, the array as (z, y, x){turned}, for these were in nnssl's layout"
