"""`viewalign compare-methods`: several methods on one network and the same data, as a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare_methods(
    store: Annotated[Path, typer.Option(help="Prepared images to pretrain on.", show_default=False)],
    images: Annotated[Path, typer.Option(help="Folder of images with labels, to judge on.", show_default=False)],
    labels: Annotated[Path, typer.Option(help="Folder of their label maps, of the same names.", show_default=False)],
    learn: Annotated[str, typer.Option(help="Cases a probe learns from: patterns, by commas.", show_default=False)],
    test: Annotated[str, typer.Option(help="Cases it is judged on: patterns, by commas.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of a recipe, for all methods that read them: batch=8."),
    ] = None,
    network: Annotated[str, typer.Option(help="The second half of recipe names.")] = "resenc-xs",
    methods: Annotated[str, typer.Option(help="By commas, such as mae,cva.", show_default="all there are")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Of every method.")] = 300,
    seeds: Annotated[int, typer.Option(min=1, help="How often each is pretrained.")] = 3,
    shots: Annotated[int, typer.Option(min=1, help="Labelled cases that the probe learns from.")] = 10,
    finetune_shots: Annotated[
        str | None,
        typer.Option(
            help="Labelled cases that nnU-Net fine-tunes on, such as 5,10; none leaves it out.",
            show_default="as --shots, where the extra nnunet is there",
        ),
    ] = None,
    finetune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Of a fine-tuning, such as epochs=50; may be given again.", show_default=False
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Of the CPU; 0 for torch's own choice.")] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Default methods-NETWORK.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin nothing further after so long.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is to do; train nothing.")] = False,
) -> None:
    """Pretrain with several methods, everything else equal, and judge them frozen and fine-tuned in one table.

    Frozen features are judged by a voxel probe and by finding places again; then nnU-Net fine-tunes each encoder, and
    the untrained network from scratch, on a few cases for 20 epochs of 25 steps.

    It is a study (see `viewalign study --help`): it goes on where it was stopped, and has the same table, page and
    exit codes. Patterns are of case names, such as 'case_0*,case_12'.

    [b]Example[/b]

    viewalign compare-methods --store store --images images --labels labels --learn 'case_0*' --test 'case_1*'
    """
    from viewalign.cli.study import run_grid
    from viewalign.study.grid import Grid
    from viewalign.study.methods import comparison, tuning_judges

    where = {"images": str(images.absolute()), "labels": str(labels.absolute())}
    split = {"learn": learn.split(","), "test": test.split(",")}
    data = {"store": str(store.absolute()), "labelled": {**where, **split}}
    tuned = tuning_judges(network, _numbers(finetune_shots, shots), finetune or [])
    chosen = comparison(
        network,
        data,
        [one.strip() for one in methods.split(",") if one.strip()],
        settings or [],
        steps=steps,
        seeds=seeds,
        threads=threads,
        judges={"voxels": {"kind": "voxel_probe", "shots": shots}, "places": {"kind": "retrieval"}, **tuned},
    )
    run_grid(Grid(chosen, out or Path(chosen.name)), minutes, dry_run)


def _numbers(asked: str | None, usual: int) -> tuple[int, ...]:
    """Read `5,10`; where nothing is asked for, as for the probe, if nnU-Net is there."""
    from viewalign.errors import UserError
    from viewalign.transfer.segmentation import environment

    if asked is None:
        try:
            environment.check_installed()
        except UserError as lacking:
            typer.echo(f"Encoders are judged frozen alone. {lacking}", err=True)
            return ()
        return (usual,)
    words = [] if asked.strip() in {"none", "0"} else asked.split(",")
    if not all(word.strip().isdigit() and int(word) for word in words):
        raise UserError(f"--finetune-shots {asked}: give numbers such as 5,10, or none.")
    return tuple(int(word) for word in words)
