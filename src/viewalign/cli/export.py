"""`viewalign export --nnunet`: what nnU-Net's own commands take, without viewalign."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.errors import UserError


def export_nnunet(run: Path, dataset: str | None, out: Path | None) -> None:
    """Write a model of a fine-tuning's folder, or a plan and a complete checkpoint of an encoder."""
    from viewalign.errors import UserError
    from viewalign.finetuning.segmentation import package
    from viewalign.finetuning.segmentation.settings import FILE

    if (run / FILE).is_file():
        target = out or run / "model"
        folders = package.export_model(run, target)
        for folder in folders:
            typer.echo(f"Model: {folder}")
            typer.echo(f"  nnUNetv2_predict_from_modelfolder -i IMAGES -o OUT -m {folder}")
        return
    if dataset is None:
        raise UserError(f"{run} is no fine-tuning, so --nnunet needs a --dataset to write a plan for.")
    written = package.export_start(str(run), dataset, out or Path("nnunet-export"))
    typer.echo(f"Plan:       {written.plan}\nCheckpoint: {written.checkpoint}\n")
    typer.echo("\n".join(written.commands))


if TYPE_CHECKING:
    from viewalign.weights.encoder import Weights


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where to; default is export/ in the run.")] = None,
    weights: Annotated[
        str, typer.Option(help="student: as published; teacher: the student's average over the last steps.")
    ] = "student",
    nnunet: Annotated[
        bool,
        typer.Option("--nnunet", help="For nnU-Net's own commands, without viewalign; see below.", show_default=False),
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="A fine-tuned classification or regression as ONNX; see below.")
    ] = False,
    ssl3d: Annotated[
        bool, typer.Option("--ssl3d", help="In the layout of the SSL3D challenge, and checked; see below.")
    ] = False,
    to_hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Publish the export on the Hugging Face Hub.", show_default=False),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --to-hub: a new repository is for everyone, not for you alone.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option(help="Of the weights, for their card: cc-by-4.0 …", show_default=False)
    ] = None,
    cite: Annotated[str, typer.Option(help="What the card asks to cite besides.", show_default=False)] = "",
    dataset: Annotated[
        str | None, typer.Option(help="With --nnunet: the dataset to write a plan for.", show_default=False)
    ] = None,
) -> None:
    """Write a run's newest encoder in forms that load elsewhere.

    \b
    encoder.safetensors, encoder.json, README.md   for viewalign.load_encoder and the Hugging Face Hub
    checkpoint_final.pth, adaptation_plan.json     for nnssl and nnU-Net

    Nothing of the data and no path of this machine goes in. README.md is the model card: network, data in numbers,
    settings, verdicts on the features, licence, what to cite. Read it before you hand it on.

    With --to-hub these five files go to a repository of yours (`hf auth login` once), from which everyone who may read
    it takes them as hf:OWNER/NAME.

      viewalign export run --to-hub my-group/brain-resenc --licence cc-by-4.0 --public

    With --nnunet, a run of pretraining (or any encoder) and --dataset give a plan in nnU-Net's folders and a complete
    checkpoint that stock nnUNetv2_train takes by -pretrained_weights. The folder of a fine-tuning gives a model that
    stock nnUNetv2_predict takes where viewalign is not installed.

      viewalign export run --nnunet --dataset 4

      viewalign export liver --nnunet -o liver-model

    With --onnx, the folder of a fine-tuned classification or regression (or one of its folds) gives model.onnx for any
    batch size, its answers averaged over folds, and model.json, which says how images are prepared. It is checked
    against torch before it counts as written, and `viewalign predict model.onnx` takes it.

      viewalign export tuned --onnx -o tuned-onnx

    With --ssl3d, a run of a ResEnc-L or a Primus-M on images of 1 mm is laid out as the SSL3D challenge takes it, and
    asked what the challenge's loaders for segmentation and classification ask.

      viewalign export run --ssl3d -o ssl3d
    """
    _refuse_what_does_not_go_together(
        {"--nnunet": nnunet, "--onnx": onnx, "--ssl3d": ssl3d},
        {"--to-hub": bool(to_hub), "--public": public, "--licence": bool(licence), "--cite": bool(cite)},
    )
    if dataset and not nnunet:
        raise UserError("--dataset goes with --nnunet.")
    if onnx:
        _export_onnx(run, out)
    elif ssl3d:
        _export_ssl3d(run, out, weights)
    elif nnunet:
        export_nnunet(run, dataset, out)
    else:
        folder = _export_plain(run, out, weights, licence, cite)
        if to_hub is not None:
            _publish(folder, to_hub, public)


def _refuse_what_does_not_go_together(forms: dict[str, bool], plain: dict[str, bool]) -> None:
    """Refuse two forms at once, and options that the form asked for would pass over."""
    asked, given = ([name for name, there in group.items() if there] for group in (forms, plain))
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} are exports of their own; ask for one after the other.")
    if asked and given:
        raise UserError(f"{', '.join(given)} changes nothing with {asked[0]}; leave it out.")
    if plain["--public"] and not plain["--to-hub"]:
        raise UserError("--public goes with --to-hub.")


def _branch(weights: str) -> Weights:
    if weights not in {"student", "teacher"}:
        raise UserError(f"--weights takes student or teacher, not '{weights}'.")
    return "teacher" if weights == "teacher" else "student"


def _export_ssl3d(run: Path, out: Path | None, weights: str) -> None:
    from viewalign.compat.ssl3d import write_submission

    written = write_submission(run, out, _branch(weights))
    for line in written.passed:
        typer.echo(f"  holds: {line}")
    typer.echo(f"Give the challenge's commands  {written.checkpoint}")


def _export_onnx(run: Path, out: Path | None) -> None:
    from viewalign.finetuning.classification.onnx import export_onnx

    typer.echo(export_onnx(run, out or run / "onnx").text())


def _export_plain(run: Path, out: Path | None, weights: str, licence: str | None, cite: str) -> Path:
    from viewalign.weights.export import export_run

    folder = export_run(run, out, _branch(weights), licence, cite)
    for file in sorted(folder.iterdir()):
        typer.echo(f"  {file}  ({file.stat().st_size / 1e6:.1f} MB)")
    typer.echo(f'Load it in Python with  viewalign.load_encoder("{folder}")')
    return folder


def _publish(folder: Path, to_hub: str, public: bool) -> None:
    from viewalign.data.fetch import hub

    page = hub.publish(folder, to_hub, [file.name for file in sorted(folder.iterdir())], public)
    typer.echo(f"Published: {page}. Take it elsewhere as  hf:{to_hub}")
