"""`viewalign finetune segmentation`: an encoder and a labelled dataset to scored predictions, by stock nnU-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_DATA, _PLAN, _TRAINING, _SPLITS, _MACHINE = "Data", "Plan", "Training", "Splits and scores", "Machine"


def segmentation(
    dataset: Annotated[
        str,
        typer.Option(
            help="nnU-Net's number or name of a dataset, or a folder in its layout: dataset.json, imagesTr, labelsTr.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ],
    encoder: Annotated[
        str,
        typer.Option(
            help="A run, an export, a checkpoint of nnssl, or hf:OWNER/NAME.", rich_help_panel=_DATA, show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The fine-tuning's folder.", rich_help_panel=_DATA)],
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="The fair baseline: the same plan, no weights.", rich_help_panel=_TRAINING),
    ] = False,
    epochs: Annotated[
        int, typer.Option(min=1, help="Epochs; published are 1000 and 150.", rich_help_panel=_TRAINING)
    ] = 150,
    iterations: Annotated[int, typer.Option(min=1, help="Steps an epoch.", rich_help_panel=_TRAINING)] = 250,
    validation_iterations: Annotated[
        int, typer.Option(min=1, help="Validation steps an epoch.", rich_help_panel=_TRAINING)
    ] = 50,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate; default 1e-3 (ResEnc) or 1e-4 (Primus), from scratch 1e-2 or 3e-4.",
            rich_help_panel=_TRAINING,
            show_default=False,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="sgd or adamw; default as published.", rich_help_panel=_TRAINING, show_default=False),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Epochs of warm-up.", rich_help_panel=_TRAINING, show_default=False)
    ] = None,
    sawtooth: Annotated[
        bool,
        typer.Option(
            "--sawtooth", help="Train the decoder alone first, the encoder frozen.", rich_help_panel=_TRAINING
        ),
    ] = False,
    precision: Annotated[
        str, typer.Option(help="auto (as nnU-Net), fp32 or bf16.", rich_help_panel=_TRAINING)
    ] = "auto",
    mirror: Annotated[
        bool, typer.Option(help="Mirror in training; leave out where left and right differ.", rich_help_panel=_TRAINING)
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the decoder's first weights.", rich_help_panel=_TRAINING)] = 0,
    spacing: Annotated[
        str,
        typer.Option(help="pretraining, dataset, or three mm as 1,1,1 (D,H,W).", rich_help_panel=_PLAN),
    ] = "pretraining",
    norm: Annotated[str, typer.Option(help="pretraining or dataset.", rich_help_panel=_PLAN)] = "pretraining",
    network: Annotated[
        str,
        typer.Option(help="pretraining, or dataset: nnU-Net's own network, weights bent to it.", rich_help_panel=_PLAN),
    ] = "pretraining",
    patch: Annotated[
        str | None,
        typer.Option(
            help="D,H,W in voxels; default what the pretraining recommends, cut to the images.",
            rich_help_panel=_PLAN,
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Patches a step.", rich_help_panel=_PLAN)] = 2,
    plans: Annotated[
        str | None, typer.Option(help="The plan's name; default is made up.", rich_help_panel=_PLAN, show_default=False)
    ] = None,
    base_plans: Annotated[
        str | None,
        typer.Option(help="A plan of nnU-Net to build on; default is made.", rich_help_panel=_PLAN, show_default=False),
    ] = None,
    min_share: Annotated[
        float, typer.Option(help="Share of the encoder that the weights must cover.", rich_help_panel=_PLAN)
    ] = 0.9,
    token_order: Annotated[
        str, typer.Option(help="Of a Primus of unknown trainer: dhw or hdw.", rich_help_panel=_PLAN)
    ] = "auto",
    folds: Annotated[
        str, typer.Option(help="Folds as 0 or 0,1,2; cv for all five; all for no split.", rich_help_panel=_SPLITS)
    ] = "0",
    shots: Annotated[
        str | None,
        typer.Option(
            help="Few-shot: train on so many cases, such as 5 or 5,10,20.", rich_help_panel=_SPLITS, show_default=False
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws for each number of shots.", rich_help_panel=_SPLITS)] = 1,
    training: Annotated[
        str | None,
        typer.Option(
            help="Cases to train on, as --validation; default all others.",
            rich_help_panel=_SPLITS,
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            help="Cases to validate on: patterns as 'liver_2*,liver_30', or a file of names.",
            rich_help_panel=_SPLITS,
            show_default=False,
        ),
    ] = None,
    patient: Annotated[
        str | None,
        typer.Option(
            help="A pattern whose group is the patient in a case's name, as '(sub-\\d+)'.",
            rich_help_panel=_SPLITS,
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        str, typer.Option(help="Of the surface distance in mm: 1, or tumour=2,oedema=1.", rich_help_panel=_SPLITS)
    ] = "1",
    predict: Annotated[
        str | None,
        typer.Option(
            help="A folder of further images, or imagesTs; all folds together predict them.",
            rich_help_panel=_SPLITS,
            show_default=False,
        ),
    ] = None,
    postprocess: Annotated[
        bool, typer.Option("--postprocess", help="With --folds cv: nnU-Net's, where it helps.", rich_help_panel=_SPLITS)
    ] = False,
    tta: Annotated[
        bool, typer.Option(help="Average predictions over mirrored images.", rich_help_panel=_SPLITS)
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cuda, cpu or mps.", rich_help_panel=_MACHINE)] = "auto",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of this machine.", rich_help_panel=_MACHINE)] = 1,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Default: as many as cores, at most 8.", rich_help_panel=_MACHINE, show_default=False),
    ] = None,
) -> None:
    """Fine-tune an encoder for segmentation with stock nnU-Net: plan, preprocess, train, validate, predict, score.

    Everything that can be wrong is told before training. The same command goes on where it was stopped. nnU-Net's
    folders are taken from nnUNet_raw, nnUNet_preprocessed and nnUNet_results where these are set, and lie in the
    fine-tuning's folder where not. commands.sh there holds nnU-Net's own commands for what was done.

    [b]Examples[/b]

    viewalign finetune segmentation --dataset 4 --encoder run -o liver

    viewalign finetune segmentation --dataset 4 --encoder run -o liver-scratch --from-scratch

    viewalign finetune segmentation --dataset Dataset004_Liver --encoder hf:OWNER/NAME --shots 5,10 --seeds 3 -o few

    viewalign finetune segmentation --dataset 4 --encoder run --folds cv --predict imagesTs --postprocess -o cv

    [b]What -o holds[/b]: report.html, results.json, evaluation/ (a table of cases for each split), predictions/,
    finetune.yaml (all settings), nnunet.log, commands.sh.
    """
    from viewalign import api
    from viewalign.cli.teller import Teller

    values: dict[str, Any] = {
        key: value
        for key, value in {
            "from_scratch": from_scratch,
            "epochs": epochs,
            "iterations": iterations,
            "validation_iterations": validation_iterations,
            "lr": lr,
            "optimizer": optimizer,
            "warmup": warmup,
            "sawtooth": sawtooth,
            "precision": precision,
            "mirror": mirror,
            "mirror_validation": tta,
            "seed": seed,
            "spacing": _spacing(spacing),
            "norm": norm,
            "network": network,
            "patch": _numbers(patch),
            "batch": batch,
            "plans": plans,
            "base_plans": base_plans,
            "minimum_share": min_share,
            "token_order": token_order,
            "folds": folds if folds in {"cv", "all"} else _numbers(folds),
            "shots": _numbers(shots) or (),
            "seeds": seeds,
            "training": training,
            "validation": validation,
            "patient": patient,
            "tolerance": tolerance,
            "predict": predict,
            "postprocess": postprocess,
        }.items()
        if value is not None
    }
    machine = {"device": device, "gpus": gpus, "processes": processes}
    run = api.finetune("segmentation", dataset, encoder, out, teller=Teller(), **machine, **values)
    typer.echo(f"Report: {run.out / 'report.html'}")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """Read `32,32,32`."""
    from viewalign.errors import UserError

    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.replace("x", ",").strip("[]()").split(","))
    except ValueError:
        raise UserError(f"'{text}' is no list of whole numbers such as 5,10,20.") from None


def _spacing(text: str) -> str | tuple[float, ...]:
    from viewalign.errors import UserError

    if text in {"pretraining", "dataset"}:
        return text
    try:
        return tuple(float(word) for word in text.strip("[]()").split(","))
    except ValueError:
        raise UserError(f"--spacing takes pretraining, dataset or three numbers of mm, not '{text}'.") from None
