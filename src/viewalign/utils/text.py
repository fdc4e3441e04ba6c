"""Counts and sizes in messages and pages: with their noun in singular or plural, and large ones in short form."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "") -> str:
    """Write a count with its noun: `1 volume`, `3,000 volumes`.

    Args:
        count: any whole number; only 1 has the singular.
        one: the noun in the singular, perhaps with words before it.
        many: its plural; default is the singular with an s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def short_count(count: int) -> str:
    """Write a large count with three digits and a unit: `850`, `12.3 k`, `102 M`, `1.2 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def size_text(count: float) -> str:
    """Write a number of bytes with one decimal and a unit of 1000 bytes each: `999 bytes`, `3.2 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.99995 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
