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
    format=encoder (default) writes
      encoder.safetensors, encoder.json, README.md   for viewalign.load_encoder and the Hugging Face Hub
      checkpoint_final.pth, adaptation_plan.json, config.json   for nnssl and nnU-Net
    It contains no data of subjects and no local path. README.md is the model card: network, figures of the
    data, settings, health of the features, licence, citations. Read it before you publish it. hub=OWNER/NAME
    publishes the files (`hf auth login` once); others then load them as hf:OWNER/NAME.

      viewalign export run hub=my-group/brain-resenc licence=cc-by-4.0 public=true

    format=nnunet: with an encoder and dataset=, a plan in nnU-Net's folders and a complete checkpoint for stock
    nnUNetv2_train -pretrained_weights; with the folder of a fine-tuning, a model for stock nnUNetv2_predict.
    To fine-tune with nnU-Net and the published schedules, no export is needed: see `viewalign finetune segmentation`.

      viewalign export run format=nnunet dataset=4

      viewalign export liver -o liver-model format=nnunet

    format=onnx: a fine-tuned classification or regression (or one of its folds) as model.onnx for any batch size,
    averaged over folds, and model.json with the preparation of images. Its outputs are compared with those of
    torch. `viewalign predict model.onnx` uses it.

      viewalign export tuned -o tuned-onnx format=onnx

    format=ssl3d: a run of a ResEnc-L or a Primus-M on images of 1 mm in the layout of the SSL3D challenge, with the
    same checks as in the challenge's loaders for segmentation and classification. A Primus gets one file for each of
    the two.

      viewalign export run -o ssl3d format=ssl3d

    format=nnssl: the whole network for another pretraining with nnssl, a Primus with nnssl's order of tokens.
    format=fomo: a ResEnc's encoder for the fine-tuning of the FOMO baseline.

      viewalign export run format=nnssl

      viewalign export run format=fomo
    """
    import viewalign

    exported = viewalign.export(run, out, **settings_of(context))
    return Result({"path": exported.path, "text": exported.text}, exported.text)
