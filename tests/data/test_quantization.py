from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.quantization import dequantize, quantize
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store
from viewalign.errors import ExcludedImageError


def voxels(scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(6, 7, 8)) * scale).astype(np.float32)


def test_int16_is_off_by_at_most_half_a_step() -> None:
    array = voxels()
    packed, packing = quantize(array, "int16")
    assert packed.dtype == np.int16
    back = dequantize(packed[None], np.float32([packing.scale]), np.float32([packing.offset]))[0]
    assert np.abs(back - array).max() == pytest.approx(packing.largest_error)
    assert packing.largest_error <= 0.51 * (array.max() - array.min()) / 65534
    assert packing.rms_error == pytest.approx(np.sqrt(np.mean((back - array) ** 2.0)), rel=1e-4)


def test_whole_numbers_stay_as_they_are() -> None:
    array = np.rint(voxels(500)).astype(np.float32)
    packed, packing = quantize(array, "int16")
    np.testing.assert_array_equal(packed, array)
    assert (packing.scale, packing.offset, packing.largest_error) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("ends", [(-40_000, 100), (-100, 40_000), (-32_767, 32_767), (-32_768, 0), (0, 32_768)])
def test_whole_numbers_beyond_int16_are_scaled(ends: tuple[int, int]) -> None:
    array = np.rint(np.linspace(*ends, 6 * 7 * 8)).reshape(6, 7, 8).astype(np.float32)
    packed, packing = quantize(array, "int16")
    back = dequantize(packed[None], np.float32([packing.scale]), np.float32([packing.offset]))[0]
    step = 1.0 if max(map(abs, ends)) <= 32_767 else (ends[1] - ends[0]) / 65_534
    assert packing.scale == pytest.approx(step)
    assert np.abs(back - array).max() <= (0 if step == 1.0 else 0.51 * step)


@pytest.mark.parametrize(
    "ends", [(1e6, 1e6 + 500.0625), (1e6, 1e6 + 500.1875), (-1e6 - 500.1875, -1e6), (3e7, 3e7 + 502)]
)
def test_values_far_from_zero_do_not_wrap_around_in_int16(ends: tuple[float, float]) -> None:
    """The middle of each range lies between two numbers of float32."""
    array = np.linspace(*ends, 512).reshape(8, 8, 8).astype(np.float32)
    packed, packing = quantize(array, "int16")
    back = dequantize(packed[None], np.float32([packing.scale]), np.float32([packing.offset]))[0]
    assert np.abs(back - array).max() == packing.largest_error <= max(packing.scale, np.spacing(np.abs(array).max()))


def test_values_that_int16_would_return_as_infinity_are_a_reason() -> None:
    array = voxels()
    array[0, 0, 0], array[5, 6, 7] = np.finfo(np.float32).max, np.finfo(np.float32).min
    with pytest.raises(ExcludedImageError, match="int16"):
        quantize(array, "int16")


def test_float16_states_its_error() -> None:
    array = voxels()
    packed, packing = quantize(array, "float16")
    assert packing.largest_error == np.abs(packed.astype(np.float32) - array).max() > 0
    with pytest.raises(ExcludedImageError, match="float16"):
        quantize(voxels(1e6), "float16")


@pytest.mark.parametrize(("dtype", "error"), [("int16", 2e-4), ("float16", 3e-3)])
def test_a_store_reads_back_what_was_prepared(tmp_path: Path, write_image, make_head, dtype: str, error: float) -> None:
    for n in range(2):
        write_image(tmp_path / "scans" / f"scan{n}.nii.gz", make_head(n))
    records = list(index_sources([str(tmp_path / "scans")]).collection.records())
    for kind in ("float32", dtype):
        prepare_records(records, tmp_path / kind, PrepareSettings(dtype=kind), workers=0)
    exact, packed = Store.open(tmp_path / "float32"), Store.open(tmp_path / dtype)
    for k in range(2):
        whole = packed.read(k)
        assert whole.dtype == np.float32
        assert 0 < np.abs(whole - exact.read(k)).max() < error
        np.testing.assert_array_equal(packed.read(k, (2, 3, 4), (9, 9, 9)), whole[:, 2:9, 3:9, 4:9])
        assert packed.foreground_threshold(k) == exact.foreground_threshold(k)
    told = json.loads((tmp_path / dtype / "report.json").read_text())["storage"]
    assert told["dtype"] == dtype
    worst = max(np.abs(packed.read(k) - exact.read(k)).max() for k in range(2))
    assert told["largest_error"] == pytest.approx(worst, rel=1e-3)
    assert 0 < told["rms_error"] < told["largest_error"]
