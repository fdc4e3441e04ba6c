"""Embeddings as a Parquet table: columns `case`, `features` and perhaps `maps`; facts and shapes in the metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError

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
