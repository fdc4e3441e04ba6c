"""`viewalign evaluate`: a folder of predictions against a folder of references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.grammar import Result, settings_of
from viewalign.utils.console import stages

if TYPE_CHECKING:
    from viewalign.evaluation.results import Evaluation


def evaluate(
    context: typer.Context,
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps.", show_default=False)],
    references: Annotated[Path, typer.Argument(help="Folder of reference label maps.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder to write; default evaluation/ in PREDICTIONS.", show_default=False),
    ] = None,
) -> Result:
    """Evaluate segmentations: Dice and normalised surface distance (NSD) per class, with 95 % bootstrap intervals.

    Files are matched by name without extension. Surfaces are compared in millimetres, with a tolerance that you
    set per class and that is written with versions and file hashes to evaluation.json; cases.csv has a row for
    each case and class. A class that is in only one of the two maps scores 0.

    Cases without a prediction are excluded from means and listed, and the exit code is 1.

    [b]Examples[/b]

    viewalign evaluate predictions labelsTs

    viewalign evaluate predictions labelsTs -o scores tolerance=tumour=2,oedema=1 ignore=9
    """
    import viewalign

    with stages() as report:
        result = viewalign.evaluate(predictions, references, out, on_progress=report, **settings_of(context))
    folder = out or predictions / "evaluation"
    lines = [result.table(), f"{len(result.cases)} cases; each in {folder}", *_notes(result)]
    return Result({"folder": folder, **result.as_json()}, "\n".join(lines), 0 if result.complete else 1)


def _notes(result: Evaluation) -> list[str]:
    lines = [f"  {case.name}: {case.note}" for case in result.cases if case.note]
    if result.extra:
        lines.append(f"{len(result.extra)} predictions have no reference: {_some(result.extra)}")
    lines += [f"Not evaluated: {name}: {reason}." for name, reason in (result.excluded or {}).items()]
    if result.missing:
        lines.append(f"Without a prediction, excluded from means: {_some(result.missing)}")
    return lines


def _some(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
