"""`viewalign compare`: two evaluations of the same cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    a: Annotated[Path, typer.Argument(help="An evaluation: its folder or evaluation.json.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another, of the same cases.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for comparison.json and .svg.", show_default=False)
    ] = None,
) -> None:
    """Say whether B is better than A, by how much, and how sure that is.

    Cases are paired by name. The interval is a bootstrap over cases; the p-value is of a permutation test that flips
    the sign of each case's difference. Neither knows of the chance in training: for that, compare several seeds.

    [b]Example[/b]

    viewalign compare scratch/evaluation/fold-0-of-5 pretrained/evaluation/fold-0-of-5 -o comparison
    """
    import json

    from viewalign.report.comparison import draw
    from viewalign.transfer.evaluation.comparing import compare as compare_evaluations
    from viewalign.transfer.evaluation.results import read_evaluation

    result = compare_evaluations(read_evaluation(a), read_evaluation(b), (str(a), str(b)))
    typer.echo(f"A = {a}\nB = {b}\n{len(result.cases)} cases of both" + _left_out(result.left_out))
    typer.echo(result.table())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "comparison.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
        (out / "comparison.svg").write_text(draw(result))
        typer.echo(f"Picture: {out / 'comparison.svg'}")


def _left_out(names: tuple[str, ...]) -> str:
    return f"; {len(names)} of one alone are left out" if names else ""
