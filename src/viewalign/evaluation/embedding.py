"""From feature maps to one vector an image. Padding counts in none: each cell weighs what share of it is valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import viewalign
from viewalign.errors import UserError
from viewalign.networks.backbone import Backbone
from viewalign.tasks.cases import in_order, prepared
from viewalign.tasks.manifest import Target, TaskCase
from viewalign.tasks.preprocessing import Preprocessor, Sample, sample_tensors
from viewalign.utils.io import atomic_write
from viewalign.utils.memory import reported_out_of_memory
from viewalign.utils.pooling import masked_mean, valid_fraction
from viewalign.utils.precision import at_least_float32, choose_device
from viewalign.utils.shapes import spatial_size

Pool = Literal["average", "multistage", "attention", "pretrained"]


def maps_of(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return the encoder's maps (N, C, d, h, w), finest first; a transformer has one."""
    encoded = backbone.encode(images)
    if encoded.tokens is None:
        return list(encoded.maps)
    return [encoded.tokens.transpose(1, 2).unflatten(2, encoded.grid)]


class Pooling(nn.Module):
    """One vector an image, by one of four ways.

    `average` takes the coarsest map's mean, `multistage` the means of all maps (for a transformer they are one),
    `attention` a learned weighting of the coarsest map's cells, `pretrained` what pretraining pooled by: all stages of
    a ResEnc, the feature decoder and attention of a Primus.
    """

    def __init__(self, backbone: Backbone, kind: Pool) -> None:
        super().__init__()
        self.kind = kind
        last, everything = backbone.stage_channels[-1], sum(backbone.stage_channels)
        self.width = {"average": last, "attention": last, "multistage": everything}.get(kind, backbone.pooled_channels)
        self.score = nn.Linear(last, 1) if kind == "attention" else None
        if self.score is not None:  # begins as the average
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)

    def forward(self, backbone: Backbone, images: Tensor, valid: Tensor) -> Tensor:
        """Encode and pool images (N, C, D, H, W) with their valid voxels (N, 1, D, H, W); float32 (N, width)."""
        if self.kind == "pretrained":
            return backbone.pool(backbone.dense(backbone.encode(images)), valid)
        maps = maps_of(backbone, images)
        if self.kind == "multistage":
            return masked_mean(maps, valid)
        if self.score is None:
            return masked_mean(maps[-1:], valid)
        return self._attended(maps[-1], valid)

    def _attended(self, features: Tensor, valid: Tensor) -> Tensor:
        assert self.score is not None
        cells = at_least_float32(features).flatten(2).transpose(1, 2)
        share = valid_fraction(valid, spatial_size(features)).flatten(1)
        score = self.score(cells)[..., 0].float() + share.clamp(min=1e-6).log()
        return (torch.softmax(score, dim=1)[..., None] * cells).sum(1)


Rows = NDArray[np.float32]
_FACTS, _SHAPE = b"viewalign.facts", b"viewalign.map_shape"


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet needs one more package: pip install 'viewalign[parquet]'.") from None
    return pyarrow


def write(path: Path, cases: Sequence[str], features: Rows, maps: Rows | None, facts: dict[str, Any]) -> None:
    """Write a row a case; `features` (N, C) and flattened `maps` (N, ...) are lists of fixed length.

    Raises:
        UserError: pyarrow is not installed.
    """
    pa = _pyarrow()
    columns = {"case": pa.array(list(cases), pa.string()), "features": _lists(pa, features)}
    metadata = {_FACTS: json.dumps(facts)}
    if maps is not None:
        columns["maps"] = _lists(pa, maps)
        metadata[_SHAPE] = json.dumps(maps.shape[1:])
    table = pa.table(columns)
    pa.parquet.write_table(table.replace_schema_metadata(metadata), path)


def _lists(pa: Any, rows: Rows) -> Any:
    flat = np.ascontiguousarray(rows, dtype=np.float32).reshape(len(rows), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def read(path: Path) -> tuple[tuple[str, ...], Rows, dict[str, Any], Rows | None]:
    """Read names, features, facts and maps.

    Raises:
        UserError: it is no such file.
    """
    pa = _pyarrow()
    try:
        table = pa.parquet.read_table(path)
        metadata = table.schema.metadata or {}
        facts = json.loads(metadata[_FACTS])
        names = tuple(table["case"].to_pylist())
        features = _matrix(table["features"], len(names))
        maps = None
        if "maps" in table.column_names:
            maps = _matrix(table["maps"], len(names)).reshape(len(names), *json.loads(metadata[_SHAPE]))
    except (OSError, KeyError, ValueError) as problem:
        raise UserError(f"{path} holds no embeddings of viewalign: {problem}.") from None
    return names, features, facts, maps


def _matrix(column: Any, count: int) -> Rows:
    values: Rows = np.asarray(column.combine_chunks().flatten(), dtype=np.float32).reshape(count, -1)
    return values


@dataclass(frozen=True)
class Embeddings:
    """Vectors of cases.

    Attributes:
        cases: names, in order.
        features: (N, C) float32.
        maps: the coarsest map of each case (N, C, d, h, w), or None.
        facts: what they were made with: hashes of the encoder and the preprocessing among them.
        refused: name and reason of each case that could not be used.
    """

    cases: tuple[str, ...]
    features: Rows
    facts: dict[str, Any]
    maps: Rows | None = None
    excluded: tuple[tuple[str, str], ...] = field(default=())

    def write(self, path: Path) -> None:
        """Write an `.npz` (arrays `case`, `features`, perhaps `maps`, and `facts` as JSON), whole or not at all.

        A name that ends in `.parquet` gives a table of the same columns, with `facts` in its metadata.
        """
        arrays: dict[str, NDArray[Any]] = {"case": np.array(self.cases), "features": self.features}
        arrays["facts"] = np.array(json.dumps(self.facts))
        if self.maps is not None:
            arrays["maps"] = self.maps
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            if path.suffix == ".parquet":
                write(partial, self.cases, self.features, self.maps, self.facts)
            else:
                with partial.open("wb") as file:
                    np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """Read what `write` wrote.

        Raises:
            UserError: it is no such file.
        """
        if path.suffix == ".parquet":
            return cls(*read(path))
        try:
            with np.load(path) as held:
                maps = held["maps"] if "maps" in held.files else None
                return cls(tuple(held["case"].tolist()), held["features"], json.loads(str(held["facts"])), maps)
        except (OSError, ValueError, KeyError) as problem:
            raise UserError(f"{path} holds no embeddings of viewalign: {problem}.") from None


@reported_out_of_memory("cases were embedded", "Take a smaller patch_size, or device=cpu.")
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
    """Embed cases one by one, in float32, with nothing random; others are prepared meanwhile.

    Args:
        backbone: from `tasks.encoders.build_encoder`.
        preprocessor: of the task.
        cases: their targets are not looked at.
        pool: how a vector is made of maps.
        with_maps: whether to keep the coarsest map of each case.
        device: where the encoder runs: auto, cuda or cpu.
        progress: takes how many cases are done and how many there are.
        cache: folder of prepared cases, see `tasks.caching`.
        workers: processes that prepare cases, see `tasks.prepared_cases`.
    """
    device = choose_device(device)
    backbone = backbone.eval().to(device)
    pooling = Pooling(backbone, pool).to(device)
    found: dict[str, Rows | str] = {}
    maps: dict[str, Rows] = {}
    for number, (case, sample) in enumerate(prepared(cases, preprocessor, cache, workers), 1):
        if isinstance(sample, str):
            found[case.case] = sample
        else:
            image, valid = sample_tensors(sample, device)
            found[case.case] = pooling(backbone, image, valid)[0].cpu().numpy()
            if with_maps:
                maps[case.case] = maps_of(backbone, image)[-1][0].float().cpu().numpy()
        if progress:
            progress(number, len(cases))
    vectors, excluded = in_order(cases, found)
    if not vectors:
        raise UserError(f"None of the {len(cases)} cases could be used. The first: {excluded[0][0]}: {excluded[0][1]}.")
    facts = {
        "viewalign_version": viewalign.__version__,
        "encoder_sha256": digest(backbone),
        "preprocessing": preprocessor.as_json(),
        "preprocessing_fingerprint": preprocessor.fingerprint(),
        "pool": pool,
    }
    kept = np.stack([maps[name] for name in vectors]) if with_maps else None
    return Embeddings(tuple(vectors), np.stack(list(vectors.values())), facts, kept, tuple(excluded))


def digest(backbone: Backbone) -> str:
    """Return a SHA-256 of names and numbers of an encoder's parameters."""
    total = hashlib.sha256()
    for name, value in sorted(backbone.named_parameters()):
        total.update(name.encode())
        total.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def intensity_statistics(sample: Sample) -> Rows:
    """Describe a case by what needs no network: quantiles, moments, edges of each channel, and its extent.

    The baseline that tells whether a task asks for more than brightness and size.
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


def targets_of(cases: Sequence[TaskCase], names: Sequence[str]) -> list[Target]:
    """Return the targets of named cases, in order.

    Raises:
        UserError: a case without one.
    """
    known = {case.case: case.target for case in cases}
    missing = [name for name in names if known.get(name) is None]
    if missing:
        raise UserError(f"There is no target for {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}.")
    return [target for name in names if (target := known[name]) is not None]
