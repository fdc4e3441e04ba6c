"""Compute one feature vector per case with a frozen encoder, and store vectors as NumPy or Parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import viewalign
from viewalign.data.image_fingerprint import Fingerprint
from viewalign.errors import UserError, usual_reason
from viewalign.evaluation.settings import Pool
from viewalign.networks.backbone import Backbone
from viewalign.tasks.cases import iter_prepared, split_results
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Preprocessor, Sample, sample_tensors
from viewalign.utils.extras import missing
from viewalign.utils.io import atomic_write
from viewalign.utils.memory import reported_out_of_memory
from viewalign.utils.pooling import masked_mean, valid_fraction
from viewalign.utils.precision import at_least_float32, choose_device
from viewalign.utils.shapes import spatial_size

Rows = NDArray[np.float32]


class Pooling(nn.Module):
    """Reduces feature maps to one vector per image, ignoring padding.

    `average` is the mean of the coarsest map, `multistage` the means of all maps (a transformer has only one),
    `attention` a learned weighting of the coarsest map, `pretrained` the pooling used in pretraining: all stages of a
    ResEnc, feature decoder and attention of a Primus.
    """

    def __init__(self, backbone: Backbone, kind: Pool) -> None:
        super().__init__()
        self.kind = kind
        last, total = backbone.stage_channels[-1], sum(backbone.stage_channels)
        self.width = {"average": last, "attention": last, "multistage": total}.get(kind, backbone.pooled_channels)
        self.score = nn.Linear(last, 1) if kind == "attention" else None
        if self.score is not None:  # initially equal to `average`
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)

    def forward(self, backbone: Backbone, images: Tensor, valid: Tensor) -> Tensor:
        """Encode and pool images (N, C, D, H, W) with valid voxels (N, 1, D, H, W); float32 (N, width)."""
        encoded = backbone.encode(images)
        if self.kind == "pretrained":
            return backbone.pool(backbone.dense(encoded), valid)
        maps = backbone.maps(encoded)
        if self.score is not None:
            return self._attention(self.score, maps[-1], valid)
        return masked_mean(maps if self.kind == "multistage" else maps[-1:], valid)

    def _attention(self, score: nn.Linear, features: Tensor, valid: Tensor) -> Tensor:
        cells = at_least_float32(features).flatten(2).transpose(1, 2)
        fraction = valid_fraction(valid, spatial_size(features)).flatten(1)
        logits = score(cells)[..., 0].float() + fraction.clamp(min=1e-6).log()
        return (torch.softmax(logits, dim=1)[..., None] * cells).sum(1)


@dataclass(frozen=True)
class Embeddings:
    """Feature vectors of cases.

    Attributes:
        cases: names, in order.
        features: (N, C) float32.
        facts: how they were computed, with hashes of encoder and preprocessing.
        maps: the coarsest feature map of each case (N, C, d, h, w), or None.
        excluded: name and reason of each unusable case.
        fingerprints: of each case's image, to find copies (`tasks.folds.join_copies`); not stored.
    """

    cases: tuple[str, ...]
    features: Rows
    facts: dict[str, Any]
    maps: Rows | None = None
    excluded: tuple[tuple[str, str], ...] = field(default=())
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write `.npz` with arrays `case`, `features`, `maps` (if any) and `facts` as JSON, or `.parquet`.

        A Parquet file has the same columns, with `facts` in its metadata.

        Raises:
            UserError: pyarrow is not installed.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            if path.suffix == ".parquet":
                _write_parquet(partial, self)
                return
            arrays: dict[str, NDArray[Any]] = {"case": np.array(self.cases), "features": self.features}
            arrays["facts"] = np.array(json.dumps(self.facts))
            if self.maps is not None:
                arrays["maps"] = self.maps
            with partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """Read a file written by `write`.

        Raises:
            UserError: another file, or pyarrow is not installed.
        """
        try:
            if path.suffix == ".parquet":
                return _read_parquet(path)
            with np.load(path) as arrays:
                maps = arrays["maps"] if "maps" in arrays.files else None
                return cls(tuple(arrays["case"].tolist()), arrays["features"], json.loads(str(arrays["facts"])), maps)
        except (OSError, ValueError, KeyError) as problem:
            raise UserError(f"{path} does not contain embeddings of viewalign: {problem}.") from None


_FACTS, _MAP_SHAPE = b"viewalign.facts", b"viewalign.map_shape"


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing("Parquet files need pyarrow", "parquet") from None
    return pyarrow


def _write_parquet(path: Path, embeddings: Embeddings) -> None:
    """Write one row per case; features and flattened maps are lists of fixed length."""
    pa = _pyarrow()

    def column(rows: Rows) -> Any:
        flat = np.ascontiguousarray(rows, dtype=np.float32).reshape(len(rows), -1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])

    columns = {"case": pa.array(list(embeddings.cases), pa.string()), "features": column(embeddings.features)}
    metadata = {_FACTS: json.dumps(embeddings.facts)}
    if embeddings.maps is not None:
        columns["maps"] = column(embeddings.maps)
        metadata[_MAP_SHAPE] = json.dumps(embeddings.maps.shape[1:])
    pa.parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def _read_parquet(path: Path) -> Embeddings:
    table = _pyarrow().parquet.read_table(path)
    metadata = table.schema.metadata or {}
    names = tuple(table["case"].to_pylist())

    def rows(column: str, shape: Sequence[int]) -> Rows:
        flat = table[column].combine_chunks().flatten()
        return np.asarray(flat, dtype=np.float32).reshape(len(names), *shape)

    maps = rows("maps", json.loads(metadata[_MAP_SHAPE])) if "maps" in table.column_names else None
    return Embeddings(names, rows("features", (-1,)), json.loads(metadata[_FACTS]), maps)


@reported_out_of_memory("cases were embedded", "Use a smaller patch_size, or device=cpu.")
@torch.no_grad()
def embed(
    backbone: Backbone,
    preprocessor: Preprocessor,
    cases: Sequence[TaskCase],
    pool: Pool = "multistage",
    with_maps: bool = False,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
    workers: int | None = None,
) -> Embeddings:
    """Embed cases one at a time in float32, deterministically, while further cases are prepared.

    Args:
        backbone: from `evaluation.encoders.build_encoder`; one of fewer channels than the task encodes the channels
            in parts, whose vectors and maps are concatenated.
        preprocessor: of the task.
        cases: their targets are not used.
        pool: kind of pooling.
        with_maps: whether to keep the coarsest feature map of each case.
        device: auto, cuda or cpu.
        progress: called with (done, total) after each case.
        cache, workers: see `tasks.cases.iter_prepared`.

    Raises:
        UserError: none of the cases could be used.
    """
    device = choose_device(device)
    backbone = backbone.eval().to(device)
    pooling = Pooling(backbone, pool).to(device)
    results: dict[str, Rows | str] = {}
    maps: dict[str, Rows] = {}
    fingerprints: dict[str, Fingerprint] = {}
    for case, sample in iter_prepared(cases, preprocessor, cache, workers):
        if isinstance(sample, str):
            results[case.case] = sample
        else:
            fingerprints[case.case] = sample.fingerprint
            image, valid = sample_tensors(sample, device)
            parts = image.split(image_channels(backbone), dim=1)
            results[case.case] = torch.cat([pooling(backbone, part, valid)[0] for part in parts]).cpu().numpy()
            if with_maps:
                coarsest = [backbone.maps(backbone.encode(part))[-1][0] for part in parts]
                maps[case.case] = torch.cat(coarsest).float().cpu().numpy()
        if progress:
            progress(len(results), len(cases))
    vectors, excluded = split_results(cases, results)
    if not vectors:
        raise UserError(f"No case is usable ({len(cases):,} tried). {usual_reason(excluded)}")
    facts = {
        "viewalign_version": viewalign.__version__,
        "encoder_sha256": weights_digest(backbone),
        "preprocessing": preprocessor.as_json(),
        "preprocessing_fingerprint": preprocessor.fingerprint(),
        "pool": pool,
    }
    stacked = np.stack([maps[name] for name in vectors]) if with_maps else None
    return Embeddings(tuple(vectors), np.stack(list(vectors.values())), facts, stacked, tuple(excluded), fingerprints)


def image_channels(backbone: Backbone) -> int:
    """Return the number of image channels of an encoder: that of its first convolution."""
    return next(value.shape[1] for value in backbone.parameters() if value.ndim == 5)


def weights_digest(backbone: Backbone) -> str:
    """Return the SHA-256 of the names and values of an encoder's parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.named_parameters()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def intensity_statistics(sample: Sample) -> Rows:
    """Return quantiles, moments and mean gradients of each channel, and the extent of the image, as a vector.

    A baseline without a network: good results indicate that a task depends on brightness and size.
    """
    inside = sample.valid[0]
    rows: list[float] = [float(inside.any(axis=tuple(k for k in range(3) if k != axis)).sum()) for axis in range(3)]
    for channel in sample.image:
        values = channel[inside].astype(np.float64)
        centred = values - values.mean()
        deviation = max(float(values.std()), 1e-6)
        rows += np.quantile(values, [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]).tolist()
        rows += [float((centred**p).mean() / deviation**p) for p in (3, 4)]
        rows += [float(np.abs(np.diff(channel, axis=axis)).mean()) for axis in range(3)]
    return np.array(rows, dtype=np.float32)
