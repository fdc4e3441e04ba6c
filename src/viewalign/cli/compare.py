"""`viewalign compare`: two evaluations, or two fine-tunings, of the same cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Result


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
    """Compare two results on the same cases: difference of B and A, 95 % interval, p-value.

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
    left_out = f"; {len(result.left_out)} cases of only one of them are excluded" if result.left_out else ""
    lines = [f"A = {a}\nB = {b}\n{len(result.cases)} cases of both{left_out}", result.table()]
    page = None if out is None else out / "comparison.html"
    lines += [f"Page: {page}"] if page else []
    return Result({**result.as_json(), "page": page}, "\n".join(lines))
