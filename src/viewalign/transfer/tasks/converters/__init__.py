"""Other people's layouts, made into a task: a YAML file and a table, no image copied. One file a layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from viewalign.errors import UserError
from viewalign.transfer.tasks.converters import bids, fomo, nnunet, ssl3d
from viewalign.transfer.tasks.converters.found import FoundTask, Wanted
from viewalign.transfer.tasks.manifest import write_manifest
from viewalign.transfer.tasks.spec import write_spec

LAYOUTS: dict[str, Callable[[Path, Wanted], FoundTask]] = {
    "nnunet": nnunet.find,
    "ssl3d": ssl3d.find,
    "fomo": fomo.find,
    "bids": bids.find,
}


def convert(layout: str, source: Path, out: Path, wanted: Wanted | None = None) -> FoundTask:
    """Write `task.yaml` and `manifest.csv` for a folder in one of `LAYOUTS`; the folder itself is only read.

    Raises:
        UserError: an unknown layout, or one that this folder does not have.
    """
    if layout not in LAYOUTS:
        raise UserError(f"There is no layout '{layout}'; there are {', '.join(LAYOUTS)}.")
    if not source.is_dir():
        raise UserError(f"There is no folder {source}.")
    found = LAYOUTS[layout](source, wanted or Wanted())
    if not found.cases:
        raise UserError(
            f"{source} holds no labelled case in the layout '{layout}'. {' '.join(found.left_out[:3])}".strip()
        )
    write_spec(found.spec, out)
    write_manifest(found.cases, found.spec, out)
    return found
