"""Text in tables that people edit with a spreadsheet or pandas, which change some of it."""

from __future__ import annotations

import re

MISSING = frozenset(("", "n/a", "na", "nan", "none", "null"))
"""What spreadsheets and pandas write where a value is missing, in lower case."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_QUOTE = "'"


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
