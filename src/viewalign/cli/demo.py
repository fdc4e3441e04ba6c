"""`viewalign demo`: the whole way in a few minutes, on made data or on one's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from viewalign.utils.console import Teller


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where everything goes.")] = Path(
        "demo-run"
    ),
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Your own images in place of the made ones.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of pretraining.")] = 240,
    spacing: Annotated[
        float | None,
        typer.Option(min=0.01, help="Voxel size of the store in mm; default 2 for the made images, 1 for yours."),
    ] = None,
) -> None:
    """Do everything once: images, catalogue, store, pretraining, probe, export, report. Offline, a few minutes.

    Without --data a cohort is made from one template brain (MNI152) by random deformations and contrasts: it is
    synthetic, and the report says so. With --data your own images are used; the probe then needs label maps
    (x_seg.nii.gz beside x.nii.gz, or labels/ beside images/) of at least four subjects, and is skipped without them.

    Stopped? The same command goes on where it was. Anew? Another --out, or remove the folder.

    [b]Examples[/b]

    viewalign demo

    viewalign demo --data ~/scans --out my-demo --steps 1000

    [b]What --out holds[/b]: images/, labels/ (made ones), catalogue.json, store/, run/ with report.html and export/.
    """
    # Threads that wait shall sleep, not spin: on a machine with other work to do that halved the time of a step. It
    # must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from viewalign.demo.run import DemoSettings, run_demo

    teller = Teller()
    result = run_demo(DemoSettings(out, data, steps, spacing), teller)
    if result.report is None:
        typer.echo("Stopped and saved. The same command goes on from here.")
        raise typer.Exit(result.exit_code)
    if not result.fresh:
        typer.echo(f"The demo in {out} is complete. To start anew, remove that folder or give another one to --out.")
    else:
        teller.say("Done.")
    for line in result.figures:
        typer.echo(f"  {line}")
    typer.echo(f"Report: {result.report}")
