from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from viewalign.data.geometry import resample, resampled_geometry, resampled_shape
from viewalign.data.image_fingerprint import (
    Fingerprint,
    fingerprint_of,
    fingerprint_text,
    parse_fingerprint,
    similarity,
)
from viewalign.data.readers.files import Volume, voxel_to_world


@lru_cache
def head(seed: int) -> Volume:
    """A bright ellipsoid of 130×175×150 mm with random structures, in voxels of 3 mm."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[-27:27, -33:33, -30:30].astype(np.float32)
    inside = (z / 21) ** 2 + (y / 29) ** 2 + (x / 25) ** 2 < 1
    array = inside * np.float32(0.5)
    for centre, radius, value in zip(
        rng.uniform(-20, 20, (40, 3)), rng.uniform(3, 7, 40), rng.uniform(-0.4, 0.5, 40), strict=True
    ):
        array += np.where((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2, value, 0)
    array = np.clip(array, 0.05, None) * inside + rng.uniform(0, 0.02, array.shape)
    return Volume((1000 * array).astype(np.float32), (3.0, 3.0, 3.0), (-90.0, -100.0, -80.0), np.eye(3))


def fingerprint(volume: Volume) -> Fingerprint:
    return fingerprint_of(volume.array, voxel_to_world(volume.spacing, volume.origin, volume.direction))


@pytest.mark.parametrize(
    ("longest", "length"), [(150.0, 96), (128.0, 96), (127.0, 48), (64.0, 48), (63.0, 24), (8.0, 24)]
)
def test_the_torus_has_a_length_for_each_size_of_images(longest: float, length: int) -> None:
    """It is stored with each fingerprint; those of other lengths are not compared."""
    array = np.random.default_rng(0).normal(size=(8, 10, 16)).astype(np.float32)
    assert fingerprint_of(array, np.diag([1.0, 1.0, longest / 16, 1.0]))[0] == length


def recoded(volume: Volume) -> Volume:
    return replace(volume, array=np.rint(volume.array * 0.21 + 17).astype(np.int16).astype(np.float32))


def resampled(volume: Volume) -> Volume:
    shape = resampled_shape(volume.array.shape, volume.spacing, (5.0, 2.5, 2.0))
    spacing, origin = resampled_geometry(volume.array.shape, volume.spacing, volume.origin, volume.direction, shape)
    return Volume(resample(volume.array, shape, "linear"), spacing, origin, volume.direction)


def shifted(volume: Volume) -> Volume:
    """Padded, and with an origin that has nothing to do with the former."""
    return replace(volume, array=np.pad(volume.array, ((3, 0), (9, 4), (0, 7))), origin=(3.3, 71.0, -12.5))


def turned(volume: Volume) -> Volume:
    """The same positions with other axes: stored as (W, D, H), two of them reversed."""
    array = volume.array.transpose(2, 0, 1)[::-1, :, ::-1]
    matrix = voxel_to_world(volume.spacing, volume.origin, volume.direction)
    _, h, w = volume.array.shape
    x, y, z = (float(value) for value in (matrix @ [0, h - 1, w - 1, 1])[:3])
    direction = np.zeros((3, 3))  # columns: the world directions of the last, middle and first axis of the array
    direction[1, 0], direction[2, 1], direction[0, 2] = -1, 1, -1
    return Volume(np.ascontiguousarray(array), volume.spacing, (x, y, z), direction)


def defaced(volume: Volume) -> Volume:
    array = volume.array.copy()
    z, y, _ = np.ogrid[:54, :66, :60]
    array[np.broadcast_to(y / 66 + z / 54 < 0.45, array.shape)] = 0
    return replace(volume, array=array)


@pytest.mark.parametrize("change", [recoded, resampled, shifted, turned, defaced])
def test_copies_have_a_similarity_of_at_least_nine_tenths(change: Callable[[Volume], Volume]) -> None:
    volume = head(0)
    assert similarity(fingerprint(volume), fingerprint(change(volume))) > 0.9
    assert similarity(fingerprint(head(1)), fingerprint(change(volume))) < 0.8


def test_axes_and_number_types_do_not_change_it() -> None:
    volume = head(2)
    own = fingerprint(volume)
    assert np.abs(fingerprint(turned(volume)).astype(int) - own).max() <= 1
    doubled = replace(volume, array=2 * volume.array + 5)
    assert np.abs(fingerprint(doubled).astype(int) - own).max() <= 1


def test_the_similarity_is_the_largest_cross_correlation() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-127, 128, 343).reshape(7, 7, 7) for _ in range(2))
    pair = [np.concatenate([[96], each.ravel()]).astype(np.int8) for each in (a, b)]
    shifts = np.ndindex(7, 7, 7)
    plain = max(float((a * np.roll(b, shift, axis=(0, 1, 2))).sum()) for shift in shifts)
    norm = np.sqrt(float((a**2).sum()) * float((b**2).sum()))
    assert plain / norm - 1e-9 <= similarity(*pair) <= plain / norm + 0.1  # shifts of quarter cells are tried too
    assert similarity(pair[0], pair[0]) == pytest.approx(1)
    assert similarity(pair[0], np.concatenate([[48], pair[1][1:]]).astype(np.int8)) == 0


def test_small_images_use_a_smaller_torus() -> None:
    volume = head(4)
    lengths = [fingerprint(replace(volume, spacing=(size,) * 3))[0] for size in (3.0, 1.2, 0.6)]
    assert lengths == [96, 48, 24]


def test_images_without_contrast_match_nothing() -> None:
    flat = replace(head(0), array=np.ones((54, 66, 60), dtype=np.float32))
    assert not fingerprint(flat)[1:].any()
    assert similarity(fingerprint(flat), fingerprint(flat)) == 0


def test_text_and_back() -> None:
    own = fingerprint(head(0))
    assert np.array_equal(parse_fingerprint(fingerprint_text(own)), own)
    assert len(fingerprint_text(own)) == 460
    assert all(parse_fingerprint(text).size == 0 for text in ("", "no base64!", fingerprint_text(own[:-1])))
