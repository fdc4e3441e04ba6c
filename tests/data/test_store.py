from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from viewalign.data.columns import TextColumn
from viewalign.data.layout import safe_name
from viewalign.data.store import Store, store_from_arrays
from viewalign.errors import ExcludedImageError, UserError


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 70, 33)).astype(np.float32)


@pytest.mark.parametrize(
    ("start", "stop"),
    [((0, 0, 0), (40, 70, 33)), ((3, 5, 7), (4, 6, 8)), ((31, 60, 1), (40, 70, 33)), ((10, 0, 16), (37, 70, 30))],
)
def test_a_box_is_a_slice_of_the_whole(tmp_path: Path, volume: np.ndarray, start, stop) -> None:
    store = store_from_arrays(tmp_path / "s", {"a": volume})
    box = store.read(0, start, stop)
    assert box.dtype == np.float32
    np.testing.assert_array_equal(box[0], volume[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))])
    np.testing.assert_array_equal(store.read(0)[0], volume)


def test_channels_are_kept(tmp_path: Path) -> None:
    coordinates = np.stack(np.meshgrid(*(np.arange(n) for n in (9, 10, 11)), indexing="ij")).astype(np.float32)
    store = store_from_arrays(tmp_path / "s", {"a": coordinates})
    np.testing.assert_array_equal(store.read(0, (1, 2, 3), (5, 6, 7)), coordinates[:, 1:5, 2:6, 3:7])
    assert store.shape(0) == (9, 10, 11)


def test_columns(tmp_path: Path, volume: np.ndarray) -> None:
    store = store_from_arrays(tmp_path / "s", {"b": volume, "a": volume[:20]}, spacing=(2.0, 1.0, 0.5))
    assert len(store) == 2
    assert list(store.ids) == ["arrays__arrays__a__ses-DEFAULT__a", "arrays__arrays__b__ses-DEFAULT__b"]
    assert list(store.subjects) == ["arrays__arrays__a", "arrays__arrays__b"]
    assert [store.shape(0), store.shape(1)] == [(20, 70, 33), (40, 70, 33)]
    assert store.spacing(0) == (2.0, 1.0, 0.5)
    assert store.foreground_threshold(1) == pytest.approx(float(volume.mean()), rel=1e-5)
    assert store.properties(1)["shape"] == [40, 70, 33]


def test_masks(tmp_path: Path, volume: np.ndarray) -> None:
    mask = volume > 0.5
    store = store_from_arrays(tmp_path / "s", {"a": volume, "b": volume}, masks={"a": {"anatomy": mask}})
    np.testing.assert_array_equal(store.read_mask(0, "anatomy", (1, 2, 3), (9, 9, 9)), mask[1:9, 2:9, 3:9])
    assert store.read_mask(0, "anonymisation") is None
    assert store.read_mask(1, "anatomy") is None


@pytest.mark.parametrize("box", [((-1, 0, 0), (5, 5, 5)), ((0, 0, 0), (41, 5, 5)), ((5, 5, 5), (5, 6, 6))])
def test_a_box_outside_is_an_error(tmp_path: Path, volume: np.ndarray, box) -> None:
    store = store_from_arrays(tmp_path / "s", {"a": volume})
    with pytest.raises(ValueError, match="outside"):
        store.read(0, *box)


def test_missing_and_damaged_arrays_are_rejected(tmp_path: Path, volume: np.ndarray) -> None:
    store = store_from_arrays(tmp_path / "s", dict.fromkeys("abc", volume))
    paths = sorted((tmp_path / "s").rglob("*.b2nd"))
    paths[0].unlink()
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: len(content) // 2])
    damaged = bytearray(content)
    for n in range(len(damaged) // 4, len(damaged) // 2):
        damaged[n] = 0x55
    paths[2].write_bytes(damaged)
    for k in range(3):
        with pytest.raises(ExcludedImageError, match=r"damaged|checksum"):
            store.read(k)


def test_a_store_travels_to_workers(tmp_path: Path, volume: np.ndarray) -> None:
    store = pickle.loads(pickle.dumps(store_from_arrays(tmp_path / "s", {"a": volume})))
    np.testing.assert_array_equal(store.read(0)[0], volume)


def test_a_folder_without_a_store_is_reported(tmp_path: Path, volume: np.ndarray) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        Store.open(tmp_path)
    store_from_arrays(tmp_path / "s", {"a": volume})
    header = tmp_path / "s" / "store.json"
    good = json.loads(header.read_text())
    header.write_text(json.dumps({**good, "version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Store.open(tmp_path / "s")
    header.write_text("{")
    with pytest.raises(UserError, match=r"store\.json"):
        Store.open(tmp_path / "s")
    header.write_text(json.dumps(good))
    (tmp_path / "s" / "index.json").unlink()
    with pytest.raises(UserError, match="finished"):
        Store.open(tmp_path / "s")


def test_names_are_safe_and_stay_apart() -> None:
    names = [
        "plain-1.a_b",
        "a b",
        "a_b",
        "../../etc/passwd",
        "..",
        ".hidden",
        "ü",
        "x\ny",
        "a/b",
        "",
        "t.anatomy",
        "n" * 300,
    ]
    made = [safe_name(name) for name in names]
    assert made[0] == names[0]
    assert len(set(made)) == len(names)
    assert not any("/" in name or name.startswith(".") or len(name) > 120 for name in made)


def test_a_text_column_is_a_sequence() -> None:
    column = TextColumn(["a", "", "häß", "z"])
    assert list(column) == ["a", "", "häß", "z"]
    assert column[-1] == "z"
    assert column[1:3] == ["", "häß"]
    with pytest.raises(IndexError):
        column[4]


def test_only_the_blocks_of_a_box_are_unpacked(tmp_path: Path) -> None:
    """One chunk of 64 blocks, of which a late one is damaged: a box that touches only others reads as ever."""
    array = np.random.default_rng(0).integers(0, 4, (64, 64, 64)).astype(np.float32)
    store = store_from_arrays(tmp_path, {"a": array})
    store.read(0, (0, 0, 0), (1, 1, 1))  # the whole file is compared with its checksum before the first read alone
    path = next(tmp_path.rglob("*.b2nd"))
    content = bytearray(path.read_bytes())
    place = int(0.8 * len(content))
    content[place : place + 2000] = bytes(2000)
    path.write_bytes(content)
    np.testing.assert_array_equal(store.read(0, (0, 0, 0), (32, 32, 32))[0], array[:32, :32, :32])
    with pytest.raises(ExcludedImageError, match="cannot be read"):
        store.read(0)
