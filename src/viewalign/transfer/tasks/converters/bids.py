"""BIDS: the target is a column of `participants.tsv`, the images are `sub-*/[ses-*/]*/…_<suffix>.nii.gz`.

Every session is a case of its own, with the subject's target; a column `site` is taken along.
"""

from __future__ import annotations

import csv
from pathlib import Path

from viewalign.errors import UserError
from viewalign.transfer.tasks.converters.found import FoundTask, Wanted, channel_specs, make_spec, target_of
from viewalign.transfer.tasks.manifest import TaskCase
from viewalign.transfer.tasks.spec import TaskSpec

_MISSING = ("", "n/a")


def find(source: Path, wanted: Wanted) -> FoundTask:
    """List each session that has an image of every channel and whose subject has a target.

    Raises:
        UserError: no table, or no such column.
    """
    rows = _participants(source, wanted.target)
    channels = channel_specs(wanted.channels or ("T1w",))
    known = {who: row for who, row in rows.items() if row[wanted.target] not in _MISSING}
    spec = make_spec(source.name, channels, [row[wanted.target] for row in known.values()], wanted.kind)
    cases = []
    left_out = [f"{who} has no {wanted.target}." for who in rows if who not in known]
    for who, row in sorted(known.items()):
        for session in _sessions(source / who):
            name = who if session == source / who else f"{who}_{session.name}"
            images = _images(session, spec)
            if all(any(w in images for w in (c.name, *c.aliases)) for c in spec.channels):
                cases.append(
                    TaskCase(name, who, images, target=target_of(row[wanted.target], spec), site=row.get("site") or "")
                )
            else:
                left_out.append(f"{name} lacks an image of {', '.join(c.name for c in spec.channels)}.")
    return FoundTask(spec, cases, left_out)


def _participants(source: Path, column: str) -> dict[str, dict[str, str]]:
    file = source / "participants.tsv"
    if not file.is_file():
        raise UserError(f"{source} holds no participants.tsv.")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    columns = list(rows[0]) if rows else []
    if column not in columns or "participant_id" not in columns:
        raise UserError(f"{file} has no column '{column}'; --target takes one of {', '.join(columns)}.")
    return {
        row["participant_id"] if row["participant_id"].startswith("sub-") else f"sub-{row['participant_id']}": row
        for row in rows
    }


def _sessions(subject: Path) -> list[Path]:
    found = sorted(path for path in subject.glob("ses-*") if path.is_dir())
    return found or ([subject] if subject.is_dir() else [])


def _images(session: Path, spec: TaskSpec) -> dict[str, Path]:
    """Return the first image of each suffix, by name."""
    images: dict[str, Path] = {}
    for channel in spec.channels:
        for word in (channel.name, *channel.aliases):
            first = next(iter(sorted([*session.glob(f"*/*_{word}.nii.gz"), *session.glob(f"*/*_{word}.nii")])), None)
            if first is not None:
                images[word] = first
    return images
