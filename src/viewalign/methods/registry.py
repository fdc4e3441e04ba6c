"""From a method's name to the method: one line each."""

from __future__ import annotations

from importlib import import_module

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods.base import Method

METHODS = {
    "cva": "viewalign.methods.cva",
}
"""Each method's module; it offers `build(recipe)`."""


def build_method(recipe: Recipe) -> Method:
    """Build the method that a recipe names.

    Raises:
        UserError: there is no such method.
    """
    if recipe.method not in METHODS:
        raise UserError(f"There is no method '{recipe.method}'; there are {', '.join(METHODS)}.")
    method: Method = import_module(METHODS[recipe.method]).build(recipe)
    return method
