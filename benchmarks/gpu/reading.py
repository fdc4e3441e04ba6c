"""How long a GPU waits for data: ResEnc-L from a store of head-sized volumes, with 1, 2, 4 and 8 workers."""

from __future__ import annotations

import os

from session import Facts, Session, check

from viewalign.training.gpu import check as limits

WORKERS = (1, 2, 4, 8)
TARGET_WORKERS = 4


def reading(session: Session) -> Facts:
    """Measure the share of time that the loop waits for data; the store lies in the page cache."""
    bench = session.bench("cva-resenc-l")
    rows: Facts = {}
    checks = []
    for workers in WORKERS[:2] if session.tiny else WORKERS:
        if session.left() < 10:
            rows[str(workers)] = {"skipped": f"{session.left():.0f} s left"}
            continue
        rows[str(workers)] = bench.data_wait(workers, 2 if session.tiny else 10)
        if workers == TARGET_WORKERS and session.device.type == "cuda":
            checks.append(check(f"data wait, {workers} workers", rows[str(workers)]["data_wait"], limits.DATA_WAIT))
    return {"cores": os.cpu_count(), "workers": rows, "checks": checks}
