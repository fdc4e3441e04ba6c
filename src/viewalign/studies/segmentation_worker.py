"""The process in which a study lets nnU-Net work: `python -m viewalign.studies.segmentation_worker JOB ANSWER`.

It ends when its standard input does, and so never outlives the study that began it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.utils.io import atomic_write


def main(job: Path, answer: Path) -> None:
    """Do a job and write what it came to, whole or not at all; a user's mistake is an answer too."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        told = work(json.loads(job.read_text()))
    except UserError as problem:
        told = {"error": str(problem)}
    with atomic_write(answer) as partial:
        partial.write_text(json.dumps(told, indent=1))


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Prepare a dataset, or fine-tune and judge an encoder on it."""
    import torch

    from viewalign.finetuning.segmentation.finetune import finetune, prepare
    from viewalign.finetuning.segmentation.nnunet import Machine
    from viewalign.finetuning.segmentation.record import SilentTeller
    from viewalign.finetuning.segmentation.settings import FinetuneSettings
    from viewalign.utils.settings import checked

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    machine = Machine.choose(job["machine"]["device"], job["machine"]["gpus"], job["machine"]["workers"])
    settings, out = checked(FinetuneSettings, job["settings"]), Path(job["out"])
    if job["do"] == "prepare":
        prepare(settings, out, machine, SilentTeller())
        return {}
    (judged,) = finetune(settings, out, machine, SilentTeller()).judged
    found = judged.evaluation
    if found is None or not found.complete:
        raise UserError(f"Not every test case was predicted and judged; see {out / 'nnunet.log'}.")
    cases = {case.name: {"dice": case.mean("dice"), "nsd": case.mean("nsd")} for case in found.cases}
    return {"measures": {name: found.summary(name).mean for name in ("dice", "nsd")}, "cases": cases}


def _end_with_parent() -> None:
    """Wait for the end of standard input, then end this process and all that it began."""
    # Not by `sys.stdin`: a forked process would inherit its lock as held by this thread, and wait for it for ever.
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
