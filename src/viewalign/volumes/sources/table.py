"""A table of images: a CSV or TSV file with a column `path`.

| column | meaning |
|---|---|
| `path` | the image (or a slice of a DICOM stack); `$VARIABLE/…`, absolute, or relative to the table's folder |
| `subject`, `session`, `modality`, `dataset`, `name` | whose it is; what is left out is guessed from the path |
| `anonymization_mask`, `anatomy_mask` | masks on its voxels |
| any other | goes into `image_info` as text |
"""

from __future__ import annotations

import difflib
from pathlib import Path, PurePosixPath

from viewalign.errors import UserError
from viewalign.volumes.catalogue import AssociatedMasks, resolve
from viewalign.volumes.filetypes import suffix_of
from viewalign.volumes.sources.findings import Findings, FindOptions, Found, Infos
from viewalign.volumes.sources.naming import names_of
from viewalign.volumes.sources.participants import read_table
from viewalign.volumes.sources.walking import absolute

_ALIASES = {
    "image_path": "path",
    "image": "path",
    "file": "path",
    "subject_id": "subject",
    "participant_id": "subject",
    "session_id": "session",
    "anonymisation_mask": "anonymization_mask",
    "anon_mask_path": "anonymization_mask",
    "anat_mask_path": "anatomy_mask",
}
_MASKS = ("anonymization_mask", "anatomy_mask")
_KNOWN = ("path", "dataset", "subject", "session", "modality", "name", *_MASKS)


def claims(text: str) -> bool:
    """Take a file whose name ends in `.csv` or `.tsv`."""
    return Path(text).suffix.lower() in (".csv", ".tsv") and Path(text).is_file()


def find(text: str, options: FindOptions) -> Findings:
    """List the images of a table, in its order.

    Raises:
        UserError: no column `path`, a column that looks like a misspelt one, or a row without a path.
    """
    table = absolute(text)
    columns, rows = read_table(table)
    names = _column_names(table, columns)
    findings = Findings()
    for number, row in enumerate(rows, start=2):
        known = {names[key]: value for key, value in row.items() if key in names}
        if "path" not in known:
            raise UserError(f"{table}, line {number}: the path is empty.")
        others = {key: value for key, value in row.items() if key not in names}
        findings.found.append(_found(table, known, others, options))
    return findings


def _found(table: Path, row: dict[str, str], others: dict[str, str], options: FindOptions) -> Found:
    written = row["path"]
    path = resolve(written, table.parent)
    relative = PurePosixPath(written).relative_to("/") if written.startswith("/") else PurePosixPath(written)
    stem = path.name[: -len(suffix_of(path.name) or path.suffix) or None]
    guess = names_of(relative, stem, options.subject_pattern)
    masks = [str(resolve(row[key], table.parent)) if key in row else None for key in _MASKS]
    return Found(
        path,
        row.get("dataset") or table.stem,
        row.get("subject") or guess.subject,
        row.get("session") or guess.session,
        row.get("name") or stem,
        row.get("modality") or guess.modality,
        masks=AssociatedMasks(*masks) if any(masks) else None,
        infos=Infos(image=others or None),
        written=written if written.startswith("$") else None,
    )


def _column_names(table: Path, columns: list[str]) -> dict[str, str]:
    """Return the known columns of a table by the names it gives them."""
    lower = {column: column.lower().replace(" ", "_") for column in columns}
    names = {column: _ALIASES.get(name, name) for column, name in lower.items()}
    known = {column: name for column, name in names.items() if name in _KNOWN}
    if "path" not in known.values():
        raise UserError(f"{table} has no column `path`. Its columns: {', '.join(columns) or 'none'}.")
    for column in columns:
        near = difflib.get_close_matches(lower[column], _KNOWN, n=1, cutoff=0.8)
        if column not in known and near and near[0] not in known.values():
            raise UserError(f"{table}: the column `{column}` is unknown; did you mean `{near[0]}`?")
    return known
