"""`viewalign evaluate`: a folder of predictions against a folder of references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps.", show_default=False)],
    references: Annotated[Path, typer.Argument(help="Folder of reference label maps.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Where to; default: evaluation/ in the predictions.", show_default=False),
    ] = None,
    tolerance: Annotated[str, typer.Option(help="Of the surface distance in mm: 1, or tumour=2,oedema=1.")] = "1",
    dataset_json: Annotated[
        Path | None,
        typer.Option(help="Names of classes and regions; looked for beside both folders.", show_default=False),
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(help="Value of reference voxels that do not count.", show_default=False)
    ] = None,
    empty: Annotated[
        str, typer.Option(help="A class in neither map: skip leaves it out of means, one counts it as 1.")
    ] = "skip",
    cases: Annotated[
        str | None,
        typer.Option(help="Only these: patterns as 'liver_2*,liver_30', or a file of names.", show_default=False),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Cases at a time.")] = 1,
) -> None:
    """Score segmentations: Dice and normalised surface distance (NSD) per class, with 95 % bootstrap intervals.

    Files are matched by name, whatever their endings. Surfaces are compared in millimetres, at a tolerance that you
    choose per class and that is written down with versions and file hashes in evaluation.json; cases.csv has a row for
    each case and class. A class that is in one of the two maps alone counts 0.

    Cases without a prediction count in no mean; they are named, and the exit code is 1.

    [b]Examples[/b]

    viewalign evaluate out labelsTs

    viewalign evaluate out labelsTs --tolerance tumour=2,oedema=1 --ignore 9 -o scores
    """
    from viewalign.errors import UserError
    from viewalign.evaluation import folders
    from viewalign.evaluation.segmentation_metrics import Rules
    from viewalign.finetuning.segmentation.dataset import names_matching
    from viewalign.utils.console import progress_bar

    if empty not in {"skip", "one"}:
        raise UserError(f"--empty takes skip or one, not '{empty}'.")
    classes = folders.classes_of(predictions, references, dataset_json)
    value = folders.ignore_of(predictions, references, dataset_json) if ignore is None else ignore
    classes = {name: values for name, values in classes.items() if values != (value,)}
    rules = Rules(classes, folders.tolerances_of(tolerance, classes), value, "one" if empty == "one" else "skip")
    chosen = names_matching(list(folders.label_files(references)), cases) if cases else None
    with progress_bar("Evaluating") as bar:
        result = folders.evaluate_folder(predictions, references, rules, chosen, processes, bar)
    target = predictions / "evaluation" if out is None else out
    result.write(target)
    typer.echo(result.table())
    typer.echo(f"{len(result.cases)} cases; each in {target}")
    for case in result.cases:
        if case.note:
            typer.echo(f"  {case.name}: {case.note}")
    if result.extra:
        typer.echo(f"{len(result.extra)} predictions have no reference: {_some(result.extra)}")
    for name, reason in (result.excluded or {}).items():
        typer.echo(f"Not judged: {name}: {reason}.")
    if result.missing:
        typer.echo(f"Without a prediction, and in no mean: {_some(result.missing)}")
    if not result.complete:
        raise typer.Exit(1)


def _some(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
