"""`viewalign demo`: the whole workflow in a few minutes, on synthetic or your own images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Result, settings_of


def demo(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGES", help="Your own images; without it, synthetic ones.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Folder of all results.")] = Path(
        "demo-run"
    ),
) -> Result:
    """Run the whole workflow: images, catalogue, store, pretraining, probe, export, report. Offline, a few minutes.

    Without IMAGES a cohort is synthesised from one template brain (MNI152) by random deformations and contrasts: it is
    synthetic, and the report says so. With IMAGES the probe needs label maps (x_seg.nii.gz beside x.nii.gz, or labels/
    beside images/) of at least four subjects, and is skipped without them.

    The same command resumes an interrupted demo. To start again, remove the folder or set another one.

    [b]Examples[/b]

    viewalign demo

    viewalign demo ~/scans -o my-demo steps=1000

    [b]Contents of FOLDER[/b]: images/, labels/ (synthetic ones), catalogue.json, store/, run/ with report.html and
    export/.
    """
    # Waiting threads sleep instead of spinning, which halved the time of a step on a busy machine. It must be set
    # before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from viewalign.demo.run import DemoSettings, run_demo
    from viewalign.demo.settings import DemoOptions
    from viewalign.utils.settings import checked

    wanted = checked(DemoOptions, settings_of(context))
    result = run_demo(DemoSettings(out, data, wanted.steps, wanted.spacing))
    facts = {"folder": out, "finished": result.report is not None, "report": result.report, "figures": result.figures}
    if result.report is None:
        return Result(facts, "Stopped and saved. The same command resumes it.", result.exit_code)
    lines = [*(f"  {line}" for line in result.figures), f"Report: {result.report}"]
    if not result.fresh:
        lines = [f"The demo in {out} is complete. To start again, remove that folder or use another -o.", *lines]
    return Result(facts, "\n".join(lines))
