"""Ten steps of a segmentation by stock nnU-Net from an encoder pretrained for six steps."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
from session import Facts, Session

from viewalign.training.gpu.small_runs import small_run
from viewalign.training.gpu.synthetic import synthetic_volume

STEPS = 10


def finetuning(session: Session) -> Facts:
    """Fine-tune for one epoch of ten steps, or say what is missing."""
    missing = [name for name in ("nnunetv2", "monai", "sklearn") if importlib.util.find_spec(name) is None]
    missing += [] if _has_itk() else ["SimpleITK"]
    if missing:
        return {"skipped": f"not installed: {', '.join(missing)}"}
    run = session.new_run()
    small_run("cva-resenc-xs", session.small, run, session.device.type, session.small_settings)
    dataset = _write_dataset(session.folder / "Dataset901_Made")
    begin = time.monotonic()
    text = _finetune(session, dataset, run)
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "epoch_s": [float(found) for found in re.findall(r"Epoch time: ([\d.]+)", text)],
        "steps": STEPS,
    }


def _has_itk() -> bool:
    found = importlib.util.find_spec("SimpleITK")
    return found is not None and "stubs" not in str(found.origin)


def _write_dataset(folder: Path) -> Path:
    """Write six synthetic volumes in nnU-Net's layout; the label is what is not background."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(6):
        image = synthetic_volume(number, (40, 44, 42))
        for name, array in ((f"imagesTr/case_{number}_0000", image), (f"labelsTr/case_{number}", image != 0)):
            written = nibabel.Nifti1Image(array.astype(np.float32 if "images" in name else np.uint8), np.eye(4))
            nibabel.save(written, folder / f"{name}.nii.gz")
    labels = {"background": 0, "body": 1}
    facts = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def _finetune(session: Session, dataset: Path, run: Path) -> str:
    out = session.folder / "finetuned"
    command = [sys.executable, "-W", "ignore", "-m", "viewalign", "finetune", "segmentation"]
    command += [str(dataset), str(run), "-o", str(out), "epochs=1", f"iterations={STEPS}", "validation_iterations=1"]
    command += ["tta=false", "workers=1", f"device={session.device.type}", "patch_size=32"]
    command += ["spacing=dataset", "normalise=dataset"]
    environment = {**os.environ, "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}
    seconds = max(session.left(), 60.0)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"viewalign finetune segmentation ended with {done.returncode}: {done.stderr[-800:]}")
    log = out / "nnunet.log"
    return done.stdout + (log.read_text() if log.is_file() else "")
