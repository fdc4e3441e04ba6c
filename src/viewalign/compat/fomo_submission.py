"""Submissions to FOMO25 and FOMO26: an offline prediction program and definitions of its containers.

The evaluation passes the sequences of a subject and reads a number from a text file, a mask, or (tasks 6 and 7) an
embedding. It runs `python /app/predict.py …` and never a run script. A sequence that cannot be read is reported on
stderr and treated as missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from viewalign.data.grids import grid_difference, resample_to
from viewalign.data.readers.files import Volume
from viewalign.errors import UserError
from viewalign.evaluation.encoders import Spacing, encoder_and_preprocessor, read_pretrained
from viewalign.evaluation.settings import FixedPool
from viewalign.finetuning.classification.models import FACTS, WEIGHTS, Predictor, write_model
from viewalign.finetuning.classification.network import GlobalNetwork
from viewalign.finetuning.segmentation import package
from viewalign.finetuning.segmentation import predict as segmentation
from viewalign.finetuning.segmentation.nnunet import Machine
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import read_image, sample_tensors
from viewalign.tasks.spec import ChannelSpec, TaskSpec
from viewalign.utils.io import partial_folder, replaced_folder
from viewalign.utils.outputs import check_folder, contains
from viewalign.utils.shapes import Size

EMBEDDED = "input"
"""Argument and channel of tasks 6 and 7."""
ARGUMENTS = {word: word for word in ("flair", "adc", "dwi_b1000", "t2s", "swi", "t1", "t2", EMBEDDED)} | {
    "dwi": "dwi_b1000"
}
"""Sequence of each argument; FOMO25 has `--dwi_b1000`, FOMO26 `--dwi`."""

PREDICT_PY = '''"""Predict one subject: python predict.py --flair FILE ... --output FILE"""

import sys
from pathlib import Path

from viewalign.compat.fomo_submission import main

sys.exit(main(Path(__file__).resolve().parent / "model", sys.argv[1:]))
'''

_BASE = "python@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea"
"""The tag 3.12-slim of August 2026, for all architectures. Apptainer takes a tag or a digest, not both."""

_APPTAINER = """Bootstrap: docker
From: BASE

%files
    predict.py /app/predict.py
    model /app/model
    wheels /wheels

%post
    pip install --no-cache-dir --no-index --find-links /wheels "viewalign[EXTRAS]"
    rm -r /wheels
    mkdir -p /input /output

%environment
    export OMP_NUM_THREADS=4 PYTHONDONTWRITEBYTECODE=1
"""

_DOCKERFILE = """FROM BASE
RUN --mount=type=bind,source=wheels,target=/wheels \\
    pip install --no-cache-dir --no-index --find-links /wheels "viewalign[EXTRAS]" && mkdir -p /input /output
COPY predict.py /app/predict.py
COPY model /app/model
ENV OMP_NUM_THREADS=4 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["python", "/app/predict.py"]
"""

_README = """1. Collect the wheels here with the image's own Python, on a machine with network access
   (or of a checkout in this folder: "./viewalign[EXTRAS]"):

    docker run --rm --platform linux/amd64 -v "$PWD:/work" -w /work BASE pip wheel "viewalign[EXTRAS]" -w wheels

2. Build the container, which needs no network when it runs. FOMO26 takes the .sif, one for each task, and one for
   tasks 6 and 7:

    apptainer build --fakeroot --arch amd64 task.sif Apptainer.def
    docker build --platform linux/amd64 -t task .
"""


def write_submission(
    model: str | Path,
    out: Path,
    patch_size: Size | None = None,
    spacing: Spacing = "pretraining",
    pool: FixedPool = "multistage",
) -> Path:
    """Write `predict.py`, the models, and container definitions for Apptainer and Docker.

    Args:
        model: the folder of a fine-tuning; for tasks 6 and 7 an encoder (see `evaluation.encoders.read_pretrained`).
        out: the folder to write.
        patch_size: field of view (D, H, W) of an encoder in voxels; None for the views of pretraining.
        spacing: voxel size of an encoder's images.
        pool: pooling of an encoder's feature maps.

    Raises:
        UserError: no trained model, and no encoder; settings of an encoder for a fine-tuning; or a folder with other
            files.
    """
    script = out / "predict.py"
    target, extras = out / "model", "tasks"
    check_folder(out, "submission", script.is_file() and contains("viewalign")(script), {partial_folder(target).name})
    is_segmentation, is_task = segmentation.is_segmentation(Path(model)), any(Path(model).glob(f"fold_*/{FACTS}"))
    if (is_segmentation or is_task) and (patch_size, spacing, pool) != (None, "pretraining", "multistage"):
        raise UserError(f"patch_size, spacing and pool are for encoders; {model} is a fine-tuning, which has its own.")
    if is_segmentation:
        _copy_segmentation(Path(model), target)
        extras = "nnunet"
    elif is_task:
        _copy_folds(Path(model), target)
    else:
        _write_encoder(str(model), target, patch_size, spacing, pool)
    files = {"predict.py": PREDICT_PY, "Apptainer.def": _APPTAINER, "Dockerfile": _DOCKERFILE, "README.txt": _README}
    for name, text in files.items():
        (out / name).write_text(text.replace("EXTRAS", extras).replace("BASE", _BASE))
    return out


def _write_encoder(
    encoder: str,
    target: Path,
    patch_size: Size | None,
    spacing: Spacing,
    pool: FixedPool,
) -> None:
    """Write a frozen encoder as the model of a task with one channel; its head is not used."""
    spec = TaskSpec(name="FOMO embedding", kind="regression", channels=(ChannelSpec(name=EMBEDDED),))
    start = read_pretrained(encoder)
    backbone, preprocessor = encoder_and_preprocessor(start, spec, patch_size, spacing, pool)
    # An embedding of a damaged image scores better than none.
    tolerant = preprocessor.settings.model_copy(update={"fill_nonfinite": True})
    network = GlobalNetwork(backbone, spec.outputs, pool, 0.0, [0.0])
    with replaced_folder(target) as folder:
        write_model(folder, network, start.network, spec, replace(preprocessor, settings=tolerant), (0.0, 1.0))


def _copy_folds(model: Path, target: Path) -> None:
    Predictor(model)  # fails here rather than in the container
    with replaced_folder(target) as folder:
        for fold in sorted(path.parent for path in model.glob(f"fold_*/{FACTS}")):
            (folder / fold.name).mkdir()
            for name in (FACTS, WEIGHTS):
                shutil.copyfile(fold / name, folder / fold.name / name)


def _copy_segmentation(model: Path, target: Path) -> None:
    """Write a model that stock nnU-Net reads, without paths and optimizer states."""
    with replaced_folder(target) as folder:
        exported = package.export_model(model, folder)[0]
        for path in list(exported.iterdir()):
            path.replace(folder / path.name)
        shutil.rmtree(exported.parent)


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
        raise UserError(f"No sequence can be used; this task takes {', '.join(sorted({*names} & {*ARGUMENTS}))}.")
    return usable


@torch.no_grad()
def embed_image(predictor: Predictor, images: Mapping[str, Path]) -> NDArray[np.float32]:
    """Return the embedding (C,) of an image by a frozen encoder.

    Raises:
        UserError: the image cannot be used, or its embedding is not finite.
    """
    image, valid = sample_tensors(predictor.preprocessor(images), predictor.device)
    vector: NDArray[np.float32] = predictor.models[0].network.vectors(image, valid)[0].float().cpu().numpy()
    if not np.isfinite(vector).all():
        raise UserError("The embedding is not finite.")
    return vector


def main(model: Path, arguments: Sequence[str]) -> int:
    """Run the program of a submission and return its exit code."""
    images, out = _parse(arguments)
    try:
        if segmentation.is_segmentation(model):
            segment_subject(segmentation.read_trained(model), images, out)
            return 0
        predictor = Predictor(model, Machine.choose("auto", 1, 1).device)
        out.parent.mkdir(parents=True, exist_ok=True)
        if predictor.spec.image_names == [EMBEDDED]:
            vector = embed_image(predictor, images)
            np.save(out, vector)
        else:
            out.write_text(f"{predict_subject(predictor, images):.6f}\n")
    except UserError as problem:
        print(f"predict.py: {problem}", file=sys.stderr)
        return 1
    return 0


class _AddImage(argparse.Action):
    def __call__(self, _parser: object, found: argparse.Namespace, value: object, option: str | None = None) -> None:
        found.images[ARGUMENTS[str(option).removeprefix("--")]] = value


def _parse(arguments: Sequence[str]) -> tuple[dict[str, Path], Path]:
    """Return the image of each sequence in the order of the command line, in which the first sets a mask's grid."""
    # Without abbreviations: an argument of another edition must be an error, not another argument.
    parser = argparse.ArgumentParser(
        prog="predict.py", description="Predict a FOMO task for one subject.", allow_abbrev=False
    )
    for word in ARGUMENTS:
        parser.add_argument(f"--{word}", type=Path, action=_AddImage, dest="images", default={})
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(list(arguments))
    return options.images, options.output
