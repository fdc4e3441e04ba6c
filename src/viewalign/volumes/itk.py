"""SimpleITK without its noise: typed as `Any`, warnings off, and what its C code prints caught."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import SimpleITK

sitk: Any = SimpleITK  # its functions carry no type hints
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@contextmanager
def itk_messages() -> Iterator[list[str]]:
    """Catch what ITK's C code prints on stderr; the list is filled when the block ends.

    MetaImage reports damaged data in no other way than by printing `Uncompress failed`.
    """
    messages: list[str] = []
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            messages.extend(sink.read().decode(errors="replace").splitlines())


def itk_reason(error: RuntimeError) -> str:
    """Return the last line of an ITK error, which holds the cause."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return re.sub(r"^(sitk::ERROR:|ITK ERROR:|Reason:)\s*", "", lines[-1]) if lines else "no reason given"
