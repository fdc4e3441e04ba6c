"""How every page is made: its template and the common style, with everything that is shown escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def file_text(name: str) -> str:
    """Return the text of a file beside this one."""
    return resources.files("viewalign.report").joinpath(name).read_text(encoding="utf-8")


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
