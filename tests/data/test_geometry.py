from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from viewalign.data.geometry import orientation_code, reorientation_to_lps
from viewalign.data.preprocessing import prepare_volume
from viewalign.data.readers.files import Volume, read_volume, voxel_to_world
from viewalign.data.readers.itk import sitk
from viewalign.data.settings import PrepareSettings

AS_IS = PrepareSettings(spacing=None, normalise="none")
SIGNED_PERMUTATIONS = [
    np.eye(3)[:, list(order)] * np.array(signs)
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def world_of_all(properties: dict) -> np.ndarray:
    """World coordinates (x, y, z) of every stored voxel, (D, H, W, 3)."""
    matrix = voxel_to_world(properties["spacing"], properties["origin"], np.array(properties["direction"]))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in properties["shape"]), indexing="ij"), axis=-1)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def ramp(world: np.ndarray) -> np.ndarray:
    return 500 + world @ np.array([1.0, 7.0, 31.0])


def ramp_volume(shape, spacing, origin, direction) -> Volume:
    """A volume whose value is a linear function of the place in the world; loops kept plain on purpose."""
    array = np.empty(shape, dtype=np.float32)
    for k, j, i in np.ndindex(*shape):
        place = np.array(origin) + direction @ (np.array(spacing[::-1]) * (i, j, k))
        array[k, j, i] = ramp(place)
    return Volume(array, spacing, origin, direction)


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS, ids=orientation_code)
def test_every_orientation_lands_in_lps(direction: np.ndarray, tmp_path: Path, write_image) -> None:
    made = ramp_volume((3, 4, 5), (2.5, 1.5, 1.0), (3.0, -4.0, 5.0), direction)
    path = write_image(tmp_path / "a.nii.gz", made.array, (1.0, 1.5, 2.5), made.origin, direction)
    prepared = prepare_volume(read_volume(path), AS_IS)
    stored = prepared.properties
    np.testing.assert_allclose(prepared.array, ramp(world_of_all(stored)), atol=1e-2)
    np.testing.assert_allclose(stored["direction"], np.eye(3), atol=1e-6)
    turned = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    np.testing.assert_array_equal(prepared.array, sitk.GetArrayFromImage(turned))
    np.testing.assert_allclose(stored["origin"], turned.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(stored["spacing"][::-1], turned.GetSpacing(), atol=1e-6)


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS, ids=orientation_code)
def test_invert_gives_the_file_back(direction: np.ndarray) -> None:
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    turn = reorientation_to_lps(direction)
    np.testing.assert_array_equal(turn.invert(turn.apply(array)), array)


def test_code_of_a_right_anterior_superior_image() -> None:
    assert orientation_code(np.diag([-1.0, -1.0, 1.0])) == "RAS"
    assert orientation_code(np.eye(3)) == "LPS"


def test_an_oblique_image_stays_oblique() -> None:
    c, s = np.cos(0.4), np.sin(0.4)
    direction = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.diag([-1.0, 1.0, 1.0])
    volume = ramp_volume((5, 6, 7), (2.0, 1.0, 1.0), (1.0, 2.0, 3.0), direction)
    prepared = prepare_volume(volume, AS_IS)
    np.testing.assert_allclose(prepared.array, ramp(world_of_all(prepared.properties)), atol=1e-2)
    assert prepared.properties["flips"] == [False, False, True]
