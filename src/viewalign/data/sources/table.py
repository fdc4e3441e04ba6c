"""Tables of subjects and images: CSV or TSV, with or without the byte-order mark that spreadsheets write."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from viewalign.data.catalogue import AssociatedMasks, resolve
from viewalign.data.file_types import suffix_of
from viewalign.data.sources.naming import names_of
from viewalign.data.sources.records import FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.walk import absolute
from viewalign.errors import UserError
from viewalign.utils.overrides import similar

_NOTHING = frozenset(("", "n/a", "na", "nan", "none", "null"))


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and rows of a CSV (comma or semicolon) or TSV file; missing values are dropped.

    Raises:
        UserError: unreadable, not UTF-8 text, or a row with more values than columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=_delimiter(path))
            rows = [_row(path, reader.line_num, row) for row in reader]
            return [column.strip() for column in reader.fieldnames or []], rows
    except OSError as error:
        raise UserError(f"The table {path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table in UTF-8: {error}. Save it again as CSV UTF-8.") from None


def participants(folder: Path, notes: list[str]) -> dict[str, dict[str, str]]:
    """Return the rows of a folder's `participants.tsv` by participant; empty without such a file or column.

    This table only adds information, so that errors in it do not stop indexing: text that is not UTF-8 is read as
    Latin-1, values beyond the last column are dropped, and an unreadable file is ignored; each is added to `notes`.
    """
    path = folder / "participants.tsv"
    if not path.is_file():
        return {}
    shown = f"{folder.name}/{path.name}"
    try:
        content = path.read_bytes()
    except OSError as error:
        notes.append(f"{shown} cannot be read ({error.strerror}); its information on subjects is ignored")
        return {}
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
        notes.append(f"{shown} is not UTF-8; it was read as Latin-1")
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    columns = [name.strip() for name in lines[0]] if lines else []
    longer = sum(len(line) > len(columns) for line in lines)
    if longer:
        notes.append(f"{shown}: values beyond the last column were dropped in {longer} rows")
    key = next((name for name in ("participant_id", "subject_id", "subject") if name in columns), None)
    rows = [_cleaned(dict(zip(columns, line, strict=False))) for line in lines[1:]]
    return {row.pop(key): row for row in rows if key in row} if key else {}


def _delimiter(path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
    return ";" if first.count(";") > first.count(",") else ","


def _row(path: Path, line: int, row: dict[str | None, str | None]) -> dict[str, str]:
    if any((value or "").strip() for value in row.pop(None, None) or ()):
        raise UserError(f"{path}, line {line}: more values than columns.")
    return _cleaned({str(key).strip(): value or "" for key, value in row.items()})


def _cleaned(row: dict[str, str]) -> dict[str, str]:
    """Return values that are not missing."""
    return {key: text for key, value in row.items() if (text := value.strip()).lower() not in _NOTHING}


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


def can_read(text: str) -> bool:
    """Accept a file whose name ends in `.csv` or `.tsv`."""
    return Path(text).suffix.lower() in (".csv", ".tsv") and Path(text).is_file()


def find(text: str, options: FindOptions) -> SourceContents:
    """List the images of a table, in its order.

    Raises:
        UserError: no column `path`, a column that looks like a misspelt one, or a row without a path.
    """
    table = absolute(text)
    columns, rows = read_table(table)
    names = _column_names(table, columns)
    findings = SourceContents()
    for number, row in enumerate(rows, start=2):
        known = {names[key]: value for key, value in row.items() if key in names}
        if "path" not in known:
            raise UserError(f"{table}, line {number}: the path is empty.")
        others = {key: value for key, value in row.items() if key not in names}
        findings.found.append(_found(table, known, others, options))
    return findings


def _found(table: Path, row: dict[str, str], others: dict[str, str], options: FindOptions) -> ImageRecord:
    written = row["path"]
    path = resolve(written, table.parent)
    relative = PurePosixPath(written).relative_to("/") if written.startswith("/") else PurePosixPath(written)
    stem = path.name[: -len(suffix_of(path.name) or path.suffix) or None]
    guess = names_of(relative, stem, options.subject_pattern)
    masks = [str(resolve(row[key], table.parent)) if key in row else None for key in _MASKS]
    return ImageRecord(
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
    """Return the known columns of a table by their names in it."""
    lower = {column: column.lower().replace(" ", "_") for column in columns}
    names = {column: _ALIASES.get(name, name) for column, name in lower.items()}
    known = {column: name for column, name in names.items() if name in _KNOWN}
    if "path" not in known.values():
        raise UserError(f"{table} has no column `path`. Its columns: {', '.join(columns) or 'none'}.")
    missing = set(_KNOWN) - set(known.values())
    for column in columns:
        if column not in known and (near := similar(lower[column], sorted(missing), 0.8)):
            raise UserError(f"{table}: the column '{column}' is unknown{near}.")
    return known
