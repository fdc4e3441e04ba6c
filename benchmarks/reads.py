"""Reading super-crops out of a store against unpacking just those voxels.

`python benchmarks/reads.py [--views 64 96 128 160] [--boxes 40]`

A head is stored with blocks cut for the view size. Boxes are the super-crops of drawn pairs of views, as training reads
them. A read opens the file, unpacks the blocks that the box touches and gives float32; the floor unpacks an array that
holds the box and nothing else, stored with the same codec, level and blocks. Time of the processor, one thread. The
first read of an image in a run also verifies its checksum, and is reported by itself. The last line is one JSON object;
`ratio` is the worst view size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import blosc2
import numpy as np
from _heads import heads

from viewalign.data.catalogue import Record
from viewalign.data.layout import chunk_and_block, compress
from viewalign.data.prepare import prepare_records
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store
from viewalign.views.samples import enclosing_box
from viewalign.views.sampling import ViewSamplingConfig, sample_pair

TARGET = 1.5


def measure(store: Store, view: int, count: int) -> dict[str, float]:
    """Read `count` super-crops and unpack the same voxels stored alone."""
    size, shape = (view, view, view), store.shape(0)
    sizes = chunk_and_block(size)
    begin = time.process_time()
    store.read(0, (0, 0, 0), (8, 8, 8))
    first = time.process_time() - begin  # reads the whole file once, to compare it with its checksum
    read = floor = voxels = 0.0
    for number in range(count):
        pair = sample_pair(np.random.default_rng(number), shape, ViewSamplingConfig(size))
        start, stop = enclosing_box(pair.to_volume, size, shape)
        begin = time.process_time()
        box = store.read(0, start, stop)
        read += time.process_time() - begin
        alone = blosc2.ndarray_from_cframe(compress(box, sizes))
        begin = time.process_time()
        alone[:]
        floor += time.process_time() - begin
        voxels += box.size / count
    return {
        "view": view,
        "box": round(voxels ** (1 / 3), 1),
        "first_ms": 1e3 * first,
        "read_ms": 1e3 * read / count,
        "ratio": read / floor,
    }


def main() -> None:
    """Measure every view size and print one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, nargs="+", default=[64, 96, 128, 160])
    parser.add_argument("--boxes", type=int, default=40)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        files, _ = heads(Path(name), 1)
        records = [Record("b", "b", "head", "s", "head", files[0], "T1w")]
        for view in arguments.views:
            settings = PrepareSettings(patch_size=(view, view, view))
            prepare_records(records, Path(name) / f"store{view}", settings, workers=0)
            rows.append(measure(Store.open(Path(name) / f"store{view}"), view, arguments.boxes))
            print(json.dumps(rows[-1]), flush=True)
    worst = max(row["ratio"] for row in rows)
    print(json.dumps({"name": "reads", "ratio": round(worst, 3), "target": TARGET, "cases": rows}))


if __name__ == "__main__":
    main()
