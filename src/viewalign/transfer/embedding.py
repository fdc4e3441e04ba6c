"""What an encoder says of whole images: one vector a case, and maps if asked for. The same numbers every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import viewalign
from viewalign.device import choose_device
from viewalign.errors import UserError
from viewalign.memory import reported_out_of_memory
from viewalign.networks.backbone import Backbone
from viewalign.transfer import parquet
from viewalign.transfer.tasks.manifest import Target, TaskCase
from viewalign.transfer.tasks.pooling import Pool, Pooling, maps_of
from viewalign.transfer.tasks.preparation import Preprocessor, Sample
from viewalign.transfer.tasks.prepared_cases import in_order, prepared
from viewalign.transfer.tasks.training import sample_tensors
from viewalign.writing import whole

Rows = NDArray[np.float32]


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
    refused: tuple[tuple[str, str], ...] = field(default=())

    def write(self, path: Path) -> None:
        """Write an `.npz` (arrays `case`, `features`, perhaps `maps`, and `facts` as JSON), whole or not at all.

        A name that ends in `.parquet` gives a table of the same columns, with `facts` in its metadata.
        """
        arrays: dict[str, NDArray[Any]] = {"case": np.array(self.cases), "features": self.features}
        arrays["facts"] = np.array(json.dumps(self.facts))
        if self.maps is not None:
            arrays["maps"] = self.maps
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            if path.suffix == ".parquet":
                parquet.write(partial, self.cases, self.features, self.maps, self.facts)
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
            return cls(*parquet.read(path))
        try:
            with np.load(path) as held:
                maps = held["maps"] if "maps" in held.files else None
                return cls(tuple(held["case"].tolist()), held["features"], json.loads(str(held["facts"])), maps)
        except (OSError, ValueError, KeyError) as problem:
            raise UserError(f"{path} holds no embeddings of viewalign: {problem}.") from None


@reported_out_of_memory("cases were embedded", "Take a smaller size, or device=cpu.")
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
    vectors, refused = in_order(cases, found)
    if not vectors:
        raise UserError(f"None of the {len(cases)} cases could be used. The first: {refused[0][0]}: {refused[0][1]}.")
    facts = {
        "viewalign_version": viewalign.__version__,
        "encoder_sha256": digest(backbone),
        "preprocessing": preprocessor.as_json(),
        "preprocessing_fingerprint": preprocessor.fingerprint(),
        "pool": pool,
    }
    kept = np.stack([maps[name] for name in vectors]) if with_maps else None
    return Embeddings(tuple(vectors), np.stack(list(vectors.values())), facts, kept, tuple(refused))


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
