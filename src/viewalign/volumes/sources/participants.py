"""Tables of persons and images, as text: CSV or TSV, with or without the byte-order mark spreadsheets write."""

from __future__ import annotations

import csv
from pathlib import Path

from viewalign.errors import UserError

_NOTHING = frozenset(("", "n/a", "na", "nan", "none", "null"))


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and rows of a CSV (comma or semicolon) or TSV file; what stands for nothing is left out.

    Raises:
        UserError: unreadable, no text, or a row that is longer than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=_delimiter(path))
            rows = [_row(path, reader.line_num, row) for row in reader]
            return [column.strip() for column in reader.fieldnames or []], rows
    except OSError as error:
        raise UserError(f"The table {path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table in UTF-8 text: {error}.") from None


def participants(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a `participants.tsv` by participant; empty where there is no such file or column."""
    if not path.is_file():
        return {}
    columns, rows = read_table(path)
    key = next((name for name in ("participant_id", "subject_id", "subject") if name in columns), None)
    return {row.pop(key): row for row in rows if key in row} if key else {}


def _delimiter(path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
    return ";" if first.count(";") > first.count(",") else ","


def _row(path: Path, line: int, row: dict[str | None, str | None]) -> dict[str, str]:
    if None in row:
        raise UserError(f"{path}, line {line}: more values than columns.")
    cleaned = {str(key).strip(): (value or "").strip() for key, value in row.items()}
    return {key: value for key, value in cleaned.items() if value.lower() not in _NOTHING}
