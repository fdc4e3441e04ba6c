"""nnU-Net's raw layout with a label a case.

`imagesTr/<case>_0000.nii.gz …`, `dataset.json` with `channel_names` (optional), `labels.json` (`{case: label}`) or
`labels.csv` (columns `case` and `target`, perhaps `subject` and `site`); brain masks in `masks/`.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.transfer.tasks.converters.found import FoundTask, Wanted, channel_specs, make_spec, read_json, target_of
from viewalign.transfer.tasks.manifest import TaskCase

_IMAGE = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})\.(?:nii\.gz|nii|nrrd|mha)$")


def find(source: Path, wanted: Wanted) -> FoundTask:
    """List the labelled cases of `imagesTr`.

    Raises:
        UserError: no images or no labels.
    """
    images = _images(source / "imagesTr")
    labels = _labels(source)
    count = 1 + max(channel for channels in images.values() for channel in channels)
    names = _channel_names(source, count)
    spec = make_spec(
        source.name, channel_specs(wanted.channels or names), [row["target"] for row in labels.values()], wanted.kind
    )
    cases, left_out = [], [f"{name} has a label and no image." for name in sorted(set(labels) - set(images))]
    for name, channels in sorted(images.items()):
        if name not in labels:
            left_out.append(f"{name} has no label.")
            continue
        row = labels[name]
        files = {spec.channels[k].name: path for k, path in sorted(channels.items())}
        mask = next(
            (m for m in (source / "masks" / f"{name}{end}" for end in ("_0000_bet.nii.gz", ".nii.gz")) if m.is_file()),
            None,
        )
        cases.append(
            TaskCase(
                name, row.get("subject") or name, files, mask, target_of(row["target"], spec), row.get("site") or ""
            )
        )
    return FoundTask(spec, cases, left_out)


def _images(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        match = _IMAGE.match(path.name)
        if match:
            found.setdefault(match["case"], {})[int(match["channel"])] = path
    if not found:
        raise UserError(f"{folder} holds no image named as <case>_0000.nii.gz.")
    return found


def _labels(source: Path) -> dict[str, dict[str, Any]]:
    if (source / "labels.csv").is_file():
        with (source / "labels.csv").open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
        if rows and not {"case", "target"} <= set(rows[0]):
            raise UserError(f"{source / 'labels.csv'} needs the columns case and target, not {', '.join(rows[0])}.")
        return {row["case"]: row for row in rows if row["target"] not in ("", None)}
    if (source / "labels.json").is_file():
        table = read_json(source / "labels.json")
        return {str(name): {"target": label} for name, label in table.items() if label is not None}
    raise UserError(f"{source} holds no labels.csv or labels.json, which say each case's target.")


def _channel_names(source: Path, count: int) -> list[str]:
    file = source / "dataset.json"
    told = read_json(file).get("channel_names", {}) if file.is_file() else {}
    names = [str(told.get(str(k), f"channel{k}")).replace(" ", "_") for k in range(count)]
    return names if len(set(names)) == count else [f"{name}{k}" for k, name in enumerate(names)]
