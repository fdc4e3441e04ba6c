"""Write the notebooks of the tutorials from their pages: python docs/make_notebooks.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGES = DOCS / "tutorials"
NOTEBOOKS = DOCS.parent / "examples" / "notebooks"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.S | re.M)
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\.md[^)]*\)")


def notebook(page: Path) -> str:
    """Return a page as a notebook (format 4.5): its Python blocks are cells of code, the rest is Markdown."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(_BLOCK.split(page.read_text(encoding="utf-8"))):
        text = part.strip("\n") if number % 2 else _LINK.sub(r"\1", part).strip()
        if not text:
            continue
        cell: dict[str, Any] = {"id": f"{page.stem}-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        code = {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**cell, **(code if number % 2 else {"cell_type": "markdown"})})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    tree = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOKS.mkdir(parents=True, exist_ok=True)
    for page in sorted(PAGES.glob("*.md")):
        (NOTEBOOKS / f"{page.stem}.ipynb").write_text(notebook(page), encoding="utf-8")
