"""The options of `viewalign prepare`, which `viewalign estimate` shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_VOXELS = "What is stored"
_SCALE = "How the work is done"
_LIMITS = "What one file may cost"

Spacing = Annotated[
    str,
    typer.Option(
        metavar="D,H,W|median|none",
        help="Voxel size in mm; one number for all axes, [b]median[/b] for the catalogue's, or [b]none[/b] to keep "
        "each image's own.",
        rich_help_panel=_VOXELS,
    ),
]

InterpolationName = Annotated[
    str,
    typer.Option(
        metavar="linear|cubic",
        help="[b]cubic[/b]: B-splines of order 3, as nnssl and nnU-Net.",
        rich_help_panel=_VOXELS,
    ),
]

Normalise = Annotated[
    str,
    typer.Option(
        metavar="zscore|foreground|percentile|window|none",
        help="[b]zscore[/b]: mean and deviation over the whole crop (as nnssl and nnU-Net); [b]foreground[/b]: "
        "over its non-zero voxels; [b]percentile[/b]: clipped at --percentiles, then zscore; [b]window[/b]: "
        "clipped at --window, mapped to -1..1; [b]none[/b].",
        rich_help_panel=_VOXELS,
    ),
]

Percentiles = Annotated[
    str, typer.Option(metavar="LOW,HIGH", help="Where [b]percentile[/b] clips.", rich_help_panel=_VOXELS)
]

Window = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="For CT, in Hounsfield units, such as -1000,1000; with --normalise window.",
        rich_help_panel=_VOXELS,
    ),
]

NumberTypeName = Annotated[
    str,
    typer.Option(
        metavar="float32|float16|int16",
        help="How voxels are stored; the report states the error of the 16-bit ones.",
        rich_help_panel=_VOXELS,
    ),
]

View = Annotated[
    str | None,
    typer.Option(
        metavar="D,H,W",
        help="Size of the views that will be cut, so that blocks fit; default suits 64 to 96.",
        rich_help_panel=_VOXELS,
    ),
]

FramesName = Annotated[
    str,
    typer.Option(
        metavar="refuse|channels|volumes",
        help="What becomes of 4-D NIfTI: set aside, a channel or an image a frame (a catalogue: index --frames).",
        rich_help_panel=_VOXELS,
    ),
]

FillNonfinite = Annotated[
    bool,
    typer.Option(
        "--fill-nonfinite",
        help="Write 0 in place of NaN and infinity instead of setting the image aside.",
        rich_help_panel=_VOXELS,
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes; 0 works in this one, without time limit. Default: one per core.",
        show_default=False,
        rich_help_panel=_SCALE,
    ),
]

ShardText = Annotated[
    str,
    typer.Option(
        metavar="i/n",
        help="Do the i-th of n parts, as in an array job; the last ends the store.",
        rich_help_panel=_SCALE,
    ),
]

ExecutorName = Annotated[str, typer.Option(metavar="local|dask", help="Who does the work.", rich_help_panel=_SCALE)]

Scheduler = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Dask's scheduler, tcp://host:8786, or its file.", rich_help_panel=_SCALE),
]

TimeLimit = Annotated[
    float,
    typer.Option(min=1.0, metavar="SECONDS", help="A file that takes longer is set aside.", rich_help_panel=_LIMITS),
]

MaxVoxels = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Set larger images aside, before or after resampling. Default: what this machine's memory allows.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]

CataloguePath = Annotated[
    Path,
    typer.Argument(
        metavar="CATALOGUE",
        help="A catalogue of `viewalign index`, nnssl's pretrain_data.json, or a folder of images.",
    ),
]
