"""Text in tables that people edit with a spreadsheet or pandas, which change some of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from viewalign.errors import UserError
from viewalign.utils.overrides import similar

MISSING = frozenset(("", "n/a", "na", "nan", "none", "null"))
"""What spreadsheets and pandas write where a value is missing, in lower case."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_QUOTE = "'"


_PEOPLE = ("patientid", "patient", "participant", "personid", "person", "subjid", "subj", "pid", "patientname")
"""Names, as `column_key` returns them, of columns that state the subject if there is no column `subject`; the first one
found is used."""


def column_key(column: str) -> str:
    """Return the name of a column in lower case without blanks, hyphens and underscores."""
    return re.sub(r"[-_\s]+", "", column.lower())


def known_columns(
    file: Path, columns: Iterable[str], names: Mapping[str, str], found: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return which columns of a table are known, with their usual names.

    Args:
        file: the table, for messages.
        columns: as they are written.
        names: usual names by `column_key`; one of them is `subject`.
        found: columns that are known already.

    Raises:
        UserError: two columns have the same meaning.
    """
    columns, known = list(columns), dict(found or {})
    known |= {column: names[key] for column in columns if column not in known and (key := column_key(column)) in names}
    if "subject" not in known.values():
        people = [column for person in _PEOPLE for column in columns if column_key(column) == person]
        known |= dict.fromkeys(people[:1], "subject")
    for name, count in Counter(known.values()).items():
        if count > 1:
            same = " and ".join(f"'{column}'" for column, each in known.items() if each == name)
            raise UserError(f"{file}: the columns {same} mean the same.")
    return known


def refuse_misspelt(file: Path, columns: Iterable[str], known: Mapping[str, str], names: Iterable[str]) -> None:
    """Check that no unknown column looks like a misspelt one of `names`.

    Raises:
        UserError: one does.
    """
    missing = sorted(set(names) - set(known.values()))
    for column in columns:
        if column not in known and (near := similar(column.lower().replace(" ", "_"), missing, 0.8)):
            raise UserError(f"{file}: the column '{column}' is unknown{near}. Rename it, or remove it.")


def cell_text(text: str) -> str:
    """Return a text with an apostrophe in front if a spreadsheet would take it for a formula; numbers stay."""
    if not text.lstrip(_QUOTE).startswith(_FORMULA) or is_number(text):
        return text
    return _QUOTE + text


def text_of(written: str) -> str:
    """Return the text that `cell_text` was called with."""
    return written[1:] if written.startswith(_QUOTE) and cell_text(written[1:]) == written else written


def identifier(text: str) -> str:
    """Return `1` for `1.0`, which is how pandas writes whole numbers of a column in which others are missing."""
    return text.partition(".")[0] if re.fullmatch(r"\d+\.0", text, re.ASCII) else text


def is_number(text: str) -> bool:
    """Return whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
