"""What became of one image of a run, and the guard that lets one file stop nothing but itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from viewalign.errors import RefusedImageError, is_full


@dataclass(frozen=True)
class Outcome:
    """What became of a job: stored as so many entries, refused (a reason), or nothing can be written (fatal)."""

    entries: int = 0
    reason: str | None = None
    fatal: str | None = None


class UnwritableError(Exception):
    """The folder of results cannot be written, so that going on is useless; the text is for the user."""


def guarded(prepare: Callable[[], int], forget: Callable[[], None]) -> Outcome:
    """Prepare one image and tell what became of it, whatever goes wrong.

    Args:
        prepare: does the work and returns the number of entries; raises `RefusedImageError` for an image that cannot
            be used and `UnwritableError` where nothing can be written.
        forget: removes what there is of the image, before, and after a refusal.
    """
    try:
        forget()
        return Outcome(entries=prepare())
    except RefusedImageError as refusal:
        forget()
        return Outcome(reason=str(refusal))
    except MemoryError:
        return Outcome(reason="there was not enough memory for it")
    except UnwritableError as error:
        return Outcome(fatal=str(error))
    except Exception as error:  # one file must never stop the run
        return Outcome(reason=f"unexpected {type(error).__name__}: {error}")


def unwritable(folder: Path, error: OSError) -> str:
    """Say why a folder cannot be written, and what to do."""
    if is_full(error):
        return f"The disk of {folder} is full. Make room and run the same command again; what is done stays."
    return f"The folder {folder} cannot be written: {error.strerror}. What is done stays; run the same command again."
