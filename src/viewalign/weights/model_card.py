"""The model card of exported weights."""

from __future__ import annotations

import re
from typing import Any

import yaml

from viewalign.errors import UserError

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,40}")
_TEXT = """---
library_name: viewalign
{licence_line}tags: [medical-imaging, self-supervised-learning, 3d, {family}]
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

encoder = viewalign.load_encoder("{source}")
features = encoder(torch.randn(1, {channels}, {shape}))
features.maps    # feature maps, finest first
features.pooled  # one vector per image
```

`checkpoint_final.pth` and `adaptation_plan.json` are for nnU-Net and nnssl. Images must be prepared as above: {axes}.
nnU-Net does not reorient images; yours must have the same orientation.

## How it was trained

{health}
All settings (none identifies a subject):

```yaml
{recipe}```

## Limits

The encoder was trained only on the data named above. It makes no diagnosis and was not evaluated on a clinical task.
{licence} Before you publish these weights, state here the origin of the data and the population that it represents.

## Cite

- the method: {title}, {paper}
- the software: viewalign {version}, see its CITATION.cff
{cite}"""

_VERDICTS = """Health of its features at the end (`viewalign report` shows it over time):

| figure | value | verdict |
|---|---|---|
{rows}
"""


def render(
    facts: dict[str, Any], source: str, title: str, paper: str, licence: str | None = None, cite: str = ""
) -> str:
    """Fill the card.

    Args:
        facts: of the encoder, as in an export.
        source: what `load_encoder` takes: a folder or `hf:OWNER/NAME`.
        title, paper: the method's title, and its paper.
        licence: of the weights, as the Hugging Face Hub abbreviates it, such as `cc-by-4.0`.
        cite: further citations.

    Raises:
        UserError: an invalid licence.
    """
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise UserError(f"'{licence}' is not an abbreviation of a licence; use one such as cc-by-4.0 or apache-2.0.")
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
        source=source,
        title=title,
        paper=paper,
        axes=_axes(facts["preparation"].get("nnssl_plans")),
        health=_health(facts.get("health", [])),
        recipe=yaml.safe_dump(facts.get("recipe", {}), sort_keys=False, default_flow_style=None, width=100),
        licence_line=f"license: {licence}\n" if licence else "",
        licence=f"Its licence is {licence}." if licence else "No licence was chosen for it yet.",
        cite=f"- {' '.join(cite.split())}\n" if cite.strip() else "",
    )


def _health(rows: list[dict[str, Any]]) -> str:
    """Return the last verdicts on the features as a table."""
    if not rows:
        return "The run was too short to measure its features.\n"
    lines = (f"| {row['title']} | {row['value']:.3g} | {row['level']} |" for row in rows)
    return _VERDICTS.format(rows="\n".join(lines))


def _axes(plans: dict[str, Any] | None) -> str:
    """Describe the orientation: LPS in stores of this package, that of the files in nnssl's layout."""
    if plans is None:
        return "axes in LPS order with the array as (z, y, x)"
    forward = plans["transpose_forward"]
    turned = "" if forward == [0, 1, 2] else f", transposed to {forward}"
    return f"axes as in the files, the array as (z, y, x){turned}, since the data was in nnssl's layout"
