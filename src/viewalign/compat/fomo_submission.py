"""The entry to FOMO25's three tasks: one offline program that takes any sequences a subject has, and its containers.

The evaluation passes every sequence it finds (`--swi` and `--t2s` may come together) and reads a number from a text
file, or a mask. A sequence that cannot be read is told on stderr and counts as missing; without any there is no answer.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from viewalign.data.readers.files import Volume
from viewalign.errors import UserError
from viewalign.finetuning.classification.models import FACTS, WEIGHTS, Predictor
from viewalign.finetuning.segmentation import package
from viewalign.finetuning.segmentation import predict as segmentation
from viewalign.finetuning.segmentation.nnunet import Machine
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import frame_difference, onto, read_image

SEQUENCES = ("flair", "adc", "dwi_b1000", "t2s", "swi", "t1", "t2")

PREDICT_PY = '''"""Answers for one subject: python predict.py --flair FILE ... --output FILE"""

import sys
from pathlib import Path

from viewalign.compat.fomo_submission import main

sys.exit(main(Path(__file__).resolve().parent / "model", sys.argv[1:]))
'''

_APPTAINER = """Bootstrap: docker
From: python:3.11-slim

%files
    predict.py /app/predict.py
    model /app/model
    wheels /wheels

%post
    pip install --no-cache-dir --no-index --find-links /wheels "viewalign[EXTRAS]"
    mkdir -p /input /output

%environment
    export OMP_NUM_THREADS=4

%runscript
    exec python /app/predict.py "$@"
"""

_DOCKERFILE = """FROM python:3.11-slim
COPY wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels "viewalign[EXTRAS]" && mkdir -p /input /output
COPY predict.py /app/predict.py
COPY model /app/model
ENV OMP_NUM_THREADS=4
ENTRYPOINT ["python", "/app/predict.py"]
"""

_README = """Wheels first, on a machine that is online:

    pip wheel "viewalign[EXTRAS]" -w wheels

Then `apptainer build task.sif Apptainer.def`, or `docker build -t task .`. The containers need no network.
"""


def write_submission(model: Path, out: Path) -> Path:
    """Write `predict.py`, the models, and definitions for Apptainer and Docker.

    Raises:
        UserError: no trained model.
    """
    segments = segmentation.is_segmentation(model)
    out.mkdir(parents=True, exist_ok=True)
    if segments:
        _copy_segmentation(model, out / "model")
    else:
        _copy_folds(model, out / "model")
    extras = "nnunet" if segments else "tasks"
    for name, text in (
        ("predict.py", PREDICT_PY),
        ("Apptainer.def", _APPTAINER),
        ("Dockerfile", _DOCKERFILE),
        ("README.txt", _README),
    ):
        (out / name).write_text(text.replace("EXTRAS", extras))
    return out


def _copy_folds(model: Path, target: Path) -> None:
    Predictor(model)  # refused here rather than in the container
    for fold in sorted(path.parent for path in model.glob(f"fold_*/{FACTS}")):
        (target / fold.name).mkdir(parents=True, exist_ok=True)
        for name in (FACTS, WEIGHTS):
            shutil.copyfile(fold / name, target / fold.name / name)


def _copy_segmentation(model: Path, target: Path) -> None:
    """Write a segmentation as stock nnU-Net reads it: no path, no optimizer, nothing that needs our trainer."""
    exported = package.export_model(model, target.with_name(".model"))[0]
    shutil.rmtree(target, ignore_errors=True)
    exported.replace(target)
    shutil.rmtree(target.with_name(".model"))


def predict_subject(predictor: Predictor, given: Mapping[str, Path]) -> float:
    """Return the probability of the second class, or the value, from whichever sequences can be read.

    Raises:
        UserError: none of them can be used.
    """
    wanted = {word for channel in predictor.spec.channels for word in (channel.name, *channel.aliases)}
    usable: dict[str, Path] = {}
    for word, path in given.items():
        if word not in wanted:
            continue
        try:
            read_image(path, predictor.preprocessor.settings.fill_nonfinite)
            usable[word] = path
        except UserError as problem:
            print(f"{word} is left out: {problem}", file=sys.stderr)
    if not usable:
        raise UserError(f"No sequence can be used; this task takes {', '.join(sorted(wanted))}.")
    answer = predictor.predict(TaskCase("subject", "subject", usable))
    return float(answer[0] if predictor.spec.kind == "regression" else answer[1])


def segment_subject(trained: segmentation.Trained, given: Mapping[str, Path], out: Path) -> None:
    """Write a mask on the voxels of the first sequence given, from whichever sequences can be read.

    Raises:
        UserError: none of them can be used.
    """
    wanted = [word for channel in trained.specs for word in (channel.name, *channel.aliases)]
    usable: dict[str, Path] = {}
    first: Volume | None = None
    for word, path in given.items():
        if word not in wanted:
            continue
        try:
            volume = read_image(path)
            if first is not None and frame_difference(volume, first):
                onto(volume, first)
            first, usable[word] = first or volume, path
        except UserError as problem:
            print(f"{word} is left out: {problem}", file=sys.stderr)
    if not usable:
        raise UserError(f"No sequence can be used; this task takes {', '.join(sorted(wanted))}.")
    with tempfile.TemporaryDirectory() as scratch:
        case = TaskCase("subject", "subject", usable)
        excluded = segmentation.predict(trained, [case], Path(scratch), Machine.choose("auto", 1, 1))
        if excluded:
            raise UserError(excluded[0][1])
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(scratch) / f"subject{trained.ending}", out)


def main(model: Path, arguments: Sequence[str]) -> int:
    """Run the program of a submission; returns its exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="predict.py", description="Answer a FOMO25 task for one subject.")
    for word in SEQUENCES:
        parser.add_argument(f"--{word}", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    told = vars(parser.parse_args(list(arguments)))
    # A mask lies on the voxels of the first sequence: that of the command line, not of this list.
    named = [part.partition("=")[0].removeprefix("--") for part in arguments if part.startswith("--")]
    given = {word: told[word] for word in dict.fromkeys(named) if word in SEQUENCES and told[word] is not None}
    try:
        if segmentation.is_segmentation(model):
            segment_subject(segmentation.read_trained(model), given, told["output"])
            return 0
        value = predict_subject(Predictor(model, Machine.choose("auto", 1, 1).device), given)
    except UserError as problem:
        print(f"predict.py: {problem}", file=sys.stderr)
        return 1
    told["output"].parent.mkdir(parents=True, exist_ok=True)
    told["output"].write_text(f"{value:.6f}\n")
    return 0
