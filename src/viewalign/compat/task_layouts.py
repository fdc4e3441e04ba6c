"""Convert folders of BIDS, nnU-Net, SSL3D and FOMO to tasks with a manifest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from viewalign.compat.fomo_tasks import find_fomo
from viewalign.compat.task_conversion import (
    ConvertSettings,
    FoundTask,
    channel_specs,
    folds_of,
    make_spec,
    read_json,
    target_of,
)
from viewalign.data.sources.table import read_table
from viewalign.errors import UserError
from viewalign.tasks.manifest import TaskCase, check_images, write_manifest
from viewalign.tasks.spec import FILE, TaskSpec, distinct, write_spec
from viewalign.utils.outputs import check_folder
from viewalign.utils.tables import identifier


def find_bids(source: Path, wanted: ConvertSettings) -> FoundTask:
    """List sessions with an image of every channel whose subject has a target in `participants.tsv`.

    Images are `sub-*/[ses-*/]*/…_<suffix>.nii.gz`. Each session is a case, with the target of its own row if the table
    has a column `session_id`; a column `site` is copied.

    Raises:
        UserError: no table, no such column, or several targets of a participant without sessions.
    """
    rows = _participants(source, wanted.target)
    targets = [row[wanted.target] for each in rows.values() for row in each.values() if wanted.target in row]
    spec = make_spec(source.name, channel_specs(wanted.channels or ("T1w",)), targets, wanted.kind)
    cases, left_out = [], []
    for who, by_session in sorted(rows.items()):
        if all(wanted.target not in row for row in by_session.values()):
            left_out.append(f"{who} has no {wanted.target}.")
            continue
        only = next(iter(by_session.values())) if len(by_session) == 1 else {}
        sessions = _sessions(source / who)
        if not sessions:
            left_out.append(f"{who} of participants.tsv has no folder.")
        for session in sessions:
            alone = session == source / who
            name = who if alone else f"{who}_{session.name}"
            row = by_session.get(session.name) or by_session.get("") or (only if alone else {})
            if wanted.target not in row:
                left_out.append(f"{name} has no {wanted.target}.")
                continue
            images = _bids_images(session, spec)
            try:
                check_images(images, spec)
            except UserError as problem:
                left_out.append(f"{name} {problem}.")
                continue
            target = target_of(row[wanted.target], spec)
            cases.append(TaskCase(name, who, images, target=target, site=row.get("site", "")))
    folders = {path.name for path in source.glob("sub-*") if path.is_dir()}
    left_out += [f"{who} has no row in participants.tsv." for who in sorted(folders - rows.keys())]
    return FoundTask(spec, cases, left_out)


def _participants(source: Path, column: str) -> dict[str, dict[str, dict[str, str]]]:
    """Return the rows of `participants.tsv` by participant and session, which is "" where no session is named."""
    file = source / "participants.tsv"
    if not file.is_file():
        raise UserError(f"{source} has no participants.tsv.")
    columns, rows = read_table(file)
    if column not in columns or "participant_id" not in columns:
        missing = f"has no column '{column}'" if column else "has no labels without target=COLUMN"
        raise UserError(f"{file} {missing}; its columns are {', '.join(columns)}.")
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        if "participant_id" not in row:
            continue
        who = f"sub-{identifier(row['participant_id'].removeprefix('sub-'))}"
        session = identifier(row.get("session_id", "").removeprefix("ses-"))
        name = f"ses-{session}" if session else ""
        before = found.setdefault(who, {}).setdefault(name, row)
        if before.get(column) != row.get(column):
            of = f" and session {name}" if name else ""
            raise UserError(
                f"{file} has several rows with different {column} for the participant {who}{of}. Name the session of "
                "each row in a column session_id, or leave one row."
            )
    return found


def _sessions(subject: Path) -> list[Path]:
    found = sorted(path for path in subject.glob("ses-*") if path.is_dir())
    return found or ([subject] if subject.is_dir() else [])


def _bids_images(session: Path, spec: TaskSpec) -> dict[str, Path]:
    """Return the first image of each channel name or alias."""
    images: dict[str, Path] = {}
    for word in spec.image_names:
        first = next(iter(sorted([*session.glob(f"*/*_{word}.nii.gz"), *session.glob(f"*/*_{word}.nii")])), None)
        if first is not None:
            images[word] = first
    return images


_IMAGE = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})\.(?:nii\.gz|nii|nrrd|mha)$")


def find_nnunet(source: Path, wanted: ConvertSettings) -> FoundTask:
    """List the labelled cases of `imagesTr`.

    Raises:
        UserError: no images or no labels.
    """
    images = _by_channel(source / "imagesTr", _IMAGE, "<case>_0000.nii.gz")
    labels = _nnunet_labels(source)
    names = _channel_names(source, _channel_count(images))
    targets = [row["target"] for row in labels.values()]
    spec = make_spec(source.name, channel_specs(wanted.channels or names), targets, wanted.kind)
    left_out = [f"{name} has a label but no image." for name in sorted(set(labels) - set(images))]
    left_out += [f"{name} has no label." for name in sorted(set(images) - set(labels))]
    cases = []
    for name in sorted(set(images) & set(labels)):
        row = labels[name]
        files = _files(images[name], spec)
        masks = (source / "masks" / f"{name}{ending}" for ending in ("_0000_bet.nii.gz", ".nii.gz"))
        mask = next((path for path in masks if path.is_file()), None)
        target, subject, site = target_of(row["target"], spec), row.get("subject") or name, row.get("site") or ""
        cases.append(TaskCase(name, subject, files, mask, target, site))
    return FoundTask(spec, cases, left_out)


def _by_channel(folder: Path, pattern: re.Pattern[str], example: str) -> dict[str, dict[int, Path]]:
    """Return the files of each case by channel number."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*")):
        match = pattern.match(path.name)
        if match:
            found.setdefault(match["case"], {})[int(match["channel"])] = path
    if not found:
        raise UserError(f"{folder} has no image with a name like {example}.")
    return found


def _files(by_channel: Mapping[int, Path], spec: TaskSpec) -> dict[str, Path]:
    """Return the files of the task's channels by name; further channels are not used."""
    return {channel.name: by_channel[k] for k, channel in enumerate(spec.channels) if k in by_channel}


def _channel_count(images: dict[str, dict[int, Path]]) -> int:
    return 1 + max(channel for channels in images.values() for channel in channels)


def _nnunet_labels(source: Path) -> dict[str, dict[str, Any]]:
    if (source / "labels.csv").is_file():
        columns, rows = read_table(source / "labels.csv")
        if not {"case", "target"} <= set(columns):
            raise UserError(f"{source / 'labels.csv'} needs the columns case and target, not {', '.join(columns)}.")
        return {row["case"]: row for row in rows if {"case", "target"} <= set(row)}
    if (source / "labels.json").is_file():
        table = read_json(source / "labels.json")
        return {str(name): {"target": label} for name, label in table.items() if label is not None}
    raise UserError(f"{source} has no labels.csv or labels.json.")


def _channel_names(source: Path, count: int) -> list[str]:
    file = source / "dataset.json"
    given = read_json(file).get("channel_names", {}) if file.is_file() else {}
    return distinct([str(given.get(str(k), f"channel{k}")).replace(" ", "_") for k in range(count)])


_SSL3D_IMAGE = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})\.b2nd$")


def find_ssl3d(source: Path, wanted: ConvertSettings) -> FoundTask:
    """List the labelled cases, with the folds of `splits.json` if each case is in exactly one.

    Raises:
        UserError: no arrays or no labels.
    """
    images = _by_channel(source, _SSL3D_IMAGE, "<case>_0000.b2nd")
    labels = _ssl3d_labels(source)
    names = wanted.channels or [f"channel{k}" for k in range(_channel_count(images))]
    spec = make_spec(source.name, channel_specs(names), labels.values(), wanted.kind)
    shared = sorted(set(images) & set(labels))
    folds = folds_of(_splits(source), shared)
    cases = []
    for name in shared:
        files = _files(images[name], spec)
        cases.append(TaskCase(name, name, files, target=target_of(labels[name], spec), fold=folds.get(name)))
    left_out = [f"{name} has no label." for name in sorted(set(images) - set(labels))]
    left_out += [f"{name} has a label but no array." for name in sorted(set(labels) - set(images))]
    return FoundTask(spec, cases, left_out)


def _ssl3d_labels(source: Path) -> dict[str, Any]:
    new, old = source / "labels.json", source / "labelsTr.json"
    if new.is_file():
        return {str(name): label for name, label in read_json(new).items() if label is not None}
    if old.is_file():
        return {str(name): label[1] if isinstance(label, list) else label for name, label in read_json(old).items()}
    raise UserError(f"{source} has no labels.json or labelsTr.json.")


def _splits(source: Path) -> list[dict[str, list[str]]]:
    file = next((source / name for name in ("splits.json", "splits_final.json") if (source / name).is_file()), None)
    return [] if file is None else list(read_json(file))


LAYOUTS: dict[str, Callable[[Path, ConvertSettings], FoundTask]] = {
    "nnunet": find_nnunet,
    "ssl3d": find_ssl3d,
    "fomo": find_fomo,
    "bids": find_bids,
}


def convert(layout: str, source: Path, out: Path, wanted: ConvertSettings | None = None) -> FoundTask:
    """Write `task.yaml` and `manifest.csv` for a folder in one of `LAYOUTS`.

    Raises:
        UserError: an unknown layout, or no labelled case in the folder.
    """
    if layout not in LAYOUTS:
        raise UserError(f"There is no layout '{layout}'; there are {', '.join(LAYOUTS)}.")
    if not source.is_dir():
        raise UserError(f"There is no folder {source}.")
    found = LAYOUTS[layout](source, wanted or ConvertSettings())
    if not found.cases:
        raise UserError(
            f"{source} has no labelled case in the layout '{layout}'. {' '.join(found.left_out[:3])}".strip()
        )
    if any((out / name).exists() for name in (FILE, "manifest.csv")):  # which may have been edited
        check_folder(out, "task")
    write_spec(found.spec, out)
    write_manifest(found.cases, found.spec, out)
    return found
