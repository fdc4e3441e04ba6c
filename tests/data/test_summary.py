from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from viewalign.data.entries import suspicions, tilt
from viewalign.data.indexing import index_sources
from viewalign.data.readers.headers import read_header
from viewalign.data.summary import spread, summarise


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize(("degrees", "expected"), [(0, 0), (20, 20), (44, 44), (70, 20), (90, 0)])
def test_tilt_is_the_angle_to_the_nearest_axis(degrees: float, expected: float) -> None:
    assert tilt(turned(degrees)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "spacing", "degrees", "words"),
    [
        ((24, 28, 20), (1, 1, 1), 10, []),
        ((9, 28, 20), (1, 1, 1), 0, ["few slices: 9 along an axis"]),
        ((24, 28, 20), (0.1, 1, 1), 0, ["extreme voxel size: 1×1×0.1 mm"]),
        ((24, 28, 20), (0.5, 0.5, 7), 0, ["extreme voxel size: 7×0.5×0.5 mm"]),
        ((16, 25, 20), (1, 1, 1), 0, []),
        ((16, 18, 20), (0.5, 0.5, 6), 0, []),
        ((16, 18, 20), (0.9, 0.9, 10.5), 0, ["extreme voxel size: 10.5×0.9×0.9 mm"]),
        ((24, 28, 20), (1, 1, 1), 40, ["odd orientation: 40°"]),
        ((24, 28, 20), (0.8, 0.8, 0.8), 0, ["small field of view: its longest side has 22.4 mm"]),
    ],
)
def test_unusual_images_are_reported(tmp_path: Path, write_image, make_head, shape, spacing, degrees, words) -> None:
    path = write_image(tmp_path / "a.nii.gz", make_head(shape=shape), spacing, direction=turned(degrees))
    found = suspicions(read_header(path))
    assert len(found) == len(words)
    assert all(said.startswith(word) for said, word in zip(found.values(), words, strict=True))


def test_an_index_reports_duplicates(tmp_path: Path, write_image, make_head) -> None:
    for name, seed in (("sub-1/T1.nii.gz", 0), ("sub-2/T1.nii.gz", 0), ("sub-3/T1.nii.gz", 1)):
        write_image(tmp_path / name, make_head(seed))
    summary = summarise(index_sources([str(tmp_path)]))
    assert [entry["file"] for entry in summary["suspects"]] == [
        str(tmp_path / "sub-1/T1.nii.gz"),
        str(tmp_path / "sub-2/T1.nii.gz"),
    ]
    assert summary["suspects"][0]["reasons"] == [f"same content as {tmp_path / 'sub-2/T1.nii.gz'}"]
    assert len(summary["duplicates"]) == 1
    assert (summary["images"], summary["subjects"], summary["modalities"]) == (3, 3, {"T1w": 3})
    assert summary["bytes"] == sum(path.stat().st_size for path in tmp_path.rglob("*.gz"))


def test_figures() -> None:
    assert spread([]) is None
    assert spread([(1, 9), (3, 5), (2, 7)]) == {"smallest": [1, 5], "middle": [2, 7], "largest": [3, 9]}
