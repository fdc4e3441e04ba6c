"""What was learnt, into a network of one's own: the one call that every kind of fine-tuning begins with."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from viewalign.formats import fitting, pretrained
from viewalign.formats.fitting import Fitted
from viewalign.formats.token_order import Order
from viewalign.networks.backbone import Size
from viewalign.training import initial
from viewalign.writing import whole


def read_source(encoder: str | Path, token_order: Order | None = None) -> pretrained.Source:
    """Read pretrained weights from wherever they are.

    Args:
        encoder: a run's folder, an export's, a checkpoint of nnssl's layout, a folder that holds one, a folder of the
            Hugging Face Hub's cache, or `hf:OWNER/NAME` to fetch it.
        token_order: of a Primus of nnssl whose trainer is unknown; see `formats.token_order`.

    Raises:
        UserError: nothing there, damaged, in need of pickle, or no weights of a ResEnc or a Primus.
    """
    return initial.read_source(encoder, token_order)


def transfer_encoder(
    network: nn.Module,
    encoder: str | Path | pretrained.Source,
    size: Size | None = None,
    minimum_share: float = 0.9,
    prefix: str | None = None,
    token_order: Order | None = None,
    report: Path | None = None,
) -> Fitted:
    """Put pretrained encoder weights into a network, in place, and tell what became of each.

    The network may take other image channels (repeated or summed, rescaled), images of another size (a Primus's table
    of positions is resized in 3D), have other kernels (padded or folded) or another depth (what both have is matched by
    name). Everything outside its encoder is left as it is.

    Args:
        network: any module with an encoder of dynamic-network-architectures somewhere in it: nnU-Net's networks, this
            package's backbones, a classifier around one of them.
        encoder: see `read_source`, or what that returned.
        size: (D, H, W) of the images that the network takes; needed for a Primus alone.
        minimum_share: of the encoder's elements that must be covered, in [0, 1].
        prefix: where the encoder lies, such as "backbone.net."; found by itself where there is one.
        token_order: see `read_source`.
        report: a JSON file to write the report to.

    Returns:
        What became of each weight; `print(fitted.text())` shows it.

    Raises:
        UserError: weights that cannot be read, are of another kind of network, or cover too little of the encoder.

    Example:
        ```python
        network = ResidualEncoderUNet(input_channels=3, num_classes=4, ...)
        print(viewalign.transfer_encoder(network, "run").text())
        ```
    """
    source = encoder if isinstance(encoder, pretrained.Source) else read_source(encoder, token_order)
    fitted = fitting.load_encoder_weights(network, source, size, minimum_share, prefix=prefix)
    if report is not None:
        write_report(fitted, report)
    return fitted


def write_report(fitted: Fitted, path: Path) -> None:
    """Write what became of each weight as JSON, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(fitted.as_json(), indent=1) + "\n", encoding="utf-8")
