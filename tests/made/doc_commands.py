"""The command lines and programs that the docs show, page by page."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md"]
PAGES += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
PAGES += [f"docs/results/{path.name}" for path in sorted((ROOT / "docs" / "results").glob("*.md"))]

_INLINE = re.compile(r"`((?:viewalign|nnssl_\w+) [^`]*)`")


@dataclass(frozen=True)
class Command:
    """One command line as the page shows it, with its continuation lines joined.

    Attributes:
        page: relative to the repository.
        text: the line.
    """

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words without comments, without `srun` and its options, and without what the shell does next."""
        words = shlex.split(self.text, comments=True)
        words = words[: next((k for k, word in enumerate(words) if word in ("&", "&&")), None)]
        return words[words.index("viewalign") :] if words and words[0] == "srun" else words

    def __str__(self) -> str:
        return self.text


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and text of every fenced block."""
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append((line[3:].strip(), []))
        elif inside:
            found[-1][1].append(line)
    return [(kind, "\n".join(lines)) for kind, lines in found]


def commands(page: str) -> list[Command]:
    """Return a page's commands in order: of console blocks the text after `$`, of bash blocks every line."""
    found = []
    for kind, body in blocks(page):
        if kind not in ("console", "bash", ""):
            continue
        joined = re.sub(r"\\\n\s*", "", body)
        for line in joined.splitlines():
            if kind == "bash" and line.strip() and not line.startswith("#"):
                found.append(Command(page, line.strip()))
            elif kind != "bash" and line.startswith("$ "):
                found.append(Command(page, line[2:].strip()))
    return found


def inline(page: str) -> list[Command]:
    """Return the commands in a page's sentences and tables."""
    return [Command(page, " ".join(text.split())) for text in _INLINE.findall((ROOT / page).read_text())]


def programs(page: str) -> list[str]:
    """Return a page's Python programs."""
    return [body for kind, body in blocks(page) if kind == "python"]
