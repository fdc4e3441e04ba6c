"""Export a fine-tuned task as one ONNX file, averaged over folds, and predict with it.

The graph takes `image` float32 (N, C, D, H, W) and `valid` bool (N, 1, D, H, W) from `Preprocessor`, for any N, and
returns `answer` float32: probabilities (N, K), or values (N, 1) in the target's unit. Preprocessing is described in the
metadata of the file under `viewalign`, and in a JSON file next to it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import viewalign
from viewalign.errors import UserError
from viewalign.finetuning.classification.models import Predictor, TaskModel
from viewalign.finetuning.classification.network import predictions_from_outputs
from viewalign.finetuning.classification.training import flipped_axes
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Preprocessor, Sample
from viewalign.tasks.spec import check_spec
from viewalign.utils.extras import missing
from viewalign.utils.io import PARTIAL_PREFIX, write_json
from viewalign.utils.outputs import check_file

FORMAT, KEY = "viewalign-task-onnx", "viewalign"
MODEL, FACTS = "model.onnx", "model.json"
OPSET = 18
BATCHES = (1, 2, 3)
_MAX_INLINE_BYTES = 1.8e9
"""Larger weights, in bytes, are stored in a second file: protobuf is limited to 2 GB."""
_TOLERANCE = 1e-3


class _Ensemble(nn.Module):
    """The mean prediction of all folds."""

    def __init__(self, models: Sequence[TaskModel]) -> None:
        super().__init__()
        self.networks = nn.ModuleList([model.network for model in models])
        self.spec, self.scales = models[0].spec, [model.scale for model in models]

    def forward(self, image: Tensor, valid: Tensor) -> Tensor:
        pairs = zip(self.networks, self.scales, strict=True)
        values = [predictions_from_outputs(network(image, valid), self.spec, *scale) for network, scale in pairs]
        return torch.stack(values).mean(0)


@dataclass(frozen=True)
class Exported:
    """An exported graph.

    Attributes:
        file: the ONNX file.
        folds: number of averaged networks.
        difference: largest difference between torch and onnxruntime on random images, batches of 1, 2 and 3.
    """

    file: Path
    folds: int
    difference: float

    def text(self) -> str:
        """Return a summary for a terminal."""
        return (
            f"  {self.file}  ({self.folds} {'fold' if self.folds == 1 else 'folds averaged'}, any batch size)\n"
            f"  {self.file.with_name(FACTS)}  (how images are prepared)\n"
            f"Largest difference from torch: {self.difference:.1e}"
        )


def export_onnx(folder: str | Path, out: Path) -> Exported:
    """Export a fine-tuned task, or one fold, as ONNX, and compare onnxruntime's outputs with those of torch.

    Raises:
        UserError: no trained model, missing packages, or outputs that differ from those of torch.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise missing("ONNX export and prediction need more packages", "onnx") from None
    earlier = (out / MODEL).is_file() and (out / FACTS).is_file()
    for name in (MODEL, FACTS):
        check_file(out / name, "export", ours=lambda _: earlier)
    predictor = Predictor(folder)
    model = _Ensemble(predictor.models).eval()
    program = _export(model, predictor)
    facts = _facts(predictor)
    program.model.metadata_props[KEY] = json.dumps(facts)
    out.mkdir(parents=True, exist_ok=True)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    scale = max(abs(model.scale[1]) for model in predictor.models)
    with tempfile.TemporaryDirectory(dir=out, prefix=PARTIAL_PREFIX) as scratch:
        program.save(str(Path(scratch) / MODEL), external_data=size > _MAX_INLINE_BYTES)
        difference = _difference(model, predictor, Path(scratch) / MODEL)
        if not difference <= _TOLERANCE * scale:
            raise UserError(
                f"The outputs of the ONNX graph differ from those of torch by {difference:.1e}; nothing was written."
            )
        for file in sorted(Path(scratch).iterdir(), key=lambda file: file.name == MODEL):  # the graph last
            file.replace(out / file.name)
    write_json(out / FACTS, facts)
    return Exported(out / MODEL, len(predictor.models), difference)


def _export(model: nn.Module, predictor: Predictor) -> Any:
    """Export with a dynamic batch size."""
    image, valid = _example(predictor, 2)
    batch = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        return torch.onnx.export(
            model,
            (image, valid),
            dynamo=True,
            input_names=["image", "valid"],
            output_names=["answer"],
            dynamic_shapes=(batch, batch),
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten._adaptive_avg_pool3d.default: _cell_means},
            verbose=False,
        )


def _cell_means(self: Any, output_size: Sequence[int]) -> Any:
    """Average pooling by a whole factor, in place of adaptive pooling, which ONNX does not have."""
    from onnxscript import opset18 as op

    kernel = [int(n) // int(m) for n, m in zip(self.shape[2:], output_size, strict=True)]
    return op.AveragePool(self, kernel_shape=kernel, strides=kernel)


def _example(predictor: Predictor, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    size = predictor.preprocessor.size
    image = torch.randn(count, len(predictor.spec.channels), *size, generator=generator)
    valid = torch.rand(count, 1, *size, generator=generator) > 0.2
    return image, valid


def _difference(model: nn.Module, predictor: Predictor, file: Path) -> float:
    session = open_session(file)
    worst = 0.0
    for count in BATCHES:
        image, valid = _example(predictor, count)
        with torch.no_grad():
            wanted = model(image, valid).numpy()
        found = session.run(None, {"image": image.numpy(), "valid": valid.numpy()})[0]
        worst = max(worst, float(np.abs(wanted - found).max()))
    return worst


def _facts(predictor: Predictor) -> dict[str, Any]:
    spec, size = predictor.spec, list(predictor.preprocessor.size)
    meaning = "probabilities of " + ", ".join(spec.classes)
    if spec.kind == "regression":
        meaning = f"value in {spec.unit or 'the unit of the target'}"
    image_shape, axes = ["N", len(spec.channels), *size], "N, channel, z, y, x (LPS)"
    return {
        "format": FORMAT,
        "version": 1,
        "viewalign_version": viewalign.__version__,
        "network": predictor.models[0].facts["network"],
        "folds": len(predictor.models),
        "mirrored": predictor.mirrored,
        "inputs": {
            "image": {"type": "float32", "shape": image_shape, "axes": axes},
            "valid": {"type": "bool", "shape": ["N", 1, *size], "means": "false outside the volume"},
        },
        "outputs": {"answer": {"type": "float32", "shape": ["N", spec.outputs], "means": meaning}},
        "task": spec.model_dump(mode="json"),
        "preprocessing": predictor.preprocessor.as_json(),
    }


def open_session(file: Path) -> Any:
    """Open a graph with onnxruntime on the CPU.

    Raises:
        UserError: onnxruntime is not installed, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing("ONNX export and prediction need more packages", "onnx") from None
    try:
        return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime's own exceptions have no common base
        raise UserError(f"{file} is not an ONNX graph that onnxruntime can read: {problem}.") from None


class OnnxPredictor:
    """Predicts new cases with an exported graph; same interface as `models.Predictor`.

    Args:
        file: written by `export_onnx`.

    Raises:
        UserError: another file.
    """

    def __init__(self, file: Path) -> None:
        self.session = open_session(file)
        facts = json.loads(self.session.get_modelmeta().custom_metadata_map.get(KEY, "{}"))
        if facts.get("format") != FORMAT or facts.get("version") != 1:
            raise UserError(f"{file} has no description of preprocessing: it was not exported by viewalign.")
        self.spec = check_spec(facts["task"], str(file))
        self.preprocessor = Preprocessor.from_json(facts["preprocessing"])
        self.mirrored: bool = facts.get("mirrored", not self.spec.laterality)

    def predict(self, case: TaskCase, flips: bool = False) -> NDArray[np.float64]:
        """Return a case's probabilities (K,), or its value (1,); with `flips` the mean over all eight mirrorings.

        Raises:
            UserError: the case cannot be used.
        """
        return self.predict_sample(self.preprocessor(case.images, case.mask), flips)

    def predict_sample(self, sample: Sample, flips: bool = False) -> NDArray[np.float64]:
        """Return the same for a prepared case."""
        inputs = {"image": sample.image[None], "valid": sample.valid[None]}
        values = []
        for axes in flipped_axes(flips):
            flipped = {name: np.ascontiguousarray(np.flip(array, axes)) for name, array in inputs.items()}
            values.append(self.session.run(None, flipped)[0])
        mean: NDArray[np.float64] = np.mean(np.asarray(values, dtype=np.float64), axis=0)[0]
        return mean
