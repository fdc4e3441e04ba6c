"""The entry to FOMO25's tasks 1 and 3: one offline program that takes any sequences a subject has, and its containers.

The evaluation passes every sequence it finds (`--swi` and `--t2s` may come together) and reads a number from a text
file. A sequence that cannot be read is told on stderr and counts as missing; without any there is no answer.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from viewalign.errors import UserError
from viewalign.transfer.tasks.manifest import TaskCase
from viewalign.transfer.tasks.models import FACTS, WEIGHTS, Predictor
from viewalign.transfer.tasks.preparation import read_image

SEQUENCES = ("flair", "adc", "dwi_b1000", "t2s", "swi", "t1", "t2")

PREDICT_PY = '''"""Answers for one subject: python predict.py --flair FILE ... --output FILE"""

import sys
from pathlib import Path

from viewalign.transfer.tasks.fomo_submission import main

sys.exit(main(Path(__file__).resolve().parent / "model", sys.argv[1:]))
'''

APPTAINER = """Bootstrap: docker
From: python:3.11-slim

%files
    predict.py /app/predict.py
    model /app/model
    wheels /wheels

%post
    pip install --no-cache-dir --no-index --find-links /wheels "viewalign[tasks]"
    mkdir -p /input /output

%environment
    export OMP_NUM_THREADS=4

%runscript
    exec python /app/predict.py "$@"
"""

DOCKERFILE = """FROM python:3.11-slim
COPY wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels "viewalign[tasks]" && mkdir -p /input /output
COPY predict.py /app/predict.py
COPY model /app/model
ENV OMP_NUM_THREADS=4
ENTRYPOINT ["python", "/app/predict.py"]
"""

README = """Wheels first, on a machine that is online:

    pip wheel "viewalign[tasks]" -w wheels

Then `apptainer build task.sif Apptainer.def`, or `docker build -t task .`. The containers need no network.
"""


def write_submission(model: Path, out: Path) -> Path:
    """Write `predict.py`, the models, and definitions for Apptainer and Docker.

    Raises:
        UserError: no trained model.
    """
    Predictor(model)  # refused here rather than in the container
    folds = sorted(path.parent for path in model.glob(f"fold_*/{FACTS}"))
    for fold in folds:
        (out / "model" / fold.name).mkdir(parents=True, exist_ok=True)
        for name in (FACTS, WEIGHTS):
            shutil.copyfile(fold / name, out / "model" / fold.name / name)
    for name, text in (
        ("predict.py", PREDICT_PY),
        ("Apptainer.def", APPTAINER),
        ("Dockerfile", DOCKERFILE),
        ("README.txt", README),
    ):
        (out / name).write_text(text)
    return out


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


def main(model: Path, arguments: Sequence[str]) -> int:
    """Run the program of a submission; returns its exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="predict.py", description="Answer a FOMO25 task for one subject.")
    for word in SEQUENCES:
        parser.add_argument(f"--{word}", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    told = vars(parser.parse_args(list(arguments)))
    try:
        value = predict_subject(Predictor(model), {word: told[word] for word in SEQUENCES if told[word] is not None})
    except UserError as problem:
        print(f"predict.py: {problem}", file=sys.stderr)
        return 1
    told["output"].parent.mkdir(parents=True, exist_ok=True)
    told["output"].write_text(f"{value:.6f}\n")
    return 0
