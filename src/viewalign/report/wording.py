"""Numbers and texts as a reader wants them: few digits, and nothing of the machine they come from."""

from __future__ import annotations

import math
import re

_QUOTED_PATH = re.compile(r"(['\"])((?:[A-Za-z]:)?[\\/~][^'\"\n]*[\\/][^'\"\n]*)\1")
_PATH = re.compile(r"(?<![\w.:/\\…-])(?:[A-Za-z]:\\|\\\\|~?/)(?:[^\s'\",;:<>|\\/]+[\\/]+)+[^\s'\",;:<>|\\/]*")


def number(value: float) -> str:
    """Write a number with three significant digits: `0.0312`, `105`, `7.6e-6`, `2,664,819`."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Write a share of 1: `0.4 %`, `12 %`."""
    if not math.isfinite(share):
        return "not finite"
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def counted(count: int, one: str, many: str = "") -> str:
    """Write a count with its noun: `1 volume`, `3 volumes`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def leaf(path: str) -> str:
    """Return the last part of a path of any system."""
    parts = [part for part in re.split(r"[\\/]", path) if part]
    return parts[-1] if parts else path


def without_paths(text: str) -> str:
    """Shorten absolute paths in a text to their last part: a page is shown to others, a machine's folders are not."""
    text = _QUOTED_PATH.sub(lambda found: f"{found[1]}…/{leaf(found[2])}{found[1]}", text)
    return _PATH.sub(lambda found: f"…/{leaf(found[0])}", text)
