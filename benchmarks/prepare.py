"""Preparation against what no program can leave out: decoding the input and compressing the result.

`python benchmarks/prepare.py [--count 40] [--agreement 3]`

Whole heads, real ones first. One process, one thread, time of the processor, so that other work on the machine does not
count. The floor unpacks the file and compresses what preparation stored, with the same codec, level, chunks and thread.
`agreement` volumes are also resampled as nnssl does it (scikit-image, spline of order 3), to say how near both
interpolations come. The last line is one JSON object; `ratio` is the larger of linear ÷ 2 and cubic ÷ 3.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _heads import heads
from skimage.transform import resize

from viewalign.data.catalogue import Record
from viewalign.data.geometry import resample, resampled_shape
from viewalign.data.layout import compress
from viewalign.data.preprocessing import content_box, prepare_volume
from viewalign.data.readers.files import read_volume
from viewalign.data.readers.itk import sitk
from viewalign.data.settings import PrepareSettings
from viewalign.data.worker import Job, work

TARGETS = {"linear": 2.0, "cubic": 3.0}


def cpu(call: Callable[[], object]) -> float:
    """Return the processor's seconds of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def decode(path: Path) -> object:
    """Unpack a file and do nothing else."""
    if path.name.endswith(".nii.gz"):
        with gzip.open(path) as file:
            return file.read()
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def measure(path: Path, how: str, folder: Path) -> dict[str, object]:
    """Measure one file."""
    settings = PrepareSettings(interpolation=how)
    job = Job(folder / how, Record("b", "b", path.stem, "s", path.stem, path, "T1w"), settings)
    result = prepare_volume(read_volume(path), settings).array[None]
    floor = cpu(lambda: decode(path)) + cpu(lambda: compress(result))
    outcomes: list[object] = []
    ours = cpu(lambda: outcomes.append(work(job)))
    assert getattr(outcomes[0], "reason", "?") is None, outcomes
    return {"file": path.name, "how": how, "voxels": int(result.size), "ours_s": ours, "floor_s": floor}


def psnr(ours: np.ndarray, reference: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; the peak is the reference's range."""
    error = float(np.mean(np.square(ours.astype(np.float64) - reference)))
    return float(20 * np.log10((reference.max() - reference.min()) / np.sqrt(error)))


def agreement(path: Path) -> dict[str, float]:
    """Compare both interpolations with the spline of order 3 that nnssl takes (`resize(order=3, mode="edge")`)."""
    volume = read_volume(path)
    box = tuple(slice(*pair) for pair in content_box(volume.array))
    array = np.ascontiguousarray(volume.array[box])
    shape = resampled_shape(array.shape, volume.spacing, (1.0, 1.0, 1.0))
    reference = resize(array.astype(np.float64), shape, order=3, mode="edge", anti_aliasing=False)
    return {how: psnr(resample(array, shape, how), reference) for how in TARGETS}


def main() -> None:
    """Measure every file and print one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--agreement", type=int, default=3)
    arguments = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        files, real = heads(Path(name), arguments.count)
        measure(files[0], "cubic", Path(name))  # warms up
        for how in TARGETS:
            rows = [measure(path, how, Path(name) / "store") for path in files]
            ours, floor = (sum(float(str(row[key])) for row in rows) for key in ("ours_s", "floor_s"))
            ratios[how] = ours / floor
            per = {"files": len(rows), "real": real, "s_per_volume": ours / len(rows), "floor_s": floor / len(rows)}
            print(json.dumps({"how": how, "ratio": ratios[how], **per}), flush=True)
        near = [agreement(path) for path in files[: arguments.agreement]]
    means = {f"psnr_db_{how}": float(np.mean([row[how] for row in near])) for how in TARGETS if near}
    worst = max(ratios[how] / target for how, target in TARGETS.items())
    print(json.dumps({"name": "prepare", "ratio": round(worst, 3), "target": 1.0, **ratios, **means}))


if __name__ == "__main__":
    main()
