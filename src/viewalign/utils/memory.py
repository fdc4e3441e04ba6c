"""The error message for exhausted memory: what was requested, what is available, and what would need less."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from viewalign.errors import UserError
from viewalign.utils.text import size_text

_SIGNS = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|not enough memory: you tried to allocate|can't allocate memory: you tried to allocate"
)
"""torch's messages for exhausted memory on a GPU and a CPU; a process of nnU-Net has them in its traceback."""

_GPU = re.compile("CUDA|CUBLAS|CUDNN")
_TRIED = re.compile(r"ried to allocate ([\d.]+ (?:bytes|[KMGT]i?B))")

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def is_out_of_memory(problem: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on a GPU or on the CPU."""
    return (
        isinstance(problem, MemoryError)
        or type(problem).__name__ == "OutOfMemoryError"
        or (isinstance(problem, Exception) and _SIGNS.search(str(problem)) is not None)
    )


def stated(problem: BaseException) -> str:
    """Return in words what could not be allocated and how much memory the device has."""
    tried = _TRIED.search(str(problem))
    size = f"{tried[1]} could not be allocated" if tried else "memory could not be allocated"
    return f"{size}; {_device_memory(problem)}"


def _device_memory(problem: BaseException) -> str:
    torch = sys.modules.get("torch")
    if torch is not None and _GPU.search(str(problem)) and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()} has {size_text(total)}, of which {size_text(free)} are free"
    return f"this process may use {size_text(memory_bytes())}"


@contextmanager
def reported_out_of_memory(work: str, remedy: str) -> Iterator[None]:
    """Turn exhausted memory into a `UserError`; also a decorator.

    Args:
        work: what was running, such as "embedding a case".
        remedy: settings that need less memory, as a sentence.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        traceback.clear_frames(problem.__traceback__)  # they hold the tensors of the failed call
        raise UserError(f"Out of memory while {work}: {stated(problem)}. {remedy}") from None


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or that of a control group around it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    limits = [*group_values("memory.max"), *group_values("memory.limit_in_bytes", "memory")]
    return min([whole, *(int(text) for text in limits if text.isdecimal())])


def group_values(name: str, controller: str = "") -> list[str]:
    """Return the values of a file of the control groups that this process is in, the innermost first.

    A job of SLURM or systemd has its limits in a group of its own, below the root that a container shows.

    Args:
        name: of the file, such as `memory.max`.
        controller: of version 1; empty for version 2.
    """
    found = []
    for folder in _groups(controller):
        with suppress(OSError):
            found.append((folder / name).read_text().strip())
    return found


def _groups(controller: str) -> list[Path]:
    """Return the folders of the process's control group and of those around it."""
    root, inner = _GROUPS / controller, PurePosixPath("/")
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(",") and ".." not in path:
                inner = PurePosixPath(path)
    return [root.joinpath(*each.parts[1:]) for each in (inner, *inner.parents)]
