"""`viewalign doctor`: common problems of this machine, and their remedies."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.grammar import Result

if TYPE_CHECKING:
    from viewalign.training.doctor import Finding

_COLOURS = {"good": "green", "watch": "yellow", "bad": "red"}


def doctor(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER", help="Folders for stores and runs; default: the current one.", show_default=False
        ),
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Also train on the GPU for a minute, and compare with the CPU.")
    ] = False,
) -> Result:
    """Check the environment for common problems: versions, hidden GPUs, shared memory, slow disks, threads.

    Each problem comes with a remedy. It takes a few seconds.

    [b]Examples[/b]

    viewalign doctor

    viewalign doctor /data/store /scratch/runs

    viewalign doctor --gpu

    Exit code: 0 no problem, 3 warnings, 1 something must be fixed.
    """
    from viewalign.training.doctor import diagnose, inspect_machine, require_gpu

    facts = inspect_machine(tuple(folders or [Path.cwd()]))
    findings = diagnose(facts)
    if gpu:
        require_gpu(facts)
        findings += _check_gpu()
    levels = {finding.level for finding in findings}
    code = 1 if "bad" in levels else 3 if "watch" in levels else 0
    return Result({"findings": findings, "machine": facts}, partial(_print, findings), code)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for finding in findings:
        colour = _COLOURS[finding.level]
        table.add_row(f"[{colour}]{finding.level}[/{colour}]", escape(finding.what), escape(finding.found))
        if finding.remedy:
            table.add_row("", "", f"[b]→[/b] {escape(finding.remedy)}")
    Console().print(table)


def _check_gpu() -> list[Finding]:
    """Check the first GPU in a temporary folder."""
    import torch

    from viewalign.training.gpu.check import Size, check

    with tempfile.TemporaryDirectory() as folder:
        return check(torch.device("cuda"), Path(folder), Size())
