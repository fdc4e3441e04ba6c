"""Stored arrays that are not as they were written are seen before they are used."""

import json
import multiprocessing
import pickle

import numpy as np
import pytest

from viewalign.data.layout import beside, compress
from viewalign.data.store import Store, store_from_arrays
from viewalign.data.verification import CheckedImages, image_damage, verify_store
from viewalign.errors import ExcludedImageError, UserError


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(20, 22, 24)).astype(np.float32) for name in "abc"}
    return store_from_arrays(tmp_path / "s", arrays, masks={"b": {"anatomy": arrays["b"] > 0}})


def array_of(store, k, suffix=".b2nd"):
    return beside(store.path, store._paths[k], suffix)


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_every_single_flipped_bit_of_200_is_seen(store):
    rng, path = np.random.default_rng(1), array_of(store, 0)
    mark, whole = path.with_suffix(".json"), path.read_bytes()
    for place, bit in zip(rng.integers(0, len(whole), 200), rng.integers(0, 8, 200), strict=True):
        flip(path, int(place), int(bit))
        ((found, reason),) = image_damage(mark)
        assert found == path
        assert "its checksum is" in reason
        path.write_bytes(whole)
    assert image_damage(mark) == []


@pytest.mark.parametrize("suffix", [".b2nd", ".anatomy.b2nd"])
def test_an_image_is_checked_before_it_is_read_and_stays_rejected(store, suffix):
    flip(array_of(store, 1, suffix), -40, 2)
    for _ in range(2):
        with pytest.raises(ExcludedImageError, match=r"cannot be used.*checksum"):
            store.read(1, (0, 0, 0), (4, 4, 4))
    store.read(0)


def test_an_image_is_checked_once_for_all_processes(store, monkeypatch):
    reader = multiprocessing.get_context("fork").Process(target=store.read, args=(2,))
    reader.start()
    reader.join()
    assert 2 in store._checked
    assert 0 not in store._checked
    monkeypatch.setattr(store, "_check", lambda k: pytest.fail(f"image {k} is checked again"))
    store.read(2, (0, 0, 0), (1, 1, 1))
    copy = pickle.loads(pickle.dumps(CheckedImages(3)))
    assert all(k not in copy for k in range(3))


def test_a_store_is_verified_as_a_whole(store):
    told = []
    assert verify_store(store.path, lambda *counts: told.append(counts)) == (3, [])
    assert told == [(1, 3), (2, 3), (3, 3)]
    flip(array_of(store, 0), 300, 1)
    array_of(store, 1, ".anatomy.b2nd").unlink()
    array_of(store, 2, ".json").write_text("{")
    count, problems = verify_store(store.path)
    assert count == 3
    assert [(path.name, reason.split(":")[0].split(" is ")[0]) for path, reason in problems] == [
        ("a.b2nd", "its checksum"),
        ("b.anatomy.b2nd", "it cannot be read"),
        ("c.json", "it cannot be read"),
    ]


def test_an_array_that_claims_more_than_the_index_is_rejected(store):
    """Few bytes can claim many channels."""
    path = array_of(store, 0)
    content = compress(np.zeros((500, 20, 22, 24), np.uint8))
    path.write_bytes(content)
    mark = path.with_suffix(".json")
    facts = json.loads(mark.read_text())
    mark.write_text(json.dumps({**facts, "files": {".b2nd": len(content)}, "crc32": {}}))
    with pytest.raises(ExcludedImageError, match=r"\(500, 20, 22, 24\).*\(1, "):
        store.read(0)


def test_a_box_larger_than_memory_is_rejected_before_it_is_taken(store, monkeypatch):
    monkeypatch.setattr("viewalign.data.store.memory_bytes", lambda: 8 * 1000)
    monkeypatch.setattr("viewalign.data.store._FITS_ANYWHERE", 100)
    store.read(0, (0, 0, 0), (10, 10, 10))
    with pytest.raises(ExcludedImageError, match=r"1,100 voxels.*1,000"):
        store.read(0, (0, 0, 0), (10, 10, 11))


@pytest.mark.parametrize(
    "odd",
    [
        [1, 2],
        {"id": 3},
        {"id": ["a"]},
        {"shape": [[1, 2], [3], [4]]},
        {"channels": ["x", "y", "z"]},
        {"id": [{}, {}, {}]},
        {"shape": [[10**30] * 3] * 3},
    ],
)
def test_an_odd_index_is_a_sentence(store, odd):
    index = store.path / "index.json"
    columns = json.loads(index.read_text())
    index.write_text(json.dumps(odd if isinstance(odd, list) else {**columns, **odd}))
    with pytest.raises(UserError, match="index"):
        Store.open(store.path)


@pytest.mark.parametrize("odd", [{"version": "two"}, {"version": [1]}, {"recipe": [1]}, {"recipe": "x"}])
def test_an_odd_header_is_a_sentence(store, odd):
    header = store.path / "store.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), **odd}))
    with pytest.raises(UserError, match="damaged"):
        Store.open(store.path)
