"""`viewalign export`: weights for other software."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Result, settings_of


def export(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="The folder of a run or a fine-tuning.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Destination; default: a folder in RUN.", show_default=False)
    ] = None,
) -> Result:
    """Export a run's newest encoder, or a fine-tuned model, for other software.

    \b
    format=   what
    encoder   default: weights for Python and the Hub, a checkpoint for nnssl
    nnunet    of a run: plan and checkpoint for nnUNetv2_train (dataset=NUMBER);
              of a fine-tuning: a model for nnUNetv2_predict
    onnx      a fine-tuned classification or regression
    ssl3d     a ResEnc-L or Primus-M at 1 mm, for the SSL3D challenge
    nnssl     the whole network, for another pretraining with nnssl
    fomo      a ResEnc, for the fine-tuning of the FOMO baseline

    No export contains data of subjects or a local path. README.md of format=encoder is a model card: read it before you
    publish the weights. hub=OWNER/NAME publishes them (`hf auth login` once); others load them as hf:OWNER/NAME.

    To fine-tune with nnU-Net and the published schedules, no export is needed: see `viewalign finetune segmentation`.

    An ONNX model averages the folds and takes any batch size; its outputs are compared with those of torch. model.json
    beside it has the preparation of images, and `viewalign predict` uses it. An export for SSL3D passes the same checks
    as in the challenge's loaders; a Primus gets one file for segmentation and one for classification.

    [b]Examples[/b]

    viewalign export run

    viewalign export run hub=my-group/brain-resenc licence=cc-by-4.0 public=true

    viewalign export run format=nnunet dataset=2

    viewalign export heart -o heart-model format=nnunet

    viewalign export tuned -o tuned-onnx format=onnx
    """
    import viewalign

    exported = viewalign.export(run, out, **settings_of(context))
    return Result({"path": exported.path, "text": exported.text}, exported.text)
