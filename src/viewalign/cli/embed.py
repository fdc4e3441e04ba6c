"""`viewalign embed`: vectors of whole cases from an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.finetune import Cache, CaseWorkers


def embed(
    encoder: Annotated[
        str,
        typer.Argument(
            help="A run, an export, an nnssl checkpoint, hf:OWNER/NAME, or untrained:NAME.", show_default=False
        ),
    ],
    task: Annotated[Path, typer.Argument(help="A task: the folder of task.yaml and its manifest.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The .npz or .parquet to write.", show_default=False)],
    size: Annotated[
        str | None,
        typer.Option(help="Field of view D,H,W in voxels; default the views of pretraining.", show_default=False),
    ] = None,
    spacing: Annotated[str, typer.Option(help="pretraining, none, or D,H,W in mm.")] = "pretraining",
    pool: Annotated[str, typer.Option(help="multistage, average, or pretrained.")] = "multistage",
    maps: Annotated[bool, typer.Option("--maps", help="Keep the coarsest map of each case too.")] = False,
    cache: Cache = None,
    workers: CaseWorkers = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
) -> None:
    """Write one vector a case: nothing random, the same numbers every time.

    The file holds arrays [b]case[/b], [b]features[/b], perhaps [b]maps[/b], and [b]facts[/b] with hashes of the encoder
    and of the preprocessing; a .parquet is a table with them as columns and metadata.

    Exit code: 0 all cases, 3 some could not be used.

    [b]Example[/b]

    viewalign embed run task -o run.npz --size 96,96,96
    """
    from viewalign.evaluation.embedding import embed as embed_cases
    from viewalign.evaluation.encoders import encoder_and_preprocessor
    from viewalign.tasks.manifest import read_manifest
    from viewalign.tasks.spec import read_spec
    from viewalign.utils.console import progress_bar, tell_refused

    spec = read_spec(task)
    cases = read_manifest(task, spec, targets=False)
    backbone, preprocessor = encoder_and_preprocessor(encoder, spec, size, spacing, pool)
    with progress_bar("Embedding") as report:
        found = embed_cases(backbone, preprocessor, cases, pool, maps, device, report, cache, workers)  # type: ignore[arg-type]
    found.write(out)
    typer.echo(f"{len(found.cases)} cases, {found.features.shape[1]} numbers each: {out}")
    tell_refused(found.excluded)
