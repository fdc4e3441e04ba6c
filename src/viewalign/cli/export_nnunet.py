"""`viewalign export --nnunet`: what nnU-Net's own commands take, without viewalign."""

from __future__ import annotations

from pathlib import Path

import typer


def export_nnunet(run: Path, dataset: str | None, out: Path | None) -> None:
    """Write a model of a fine-tuning's folder, or a plan and a complete checkpoint of an encoder."""
    from viewalign.errors import UserError
    from viewalign.transfer.segmentation import packaging
    from viewalign.transfer.segmentation.settings import FILE

    if (run / FILE).is_file():
        target = out or run / "model"
        folders = packaging.export_model(run, target)
        for folder in folders:
            typer.echo(f"Model: {folder}")
            typer.echo(f"  nnUNetv2_predict_from_modelfolder -i IMAGES -o OUT -m {folder}")
        return
    if dataset is None:
        raise UserError(f"{run} is no fine-tuning, so --nnunet needs a --dataset to write a plan for.")
    written = packaging.export_start(str(run), dataset, out or Path("nnunet-export"))
    typer.echo(f"Plan:       {written.plan}\nCheckpoint: {written.checkpoint}\n")
    typer.echo("\n".join(written.commands))
