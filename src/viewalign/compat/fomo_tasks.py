"""The tasks of the FOMO challenges of 2025 and 2026: channels, labels and folders of their fine-tuning data.

Both years have `preprocessed/SUBJECT/SESSION/<sequence>.nii.gz` and `labels/SUBJECT/[SESSION/]<label>`. They are read
by the same rules, because they differ only in names (`sub_1/ses_1` and `sub-01/ses-01`, `t1` and `t1w`, `label.txt`
and `labels.txt`) and in task 3, whose T2 exists in 2025 only. Tasks 6 and 7 of 2026 have no fine-tuning data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from viewalign.compat.task_conversion import ConvertSettings, FoundTask, channel_specs
from viewalign.errors import UserError
from viewalign.tasks.manifest import TaskCase, check_images, parse_target
from viewalign.tasks.spec import ChannelSpec, TaskSpec


@dataclass(frozen=True)
class FomoTask:
    """A task of the challenge.

    Attributes:
        title: of the task.
        kind: of its target.
        words: channels in order, with aliases, as `swi|t2s`. All are optional: a subject may lack a sequence.
        labels: names of a segmentation's labels, from 1.
    """

    title: str
    kind: Literal["binary", "regression", "segmentation"]
    words: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @property
    def channels(self) -> tuple[ChannelSpec, ...]:
        """All channels."""
        return tuple(channel_specs(self.words, optional=True))

    def spec(self, channels: tuple[ChannelSpec, ...]) -> TaskSpec:
        """Return the definition of a classification or regression with some of the channels."""
        name = f"FOMO {self.title}"
        if self.kind == "regression":
            return TaskSpec(name=name, kind="regression", channels=channels, unit="years", range=(0.0, 120.0))
        return TaskSpec(name=name, kind="binary", channels=channels, classes=("negative", "positive"))


TASKS: dict[int, FomoTask] = {
    1: FomoTask("infarct", "binary", ("dwi_b1000", "flair", "adc", "swi|t2s")),
    2: FomoTask("meningioma", "segmentation", ("dwi_b1000", "flair", "swi|t2s"), ("meningioma",)),
    3: FomoTask("brain age", "regression", ("t1|t1w", "t2|t2w")),
    4: FomoTask("trigeminal nerve", "segmentation", ("t2|t2w",), ("nerve", "vessel")),
    5: FomoTask("polymicrogyria", "binary", ("t1|t1w",)),
}


def find_fomo(source: Path, wanted: ConvertSettings) -> FoundTask:
    """List every session of task 1, 3 or 5 with its label.

    Raises:
        UserError: no task number.
    """
    if wanted.task is None:
        raise UserError("The layout 'fomo' needs task=1 (infarct), task=3 (age) or task=5 (polymicrogyria).")
    task, root = TASKS[wanted.task], task_folder(source, wanted.task)
    found = sessions(root)
    spec = task.spec(used_channels([session for _, session in found], task))
    cases, left_out = [], []
    for subject, session in found:
        name = f"{subject}_{session.name}"
        try:
            images = sequences_in(session, spec.channels)
            check_images(images, spec)
            target = parse_target(_label(root, subject, session.name), spec)
            cases.append(TaskCase(name, subject, images, target=target))
        except UserError as problem:
            left_out.append(f"{name} {problem}.")
    return FoundTask(spec, cases, left_out)


def task_folder(source: Path, number: int) -> Path:
    """Return the folder with `preprocessed`: `source`, or `Task_N` in it, which the guide unpacks twice."""
    name = f"Task_{number}"
    inner = (source, source / name, source / name / name)
    return next((folder for folder in inner if (folder / "preprocessed").is_dir()), source)


def sessions(root: Path) -> list[tuple[str, Path]]:
    """Return subject and folder of each session, ordered by number."""
    base = root / "preprocessed" if (root / "preprocessed").is_dir() else root
    found = [path for path in base.glob("sub[-_]*/ses[-_]*") if path.is_dir()]
    ordered = sorted(found, key=lambda path: (len(path.parent.name), path.parent.name, path.name))
    return [(path.parent.name, path) for path in ordered]


def used_channels(found: list[Path], task: FomoTask) -> tuple[ChannelSpec, ...]:
    """Return the channels that at least one session has; all of them if there is none."""
    present = {word for session in found for word in sequences_in(session, task.channels)}
    return tuple(channel for channel in task.channels if present.intersection(channel.words)) or task.channels


def sequences_in(session: Path, channels: tuple[ChannelSpec, ...]) -> dict[str, Path]:
    """Return the files of a session that are named exactly like a sequence (`swi.nii.gz`, not `swi_old.nii.gz`)."""
    words = [word for channel in channels for word in channel.words]
    files = {path.name.split(".")[0].lower(): path for path in sorted(session.glob("*.nii*"))}
    return {word: files[word] for word in words if word in files}


def label_file(root: Path, subject: str, session: str, *names: str) -> Path:
    """Return the label of a session, which is in its folder or in that of the subject.

    Raises:
        UserError: there is none.
    """
    base = root / "labels" / subject
    file = next(
        (path for folder in (base / session, base) for name in names if (path := folder / name).is_file()), None
    )
    if file is None:
        raise UserError(f"has no {names[0]}")
    return file


def _label(root: Path, subject: str, session: str) -> str:
    file = label_file(root, subject, session, "label.txt", "labels.txt")
    text = file.read_text(encoding="utf-8").strip()
    if not text:
        raise UserError(f"has an empty {file.name}")
    return text
