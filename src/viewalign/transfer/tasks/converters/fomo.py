"""The fine-tuning folders of FOMO25: `preprocessed/sub_N/ses_1/<sequence>.nii.gz`, `labels/sub_N/[ses_1/]label.txt`.

Task 1 tells an infarct, task 3 an age; task 2 is a segmentation (`viewalign fomo prepare --task 2`).
"""

from __future__ import annotations

from pathlib import Path

from viewalign.errors import UserError
from viewalign.transfer.tasks.converters.found import FoundTask, Wanted
from viewalign.transfer.tasks.manifest import TaskCase, check_images, parse_target
from viewalign.transfer.tasks.spec import ChannelSpec, TaskSpec

SEQUENCES: dict[int, tuple[ChannelSpec, ...]] = {
    1: (
        ChannelSpec(name="dwi_b1000", optional=True),
        ChannelSpec(name="flair", optional=True),
        ChannelSpec(name="adc", optional=True),
        ChannelSpec(name="swi", aliases=("t2s",), optional=True),
    ),
    2: (
        ChannelSpec(name="dwi_b1000", optional=True),
        ChannelSpec(name="flair", optional=True),
        ChannelSpec(name="swi", aliases=("t2s",), optional=True),
    ),
    3: (ChannelSpec(name="t1", optional=True), ChannelSpec(name="t2", optional=True)),
}
"""Channels of the three tasks. All are optional: the evaluation passes whatever a subject has."""

SPECS: dict[int, TaskSpec] = {
    1: TaskSpec(name="FOMO25 infarct", kind="binary", channels=SEQUENCES[1], classes=("negative", "positive")),
    3: TaskSpec(name="FOMO25 brain age", kind="regression", channels=SEQUENCES[3], unit="years", range=(0.0, 120.0)),
}


def find(source: Path, wanted: Wanted) -> FoundTask:
    """List every session of task 1 or 3 with its label, sequences told by the whole file name.

    Raises:
        UserError: no task number.
    """
    if wanted.fomo_task not in SPECS:
        raise UserError("The layout 'fomo' needs --task 1 (infarct) or --task 3 (age).")
    spec = SPECS[wanted.fomo_task]
    cases, left_out = [], []
    for subject, session in sessions(source):
        name = f"{subject}_{session.name}"
        try:
            images = sequences_in(session, spec.channels)
            check_images(images, spec)
            cases.append(
                TaskCase(name, subject, images, target=parse_target(_label(source, subject, session.name), spec))
            )
        except UserError as problem:
            left_out.append(f"{name} {problem}.")
    return FoundTask(spec, cases, left_out)


def sessions(source: Path) -> list[tuple[str, Path]]:
    """Return each subject's sessions, in order of number."""
    base = source / "preprocessed" if (source / "preprocessed").is_dir() else source
    found = [path for path in base.glob("sub_*/ses_*") if path.is_dir()]
    return [
        (path.parent.name, path) for path in sorted(found, key=lambda p: (len(p.parent.name), p.parent.name, p.name))
    ]


def sequences_in(session: Path, channels: tuple[ChannelSpec, ...]) -> dict[str, Path]:
    """Return the files of a session whose whole name is that of a sequence (`swi.nii.gz`, never `swi_old.nii.gz`)."""
    words = [word for channel in channels for word in (channel.name, *channel.aliases)]
    files = {path.name.split(".")[0].lower(): path for path in sorted(session.glob("*.nii*"))}
    return {word: files[word] for word in words if word in files}


def _label(source: Path, subject: str, session: str) -> str:
    base = source / "labels" / subject
    file = next((path for path in (base / session / "label.txt", base / "label.txt") if path.is_file()), None)
    if file is None:
        raise UserError("has no label.txt")
    text = file.read_text(encoding="utf-8").strip()
    if not text:
        raise UserError("has an empty label.txt")
    return text
