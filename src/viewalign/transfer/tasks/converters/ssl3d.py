"""The prepared layout of SSL3D_classification: `<case>_0000.b2nd …`, `labels.json`, `splits.json` in one folder.

The arrays (1, D, H, W) are resampled and normalised already; set `spacing: none` or the same spacing and
`normalise: none` to take them as they are. Older sets name the files `labelsTr.json` and `splits_final.json`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.transfer.tasks.converters.found import (
    FoundTask,
    Wanted,
    channel_specs,
    folds_of,
    make_spec,
    read_json,
    target_of,
)
from viewalign.transfer.tasks.manifest import TaskCase

_IMAGE = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})\.b2nd$")


def find(source: Path, wanted: Wanted) -> FoundTask:
    """List the labelled cases, with the folds of `splits.json` where each case is judged in exactly one.

    Raises:
        UserError: no arrays or no labels.
    """
    images: dict[str, dict[int, Path]] = {}
    for path in sorted(source.glob("*.b2nd")):
        match = _IMAGE.match(path.name)
        if match:
            images.setdefault(match["case"], {})[int(match["channel"])] = path
    if not images:
        raise UserError(f"{source} holds no array named as <case>_0000.b2nd.")
    labels = _labels(source)
    count = 1 + max(channel for channels in images.values() for channel in channels)
    channels = channel_specs(wanted.channels or [f"channel{k}" for k in range(count)])
    spec = make_spec(source.name, channels, labels.values(), wanted.kind)
    named = sorted(set(images) & set(labels))
    folds = folds_of(_splits(source), named)
    cases = [
        TaskCase(
            name,
            name,
            {spec.channels[k].name: path for k, path in sorted(images[name].items())},
            target=target_of(labels[name], spec),
            fold=folds.get(name),
        )
        for name in named
    ]
    left_out = [f"{name} has no label." for name in sorted(set(images) - set(labels))]
    left_out += [f"{name} has a label and no array." for name in sorted(set(labels) - set(images))]
    return FoundTask(spec, cases, left_out)


def _labels(source: Path) -> dict[str, Any]:
    new, old = source / "labels.json", source / "labelsTr.json"
    if new.is_file():
        return {str(name): label for name, label in read_json(new).items() if label is not None}
    if old.is_file():
        return {str(name): label[1] if isinstance(label, list) else label for name, label in read_json(old).items()}
    raise UserError(f"{source} holds no labels.json or labelsTr.json.")


def _splits(source: Path) -> list[dict[str, list[str]]]:
    file = next((source / name for name in ("splits.json", "splits_final.json") if (source / name).is_file()), None)
    return [] if file is None else list(read_json(file))
