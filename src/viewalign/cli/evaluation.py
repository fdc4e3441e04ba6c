"""`viewalign embed`, `probe`, `evaluate` and `compare`: evaluation of encoders and of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.finetune import Encoder, Task
from viewalign.cli.grammar import Result, settings_of
from viewalign.utils.console import code_of_excluded, stages
from viewalign.utils.text import counted

if TYPE_CHECKING:
    from viewalign.evaluation.results import Evaluation


def embed(
    context: typer.Context,
    encoder: Encoder,
    task: Task,
    out: Annotated[Path, typer.Option("-o", "--out", help="The .npz or .parquet file to write.", show_default=False)],
) -> Result:
    """Compute one embedding per case, deterministically.

    The file contains arrays [b]case[/b], [b]features[/b], optionally [b]maps[/b], and [b]facts[/b] with hashes of the
    encoder and of the preprocessing; a .parquet is a table with them as columns and metadata.

    Exit code: 0 all cases were embedded, 3 some were excluded.

    [b]Example[/b]

    viewalign embed run task -o run.npz patch_size=96
    """
    import viewalign

    with stages() as report:
        found = viewalign.embed(encoder, task, out, on_progress=report, **settings_of(context))
    width = found.features.shape[1]
    facts = {"out": out, "cases": found.cases, "features": width, "excluded": dict(found.excluded), **found.facts}
    text = f"{counted(len(found.cases), 'case')}, {counted(width, 'number')} each: {out}"
    return Result(facts, text, code_of_excluded(found.excluded))


def probe(
    context: typer.Context,
    task: Task,
    encoders: Annotated[
        list[str], typer.Argument(metavar="ENCODER", help="Encoders, as for `viewalign embed`.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.")] = Path("probe.json"),
) -> Result:
    """Evaluate frozen features with a linear probe or k-NN: no training, minutes on a laptop.

    The same networks without training and simple intensity statistics are evaluated on the same cases. If the manifest
    has test cases, the probe is fitted on the training cases and evaluated on the test cases; otherwise by
    cross-validation.

    [b]Example[/b]

    viewalign probe task run other-run -o probe.json names=cva,mae shots=5,10,20
    """
    import viewalign

    results = viewalign.probe(task, encoders, out, **settings_of(context))
    excluded = results["excluded"]
    return Result({"out": out, **results, "excluded": dict(excluded)}, code=code_of_excluded(excluded))


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
    lines = [result.table(), f"{counted(len(result.cases), 'case')}; each in {folder}", *_notes(result)]
    return Result({"folder": folder, **result.as_json()}, "\n".join(lines), 0 if result.complete else 1)


def _notes(result: Evaluation) -> list[str]:
    lines = [f"  {case.name}: {case.note}" for case in result.cases if case.note]
    if result.extra:
        lines.append(f"Predictions without a reference: {_some(result.extra)}")
    lines += [f"Not evaluated: {name}: {reason}." for name, reason in (result.excluded or {}).items()]
    if result.missing:
        lines.append(f"Without a prediction, excluded from means: {_some(result.missing)}")
    return lines


def _some(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def compare(
    a: Annotated[
        Path,
        typer.Argument(help="Folder of a fine-tuning, or of a segmentation evaluation.", show_default=False),
    ],
    b: Annotated[Path, typer.Argument(help="Another one of the same cases.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for comparison.json and comparison.html.", show_default=False),
    ] = None,
) -> Result:
    """Compare two results on the same cases: difference B − A, 95 % interval, p-value.

    Both are evaluations of segmentations, or fine-tunings for classification or regression (compared on test cases
    if both have some, otherwise on held-out cases), as detected from the files. Cases are paired by name. The interval
    is a bootstrap over cases (over subjects for fine-tunings); the p-value is that of a permutation test that
    exchanges A and B for some of them. Both ignore variance between training seeds: for that, compare several seeds.

    [b]Examples[/b]

    viewalign compare scratch/evaluation/fold-0-of-5 pretrained/evaluation/fold-0-of-5 -o comparison

    viewalign compare tuned-a tuned-b
    """
    import viewalign

    result = viewalign.compare(a, b, out)
    left_out = f"; excluded: {counted(len(result.left_out), 'case')} of only one of them" if result.left_out else ""
    lines = [f"A = {a}\nB = {b}\n{counted(len(result.cases), 'case')} of both{left_out}", result.table()]
    page = None if out is None else out / "comparison.html"
    lines += [f"Page: {page}"] if page else []
    return Result({**result.as_json(), "page": page}, "\n".join(lines))
