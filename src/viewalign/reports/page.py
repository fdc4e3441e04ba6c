"""Templates, common style, formatting and writing of every page; everything shown is escaped."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from viewalign.errors import UserError
from viewalign.utils.io import atomic_write
from viewalign.utils.outputs import check_file
from viewalign.utils.text import counted


def file_text(name: str) -> str:
    """Return the text of a file beside this one."""
    return resources.files("viewalign.reports").joinpath(name).read_text(encoding="utf-8")


def save_page(path: Path, text: str) -> Path:
    """Write a page atomically and return its path.

    Raises:
        UserError: it cannot be written, its name does not end in .html, or another file has the name.
    """
    check_page(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as problem:
        raise UserError(f"The page {path} cannot be written: {problem.strerror}.") from None
    return path


def check_page(path: Path) -> None:
    """Check that a page may be written.

    Raises:
        UserError: its name does not end in .html, or another file has the name.
    """
    check_file(path, "page of viewalign", (".html",), _is_ours)


def _is_ours(page: Path) -> bool:
    """Return whether a file is a page of this package; its title is near its start."""
    with page.open("rb") as file:
        return b" \xc2\xb7 viewalign</title>" in file.read(10_000)


def render_template(template: str, /, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Fill a template of this folder; `style` is passed to it."""
    environment = Environment(
        loader=FunctionLoader(file_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"counted": counted, **(filters or {})})
    return environment.get_template(template).render(style=Markup(file_text("page.css")), **values)


def data_url(image: NDArray[np.uint8]) -> str:
    """Return an image (rows, columns) in grey or (rows, columns, 3) in colour as a data URL in PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


_QUOTED_PATH = re.compile(r"(['\"])((?:[A-Za-z]:)?[\\/~][^'\"\n]*[\\/][^'\"\n]*)\1")
_WHOLE_PATH = re.compile(r"(?:[A-Za-z]:[\\/]|\\\\|~?/).*")
_PATH = re.compile(r"(?<![\w.:/\\…-])(?:[A-Za-z]:\\|\\\\|~?/)(?:[^\s'\",;:<>|\\/]+[\\/]+)+[^\s'\",;:<>|\\/]*")


def number(value: float) -> str:
    """Write a number with three significant digits: `0.0312`, `105`, `7.6e-6`, `2,664,819`."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 999.5:  # which would be rounded to 1e+03
        return f"{value:,.0f}"
    if size < 1e-3:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{value:.3g}"


def score(value: float, sign: str = "") -> str:
    """Write a score with three decimals, from 10 on with three digits: `0.544`, `375`; `sign="+"` writes a plus too."""
    text = f"{value:.3f}" if abs(value) < 9.9995 else number(value)
    return f"{sign}{text}" if value >= 0 else text


def percent(share: float) -> str:
    """Write a fraction in percent: `0.4 %`, `12 %`."""
    if not math.isfinite(share):
        return "not finite"
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def leaf(path: str) -> str:
    """Return the last part of a path of any system."""
    parts = [part for part in re.split(r"[\\/]", path) if part]
    return parts[-1] if parts else path


def without_paths(text: str) -> str:
    """Shorten absolute paths in a text to their last part, because pages are shared.

    A path with spaces is known as a whole only in quotes or below the home folder of this user, which `~` replaces; of
    others, what follows the first space stays.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 (which raises if there is none)
    if " " in home:
        text = re.sub(rf"{re.escape(home)}(?=[\\/])", "~", text)
    text = _QUOTED_PATH.sub(lambda found: f"{found[1]}…/{leaf(found[2])}{found[1]}", text)
    return _PATH.sub(lambda found: f"…/{leaf(found[0])}", text)


def values_without_paths(tree: Any) -> Any:
    """Shorten texts of nested settings that are absolute paths, perhaps with spaces, to their last part."""
    if isinstance(tree, Mapping):
        return {key: values_without_paths(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [values_without_paths(value) for value in tree]
    return f"…/{leaf(tree)}" if isinstance(tree, str) and _WHOLE_PATH.fullmatch(tree) else tree
