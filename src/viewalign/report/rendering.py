"""How every page is made and written: template and common style, with everything that is shown escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from viewalign.errors import UserError
from viewalign.writing import whole


def file_text(name: str) -> str:
    """Return the text of a file beside this one."""
    return resources.files("viewalign.report").joinpath(name).read_text(encoding="utf-8")


def write_text(path: Path, text: str) -> Path:
    """Write a page, whole or not at all, and return its path.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as problem:
        raise UserError(f"The page {path} cannot be written: {problem.strerror}.") from None
    return path


def render_template(template: str, /, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Fill a template of this folder; `style` is given to it."""
    environment = Environment(
        loader=FunctionLoader(file_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template).render(style=Markup(file_text("page.css")), **values)
