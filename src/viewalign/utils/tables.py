"""Text in tables that people open in a spreadsheet, which would run a cell that begins like a formula."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_QUOTE = "'"


def cell_text(text: str) -> str:
    """Return a text with an apostrophe in front if a spreadsheet would take it for a formula; numbers stay."""
    if not text.lstrip(_QUOTE).startswith(_FORMULA) or _is_number(text):
        return text
    return _QUOTE + text


def text_of(written: str) -> str:
    """Return the text that `cell_text` was called with."""
    return written[1:] if written.startswith(_QUOTE) and cell_text(written[1:]) == written else written


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
