"""A script that starts processes needs `if __name__ == "__main__":`, which is checked before they start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from viewalign.errors import UserError


def check_main_guard(call: str) -> None:
    """Reject a call from the top level of a script without a guard.

    Each process that is started imports the script again, reaches the same call, and ends in an error of
    `multiprocessing` that does not name the cause.

    Args:
        call: what is called, for the message.

    Raises:
        UserError: the call stands at the top level of a script that has no guard.
    """
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if file is None or (spec is not None and spec.name.endswith("__main__")):
        return  # a notebook, `python -c` or `python -m package`, which are not imported again
    at_top_level = any(
        frame.f_code.co_name == "<module>" and frame.f_globals is vars(main) for frame in _frames(sys._getframe())
    )
    if at_top_level and "__name__" not in Path(file).read_text(encoding="utf-8", errors="replace"):
        raise UserError(
            f"{call} starts processes, each of which imports {file} again. Put the script's calls into "
            'a function and call it under `if __name__ == "__main__":`.'
        )


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
