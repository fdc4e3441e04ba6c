"""Submissions to FOMO25's three tasks: an offline prediction program and definitions of its containers.

The evaluation passes every sequence of a subject (possibly both `--swi` and `--t2s`) and reads a number from a text
file, or a mask. A sequence that cannot be read is reported on stderr and treated as missing.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from viewalign.data.readers.files import Volume
from viewalign.errors import UserError
from viewalign.finetuning.classification.models import FACTS, WEIGHTS, Predictor
from viewalign.finetuning.segmentation import package
from viewalign.finetuning.segmentation import predict as segmentation
from viewalign.finetuning.segmentation.nnunet import Machine
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import grid_difference, read_image, resample_to

SEQUENCES = ("flair", "adc", "dwi_b1000", "t2s", "swi", "t1", "t2")

PREDICT_PY = '''"""Predict one subject: python predict.py --flair FILE ... --output FILE"""

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

_README = """First download the wheels, on a machine with network access:

    pip wheel "viewalign[EXTRAS]" -w wheels

Then run `apptainer build task.sif Apptainer.def`, or `docker build -t task .`. The containers need no network.
"""


def write_submission(model: Path, out: Path) -> Path:
    """Write `predict.py`, the models, and container definitions for Apptainer and Docker.

    Raises:
        UserError: no trained model.
    """
    is_segmentation = segmentation.is_segmentation(model)
    out.mkdir(parents=True, exist_ok=True)
    (_copy_segmentation if is_segmentation else _copy_folds)(model, out / "model")
    extras = "nnunet" if is_segmentation else "tasks"
    files = {"predict.py": PREDICT_PY, "Apptainer.def": _APPTAINER, "Dockerfile": _DOCKERFILE, "README.txt": _README}
    for name, text in files.items():
        (out / name).write_text(text.replace("EXTRAS", extras))
    return out


def _copy_folds(model: Path, target: Path) -> None:
    Predictor(model)  # fails here rather than in the container
    for fold in sorted(path.parent for path in model.glob(f"fold_*/{FACTS}")):
        (target / fold.name).mkdir(parents=True, exist_ok=True)
        for name in (FACTS, WEIGHTS):
            shutil.copyfile(fold / name, target / fold.name / name)


def _copy_segmentation(model: Path, target: Path) -> None:
    """Write a model that stock nnU-Net reads, without paths and optimizer states."""
    exported = package.export_model(model, target.with_name(".model"))[0]
    shutil.rmtree(target, ignore_errors=True)
    exported.replace(target)
    shutil.rmtree(target.with_name(".model"))


def predict_subject(predictor: Predictor, images: Mapping[str, Path]) -> float:
    """Return the probability of the second class, or the value, from the sequences that can be read.

    Raises:
        UserError: none of them can be used.
    """
    fill = predictor.preprocessor.settings.fill_nonfinite
    usable = _usable(images, predictor.spec.image_names, lambda path: read_image(path, fill))
    values = predictor.predict(TaskCase("subject", "subject", usable))
    return float(values[0] if predictor.spec.kind == "regression" else values[1])


def segment_subject(trained: segmentation.Trained, images: Mapping[str, Path], out: Path) -> None:
    """Write a mask on the voxel grid of the first sequence, from the sequences that can be read.

    Raises:
        UserError: none of them can be used.
    """
    first: list[Volume] = []

    def read(path: Path) -> None:
        volume = read_image(path)
        if first and grid_difference(volume, first[0]):
            resample_to(volume, first[0])  # fails unless they overlap
        first.append(volume)

    names = [word for channel in trained.specs for word in channel.words]
    usable = _usable(images, names, read)
    with tempfile.TemporaryDirectory() as scratch:
        case = TaskCase("subject", "subject", usable)
        excluded = segmentation.predict(trained, [case], Path(scratch), Machine.choose("auto", 1, 1))
        if excluded:
            raise UserError(excluded[0][1])
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(scratch) / f"subject{trained.ending}", out)


def _usable(images: Mapping[str, Path], names: Sequence[str], read: Callable[[Path], object]) -> dict[str, Path]:
    """Return the sequences of a task that can be read, reporting the others on stderr."""
    usable = {}
    for word, path in images.items():
        if word in names:
            try:
                read(path)
                usable[word] = path
            except UserError as problem:
                print(f"{word} is ignored: {problem}", file=sys.stderr)
    if not usable:
        raise UserError(f"No sequence can be used; this task takes {', '.join(sorted(names))}.")
    return usable


def main(model: Path, arguments: Sequence[str]) -> int:
    """Run the program of a submission and return its exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="predict.py", description="Predict a FOMO25 task for one subject.")
    for word in SEQUENCES:
        parser.add_argument(f"--{word}", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = vars(parser.parse_args(list(arguments)))
    # A mask has the grid of the first sequence in the order of the command line.
    names = [part.partition("=")[0].removeprefix("--") for part in arguments if part.startswith("--")]
    images = {word: options[word] for word in dict.fromkeys(names) if word in SEQUENCES and options[word] is not None}
    out: Path = options["output"]
    try:
        if segmentation.is_segmentation(model):
            segment_subject(segmentation.read_trained(model), images, out)
            return 0
        value = predict_subject(Predictor(model, Machine.choose("auto", 1, 1).device), images)
    except UserError as problem:
        print(f"predict.py: {problem}", file=sys.stderr)
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"{value:.6f}\n")
    return 0
