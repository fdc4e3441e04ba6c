"""What a user reads when a batch does not fit into the GPU's memory."""

from __future__ import annotations

import torch
from session import Facts, Session, check

from viewalign.errors import UserError
from viewalign.training.gpu.small_runs import small_run

ALLOWED = 1.5e9
"""Bytes of the GPU that this process may use meanwhile."""


def out_of_memory(session: Session) -> Facts:
    """Train with views that are too large; it must end in a sentence."""
    if session.device.type != "cuda":
        return {"skipped": "a CPU's memory is not limited here"}
    total = torch.cuda.get_device_properties(session.device).total_memory
    torch.cuda.set_per_process_memory_fraction(ALLOWED / total, session.device)
    try:
        small_run("cva-resenc-xs", session.heads, session.new_run(), "cuda", ["views.patch_size=160"])
        kind, said = "nothing", "It fitted."
    except (UserError, RuntimeError) as problem:
        kind, said = type(problem).__name__, str(problem)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, session.device)
    missed = kind != "UserError" or "memory" not in said
    return {"raised": kind, "said": said[:800], "checks": [check("no sentence about memory", float(missed), 0.0)]}
