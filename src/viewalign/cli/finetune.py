"""Options that all commands on a task's cases share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Cache = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps prepared cases for the next encoder, and the next time.", show_default=False),
]

CaseWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Processes that read and prepare cases; 0 leaves it to this one, without guard against files that crash "
        "it. Default: one per core, up to 16; 0 for 16 cases or fewer.",
        show_default=False,
    ),
]


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


_data, _plan, _training = partial(_option, "Data"), partial(_option, "Plan"), partial(_option, "Training")
_splits, _machine = partial(_option, "Splits and scores"), partial(_option, "Machine")


def segmentation(
    dataset: Annotated[
        str,
        _data("nnU-Net's number or name of a dataset, or a folder in its layout: dataset.json, imagesTr, labelsTr."),
    ],
    encoder: Annotated[str, _data("A run, an export, a checkpoint of nnssl, or hf:OWNER/NAME.")],
    out: Annotated[Path, _data("The fine-tuning's folder.", "-o", "--out")],
    from_scratch: Annotated[bool, _training("The fair baseline: the same plan, no weights.", "--from-scratch")] = False,
    epochs: Annotated[int, _training("Epochs; published are 1000 and 150.", min=1)] = 150,
    iterations: Annotated[int, _training("Steps an epoch.", min=1)] = 250,
    validation_iterations: Annotated[int, _training("Validation steps an epoch.", min=1)] = 50,
    lr: Annotated[
        float | None, _training("Learning rate; default 1e-3 (ResEnc) or 1e-4 (Primus), from scratch 1e-2 or 3e-4.")
    ] = None,
    optimizer: Annotated[str | None, _training("sgd or adamw; default as published.")] = None,
    warmup: Annotated[int | None, _training("Epochs of warm-up.")] = None,
    sawtooth: Annotated[bool, _training("Train the decoder alone first, the encoder frozen.", "--sawtooth")] = False,
    precision: Annotated[str, _training("auto (as nnU-Net), fp32 or bf16.")] = "auto",
    mirror: Annotated[bool, _training("Mirror in training; leave out where left and right differ.")] = True,
    seed: Annotated[int, _training("Of the decoder's first weights.", min=0)] = 0,
    spacing: Annotated[str, _plan("pretraining, dataset, or three mm as 1,1,1 (D,H,W).")] = "pretraining",
    norm: Annotated[str, _plan("pretraining or dataset.")] = "pretraining",
    network: Annotated[
        str, _plan("pretraining, or dataset: nnU-Net's own network, weights bent to it.")
    ] = "pretraining",
    patch: Annotated[
        str | None, _plan("D,H,W in voxels; default what the pretraining recommends, cut to the images.")
    ] = None,
    batch: Annotated[int, _plan("Patches a step.", min=1)] = 2,
    plans: Annotated[str | None, _plan("The plan's name; default is made up.")] = None,
    base_plans: Annotated[str | None, _plan("A plan of nnU-Net to build on; default is made.")] = None,
    min_share: Annotated[float, _plan("Share of the encoder that the weights must cover.")] = 0.9,
    token_order: Annotated[str, _plan("Of a Primus of unknown trainer: dhw or hdw.")] = "auto",
    folds: Annotated[str, _splits("Folds as 0 or 0,1,2; cv for all five; all for no split.")] = "0",
    shots: Annotated[str | None, _splits("Few-shot: train on so many cases, such as 5 or 5,10,20.")] = None,
    seeds: Annotated[int, _splits("Draws for each number of shots.", min=1)] = 1,
    training: Annotated[str | None, _splits("Cases to train on, as --validation; default all others.")] = None,
    validation: Annotated[
        str | None, _splits("Cases to validate on: patterns as 'liver_2*,liver_30', or a file of names.")
    ] = None,
    patient: Annotated[
        str | None, _splits("A pattern whose group is the patient in a case's name, as '(sub-\\d+)'.")
    ] = None,
    tolerance: Annotated[str, _splits("Of the surface distance in mm: 1, or tumour=2,oedema=1.")] = "1",
    predict: Annotated[
        str | None, _splits("A folder of further images, or imagesTs; all folds together predict them.")
    ] = None,
    postprocess: Annotated[bool, _splits("With --folds cv: nnU-Net's, where it helps.", "--postprocess")] = False,
    tta: Annotated[bool, _splits("Average predictions over mirrored images.")] = True,
    device: Annotated[str, _machine("auto, cuda, cpu or mps.")] = "auto",
    gpus: Annotated[int, _machine("GPUs of this machine.", min=1)] = 1,
    processes: Annotated[int | None, _machine("Default: as many as cores, at most 8.", min=1)] = None,
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
    given = {**locals(), "spacing": _spacing(spacing), "patch": _numbers(patch), "shots": _numbers(shots)}
    from viewalign import api
    from viewalign.utils.console import Teller

    given |= {"folds": folds if folds in {"cv", "all"} else _numbers(folds)}
    given |= {"minimum_share": given.pop("min_share"), "mirror_validation": given.pop("tta")}
    places = [given.pop(name) for name in ("dataset", "encoder", "out")]
    settings = {name: value for name, value in given.items() if value is not None}
    run = api.finetune("segmentation", *places, teller=Teller(), **settings)
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


Task = Annotated[Path, typer.Argument(help="A task: the folder of task.yaml and its manifest.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as epochs=50.")]
Encoder = Annotated[
    str, typer.Option(help="A run, an export, an nnssl checkpoint, or untrained:NAME.", show_default=False)
]
Out = Annotated[Path, typer.Option("-o", "--out", help="The fine-tuning's folder; an unfinished one is completed.")]
RecipeName = Annotated[
    str | None, typer.Option(help="ssl3d-abide, fomo-infarct, fomo-brain-age, or a YAML file.", show_default=False)
]


def classification(
    task: Task,
    encoder: Encoder,
    out: Out,
    settings: Overrides = None,
    recipe: RecipeName = None,
    cache: Cache = None,
    workers: CaseWorkers = None,
) -> None:
    """Fine-tune an encoder to tell classes, in folds, and judge it once over all held-out cases.

    [b]Example[/b]

    viewalign finetune classification task mode=head_first epochs=50 --encoder run -o tuned
    """
    _finetune(task, settings, encoder, out, recipe, cache, workers, regression=False)


def regression(
    task: Task,
    encoder: Encoder,
    out: Out,
    settings: Overrides = None,
    recipe: RecipeName = None,
    cache: Cache = None,
    workers: CaseWorkers = None,
) -> None:
    """Fine-tune an encoder to tell a number, in folds, and judge it once over all held-out cases.

    [b]Example[/b]

    viewalign finetune regression task --encoder run -o tuned --recipe fomo-brain-age
    """
    _finetune(task, settings, encoder, out, recipe, cache, workers, regression=True)


def _finetune(
    task: Path,
    settings: list[str] | None,
    encoder: str,
    out: Path,
    recipe: str | None,
    cache: Path | None,
    workers: int | None,
    *,
    regression: bool,
) -> None:
    from viewalign import api
    from viewalign.utils.console import tell_refused

    kind: Literal["classification", "regression"] = "regression" if regression else "classification"
    rest = {"recipe": recipe, "overrides": settings or [], "say": typer.echo, "cache": cache, "workers": workers}
    done = api.finetune(kind, task, encoder, out, **rest)
    typer.echo(f"Predictions, figures and models: {out}\nReport: {done.report}")
    tell_refused(done.excluded)


finetune = typer.Typer(no_args_is_help=True, help="Carry a pretrained encoder to a task, with labels.")
finetune.command()(segmentation)
finetune.command()(classification)
finetune.command()(regression)


@finetune.callback()
def group() -> None:
    """Carry a pretrained encoder to a task, with labels."""
