"""Makes the tasks of the results page from a folder of real volumes: `python docs/make_real_tasks.py DATA OUT`.

`volume` and `fraction`: hippocampal volume and anterior fraction (training: ids below 250; test: 250 to 319); `-10`
and `-40` after the name: number of training cases, the same for every encoder.
`contrast`: T1, T1 with contrast medium, T2 or FLAIR of multiple-sclerosis patients; the folds leave one patient out.
`group` and `ejection`: diagnosis (five classes) and left ejection fraction from the two phases of cardiac cine MR,
with the published split by patient.
"""

import csv
import random
import sys
from pathlib import Path

from viewalign.tasks.manifest import TaskCase, write_manifest
from viewalign.tasks.spec import ChannelSpec, TaskSpec, write_spec


def main(data: Path, out: Path) -> None:
    """Write the three tasks."""
    mr = (ChannelSpec(name="mr"),)
    with (data / "hippocampus" / "targets.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    targets = {"volume": ("volume_mm3", "mm³", (0.0, 1e5)), "fraction": ("anterior_fraction", "", (0.0, 1.0))}
    for name, (column, unit, limits) in targets.items():
        spec = TaskSpec(name=f"hippocampus, {column}", kind="regression", channels=mr, unit=unit, range=limits)
        cases = []
        for row in rows:
            split = "train" if int(row["case_id"].split("_")[1]) < 250 else "test"
            images = {"mr": data / "hippocampus" / row["image"]}
            cases.append(TaskCase(row["case_id"], row["case_id"], images, target=float(row[column]), split=split))
        teaching = [case for case in cases if case.split == "train"]
        judged = [case for case in cases if case.split == "test"]
        random.Random(0).shuffle(teaching)
        for ending, shots in (("", len(teaching)), ("-10", 10), ("-40", 40)):
            write_spec(spec, out / f"{name}{ending}")
            write_manifest([*teaching[:shots], *judged], spec, out / f"{name}{ending}")
    write_contrast(data, out / "contrast", mr)
    write_cine(data / "cardiac_cine", out)


def write_contrast(data: Path, folder: Path, channels: tuple[ChannelSpec, ...]) -> None:
    """Write the task of contrasts, one fold a patient."""
    with (data / "ms_contrasts.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    subjects = sorted({row["subject_id"] for row in rows})
    classes = tuple(sorted({row["contrast"] for row in rows}))
    spec = TaskSpec(name="MR contrast", kind="multiclass", channels=channels, classes=classes)
    cases = [
        TaskCase(
            row["case_id"],
            row["subject_id"],
            {"mr": data / row["image"]},
            target=classes.index(row["contrast"]),
            fold=subjects.index(row["subject_id"]),
        )
        for row in rows
    ]
    write_spec(spec, folder)
    write_manifest(cases, spec, folder)


def write_cine(data: Path, out: Path) -> None:
    """Write diagnosis and ejection fraction, with end-diastole and end-systole as channels."""
    with (data / "subjects.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    phases = (ChannelSpec(name="ed"), ChannelSpec(name="es"))
    classes = tuple(sorted({row["group"] for row in rows}))
    group = TaskSpec(name="cine, diagnosis", kind="multiclass", channels=phases, classes=classes)
    ejection = TaskSpec(name="cine, left ejection fraction", kind="regression", channels=phases, range=(0.0, 1.0))
    for folder, spec in ((out / "group", group), (out / "ejection", ejection)):
        cases = []
        for row in rows:
            name = row["subject"]
            images = {phase.name: data / "images" / f"{name}_{phase.name}.nii.gz" for phase in phases}
            target = classes.index(row["group"]) if spec is group else float(row["lv_ejection_fraction"])
            cases.append(TaskCase(name, name, images, target=target, split=row["split"]))
        write_spec(spec, folder)
        write_manifest(cases, spec, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]))
