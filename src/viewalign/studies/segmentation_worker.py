"""The process in which a study runs nnU-Net: `python -m viewalign.studies.segmentation_worker JOB ANSWER`.

It ends when its standard input is closed, and thus with the study.
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
from viewalign.utils.io import write_json


def main(job: Path, answer: Path) -> None:
    """Run a job and write its result, or the message of a `UserError`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = work(json.loads(job.read_text()))
    except UserError as problem:
        result = {"error": str(problem)}
    write_json(answer, result)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Prepare a dataset, or fine-tune and evaluate an encoder on it."""
    import torch

    from viewalign.finetuning.segmentation.finetune import finetune, prepare
    from viewalign.finetuning.segmentation.nnunet import Machine
    from viewalign.finetuning.segmentation.settings import FinetuneSettings
    from viewalign.utils.settings import checked

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    machine = Machine.choose(job["machine"]["device"], job["machine"]["gpus"], job["machine"]["workers"])
    settings, out = checked(FinetuneSettings, job["settings"]), Path(job["out"])
    if job["do"] == "prepare":
        prepare(settings, out, machine)
        return {}
    (result,) = finetune(settings, out, machine).results
    evaluation = result.evaluation
    if not evaluation.complete:
        raise UserError(f"Not every test case was predicted and evaluated; see {out / 'nnunet.log'}.")
    cases = {case.name: {"dice": case.mean("dice"), "nsd": case.mean("nsd")} for case in evaluation.cases}
    return {"measures": {name: evaluation.summary(name).mean for name in ("dice", "nsd")}, "cases": cases}


def _end_with_parent() -> None:
    """Wait for the end of standard input, then end this process and its children."""
    # Not by `sys.stdin`: a forked process would inherit its lock, held by this thread, and deadlock.
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
