"""A made-up world in which the commands of the docs run: small images, under the names of the docs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
from dicom_files import write_series

from viewalign.data.readers.itk import sitk

SIDE = 20
TINY = [
    "views.patch_size=16",
    "batch=4",
    "steps=1",
    "log.every=1",
    "log.health_every=1",
    "log.tensorboard=false",
    "validate.every=0",
    "runtime.workers=0",
    "runtime.threads=1",
    "runtime.gpus=1",
    "runtime.nodes=1",
    "runtime.precision=fp32",
    "heads.width=16",
    "heads.predictor_width=8",
]
"""What is appended to a pretraining by CVA, so that it takes a second."""


def head(seed: int, level: float = 1.0) -> np.ndarray:
    """Return a noisy ball in air, brighter on one side by `level`."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 3, indexing="ij"))
    noise = np.random.default_rng(seed).normal(size=(SIDE,) * 3)
    ball = ((grid**2).sum(0) < 0.9) * (100 + 10 * noise)
    ball[:, :, SIDE // 2 :] *= level
    return ball.astype(np.float32)


def save(path: Path, array: np.ndarray) -> Path:
    """Write an array as an image of 1 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def nnunet_dataset(root: Path, name: str, cases: int = 6) -> Path:
    """Write a dataset in nnU-Net's layout: `imagesTr`, `labelsTr`, `imagesTs`, `dataset.json`."""
    for k in range(cases):
        image = head(k)
        save(root / "imagesTr" / f"{name}_{k:03d}_0000.nii.gz", image)
        save(root / "labelsTr" / f"{name}_{k:03d}.nii.gz", (image > 95).astype(np.uint8))
    save(root / "imagesTs" / f"{name}_900_0000.nii.gz", head(900))
    told = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "bright": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**told, "numTraining": cases}))
    return root


def bids(root: Path, subjects: int = 12) -> Path:
    """Write BIDS with a T1w each and two groups."""
    rows = ["participant_id\tgroup"]
    for k in range(subjects):
        name, group = f"sub-{k + 1:02d}", ("control", "patient")[k % 2]
        save(root / name / "anat" / f"{name}_T1w.nii.gz", head(k, 1.0 + k % 2))
        rows.append(f"{name}\t{group}")
    root.joinpath("participants.tsv").write_text("\n".join(rows) + "\n")
    root.joinpath("dataset_description.json").write_text('{"Name": "made up", "BIDSVersion": "1.8.0"}')
    return root


def fomo_task(root: Path, sequences: tuple[str, ...], subjects: int = 12) -> Path:
    """Write FOMO25's layout of task 1 or 3; the answers 0 and 1 are classes or ages."""
    for k in range(subjects):
        name = f"sub_{k + 1}"
        for sequence in sequences:
            save(root / "preprocessed" / name / "ses_1" / f"{sequence}.nii.gz", head(k, 1.0 + k % 2))
        (root / "labels" / name).mkdir(parents=True)
        (root / "labels" / name / "label.txt").write_text(str(k % 2))
    return root


def fomo26_task(root: Path, sequences: tuple[str, ...], label: str, subjects: int = 12) -> Path:
    """Write FOMO26's layout of task 1, 3 or 5; the answers 0 and 1 are classes or ages."""
    for k in range(subjects):
        session = Path(f"sub-{k + 1:02d}", "ses-01")
        for sequence in sequences:
            save(root / "preprocessed" / session / f"{sequence}.nii.gz", head(k, 1.0 + k % 2))
        (root / "labels" / session).mkdir(parents=True)
        (root / "labels" / session / label).write_text(str(k % 2))
    return root


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write a CSV."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_sources(root: Path) -> None:
    """Write all files that a reader of the docs would bring along."""
    for patient in ("01", "02", "03"):
        for study, kind in (("1", "T1W"), ("1", "FLAIR"), ("2", "T1W")):
            seed = int(patient) * 10 + int(study)
            save(root / "scans" / f"patient{patient}_study{study}_{kind}.nii.gz", head(seed))
    shutil.copytree(root / "scans", root / "home" / "scans")
    save(root / "more" / "a" / "T1.nii.gz", head(31))
    save(root / "one" / "volume.mha", head(32))
    write_series(root / "export" / "head", head(33).clip(0).astype(np.uint16))
    nnunet_dataset(root / "Dataset004_Hippocampus", "hippocampus", 8)
    nnunet_dataset(root / "raw" / "Dataset002_Heart", "heart")
    shutil.copytree(root / "raw" / "Dataset002_Heart" / "imagesTs", root / "imagesTs")
    for k in range(4):
        save(root / "ct" / f"patient{k}_ct.nii.gz", np.where(head(60 + k) == 0, -1000, head(60 + k)).astype(np.int16))
        person = root / "brats" / f"BraTS-GLI-{k:05d}-000"
        for sequence in ("t1n", "t1c", "t2w", "t2f"):
            save(person / f"{person.name}-{sequence}.nii.gz", head(len(sequence) * 70 + k, 1.0 + k % 2))
    bids(root / "bids")
    bids(root / "ABIDE")
    bids(root / "openmind")
    for k in range(3):
        save(root / "fomo" / f"sub_{k + 1}" / "ses_1" / "t1.nii.gz", head(40 + k))
    fomo_task(root / "finetune_task1", ("flair", "dwi_b1000", "adc", "swi"))
    fomo_task(root / "finetune_task3", ("t1", "t2"))
    for k, source in enumerate(("PT001_Cleveland", "PT002_Oslo", "PT030_OpenNeuro/ds000001")):
        save(root / "fomo300k" / source / "sub-01" / "ses-01" / "anat" / "sub-01_ses-01_T1w.nii.gz", head(50 + k))
    fomo26_task(root / "Task_1", ("flair", "dwi_b1000", "adc", "swi"), "label.txt")
    fomo26_task(root / "Task_3", ("t1w",), "labels.txt")
    fomo26_task(root / "Task_5", ("t1",), "labels.txt")
    names = ["patient01_study1_T1W", "patient01_study1_FLAIR"]
    rows = [{"path": f"scans/{n}.nii.gz", "subject": "Anna", "modality": n.rsplit("_", 1)[1]} for n in names]
    table(root / "images.csv", rows)
    new = [{"case": f"new{k}", "image.T1w": f"ABIDE/sub-0{k}/anat/sub-0{k}_T1w.nii.gz"} for k in (1, 2)]
    table(root / "new.csv", new)
    for k in range(4):
        for folder in ("PREDICTIONS", "REFERENCES"):
            save(root / folder / f"c{k}.nii.gz", (head(k) > 95).astype(np.uint8))
    classes = {"labels": {"background": 0, "tumour": 1, "oedema": 2}}
    (root / "REFERENCES" / "dataset.json").write_text(json.dumps(classes))
    for k in (*range(4), *range(100, 104), *range(200, 204), 260, 300):
        image = head(k)
        save(root / "hippocampus" / "images" / f"hippocampus_{k:03d}.nii.gz", image)
        save(root / "hippocampus" / "labels" / f"hippocampus_{k:03d}.nii.gz", (image > 95).astype(np.uint8))
