"""Export of weights: `export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import UserError, report_os_errors
from viewalign.utils.settings import checked
from viewalign.utils.text import size_text

if TYPE_CHECKING:
    from viewalign.weights.settings import ExportSettings


@dataclass(frozen=True)
class Exported:
    """An export.

    Attributes:
        path: the folder or file that was written.
        text: the written files and how to use them.
    """

    path: Path
    text: str


@report_os_errors()
def export(run: str | Path, out: str | Path | None = None, **settings: Any) -> Exported:
    """Export the weights of a run or a fine-tuning for other software.

    Args:
        run: the folder of a pretraining, or of a fine-tuning (formats `nnunet` and `onnx`).
        out: destination; default is a folder in `run`, or `nnunet-export` if `run` is a file or a public encoder.
        **settings: those of `viewalign settings export`, such as `format="onnx"`.

    Returns:
        The path and how to use it.

    Raises:
        UserError: no run, invalid settings, or a network that the format does not support.

    Example:
        ```python
        print(viewalign.export("run", licence="cc-by-4.0").path)
        ```
    """
    from viewalign.weights.settings import ExportSettings

    wanted, folder, target = checked(ExportSettings, settings), Path(run), None if out is None else Path(out)
    if wanted.format == "onnx":
        from viewalign.finetuning.classification.onnx import export_onnx

        place = target or folder / "onnx"
        return Exported(place, export_onnx(folder, place).text())
    if wanted.format == "ssl3d":
        return _ssl3d(folder, target, wanted)
    if wanted.format == "nnssl":
        from viewalign.weights.export import export_nnssl

        place = export_nnssl(folder, target, wanted.weights)
        return Exported(place, f"Start nnssl from it with  -pretrained_weights {place / 'checkpoint_final.pth'}")
    if wanted.format == "fomo":
        from viewalign.weights.export import export_fomo

        file = export_fomo(folder, target, wanted.weights)
        return Exported(file, f"Start the FOMO baseline from it with  --pretrained_weights_path {file}")
    return _nnunet(folder, target, wanted) if wanted.format == "nnunet" else _encoder(folder, target, wanted)


def _ssl3d(run: Path, out: Path | None, wanted: ExportSettings) -> Exported:
    from viewalign.compat.ssl3d import write_submission

    written = write_submission(run, out, wanted.weights)
    lines = [f"  holds: {line}" for line in written.passed]
    if written.classification == written.checkpoint:
        return Exported(written.checkpoint, "\n".join([*lines, f"Checkpoint for the challenge: {written.checkpoint}"]))
    lines.append(
        f"  lost: classification builds its network without LayerScale and the norm inside attention and drops "
        f"{len(written.dropped)} weights; its file has what it can of them in the projections"
    )
    lines += [f"Segmentation:   {written.checkpoint}", f"Classification: {written.classification}"]
    return Exported(written.checkpoint, "\n".join(lines))


def _nnunet(run: Path, out: Path | None, wanted: ExportSettings) -> Exported:
    """Write a model of a fine-tuning's folder, or a plan and a complete checkpoint of an encoder."""
    from viewalign.finetuning.segmentation import package
    from viewalign.finetuning.segmentation.settings import FILE

    if (run / FILE).is_file():
        target = out or run / "model"
        folders = package.export_model(run, target)
        use = "  nnUNetv2_predict_from_modelfolder -i IMAGES -o OUT -m"
        return Exported(target, "\n".join(f"Model: {folder}\n{use} {folder}" for folder in folders))
    if wanted.dataset is None:
        raise UserError(f"{run} is no fine-tuned segmentation. For a plan of an encoder, set dataset=NUMBER.")
    # An encoder may also be a file or a public name, which have no folder to write into.
    target = out or (run / "nnunet" if run.is_dir() else Path("nnunet-export"))
    written = package.export_start(str(run), wanted.dataset, target)
    lines = [f"Plan:       {written.plan}", f"Checkpoint: {written.checkpoint}", "", *written.commands]
    return Exported(written.checkpoint, "\n".join(lines))


def _encoder(run: Path, out: Path | None, wanted: ExportSettings) -> Exported:
    from viewalign.finetuning.segmentation.settings import FILE
    from viewalign.weights.export import export_run

    if (run / FILE).is_file():
        raise UserError(f"{run} is a fine-tuned segmentation: export it with format=nnunet.")
    if any(run.glob("fold_*/model.json")):
        raise UserError(f"{run} is a fine-tuned classification or regression: export it with format=onnx.")
    folder = export_run(run, out, wanted.weights, wanted.licence, wanted.cite, wanted.hub)
    files = sorted(folder.iterdir())
    lines = [f"  {file}  ({size_text(file.stat().st_size)})" for file in files]
    lines.append(f'Load it in Python with  viewalign.load_encoder("{folder}")')
    lines.append(f"nnU-Net's commands for nnssl's checkpoints train it by  -tr {_nnunet_trainer(folder)}")
    if wanted.hub is not None:
        from viewalign.data.fetch import hub

        page = hub.publish(folder, wanted.hub, [file.name for file in files], wanted.public)
        lines.append(f"Published: {page}. Load it elsewhere as  hf:{wanted.hub}")
    return Exported(folder, "\n".join(lines))


def _nnunet_trainer(export: Path) -> str:
    """Return nnU-Net's trainer that builds an export's network; only one builds a Primus that is no preset."""
    import json

    plan = json.loads((export / "adaptation_plan.json").read_text(encoding="utf-8"))
    return "PretrainedTrainer" if plan["key_to_lpe"] is None else "PretrainedTrainer_Primusx"
