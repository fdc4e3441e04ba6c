"""The page's parts: geometry against plain values, PNG read back, wording."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from viewalign.reports.page import data_url, number, percent, score, values_without_paths, without_paths
from viewalign.reports.pictures import area, shaded, window
from viewalign.reports.planes import PLANES, around, corners, cut, flat, scene, section

AXIAL, CORONAL, _ = PLANES


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (9, 4, 3)])
def test_png_is_read_back(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    head, _, data = data_url(pixels).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)


def test_scores_have_three_decimals_or_three_digits():
    assert [score(value) for value in (0.5437, -0.002, 9.9994, 375.056, 3296.4)] == [
        "0.544",
        "-0.002",
        "9.999",
        "375",
        "3,296",
    ]
    assert [score(value) for value in (9.9996, 999.7)] == ["10", "1,000"]
    assert [score(value, "+") for value in (0.0437, -0.1, 12.34)] == ["+0.044", "-0.100", "+12.3"]


def test_section_of_a_straight_box():
    box = corners(np.array([-0.5, -0.5, 1.5]), np.array([3.5, 7.5, 5.5]))
    cutting = section(box, 0, 1.0)
    assert len(cutting) == 4
    assert {tuple(p) for p in cutting} == {(1.0, h, w) for h in (-0.5, 7.5) for w in (1.5, 5.5)}
    sides = np.linalg.norm(cutting - np.roll(cutting, 1, 0), axis=1)
    assert sorted(sides) == [4, 4, 8, 8], "vertices go round, not across"
    assert len(section(box, 0, 9.0)) == 0


def test_section_of_a_cube_across_its_diagonal_is_a_hexagon():
    cube = corners(np.full(3, -1.0), np.full(3, 1.0))
    z = np.ones(3) / np.sqrt(3)
    x = np.array([1, -1, 0]) / np.sqrt(2)
    turned = cube @ np.stack([z, x, np.cross(z, x)]).T
    cutting = section(turned, 0, 0.0)
    assert np.allclose(np.linalg.norm(cutting, axis=1), np.sqrt(2))
    assert len(cutting) == 6


def test_slices_and_points_agree():
    volume = np.zeros((4, 5, 6))
    volume[1, 2, 3] = 1
    for plane in PLANES:
        picture = cut(volume, plane, (1, 2, 3)[plane.axis])
        x, y = flat(np.array([[1.0, 2.0, 3.0]]), plane, volume.shape)[0]
        assert picture[int(y), int(x)] == 1
    assert np.array_equal(cut(volume, AXIAL, 1), volume[1])
    assert np.array_equal(cut(volume, CORONAL, 2), volume[::-1, 2]), "the head is up"


def test_scene_of_shifted_views():
    shift = np.array([4, -3, 0])
    maps = np.stack([np.column_stack([np.eye(3), s]) for s in ([5, 5, 5], 5 + shift)])
    found = scene(maps, (16, 16, 16), np.zeros((2, 8, 3)))
    assert np.allclose(found.common_in(0).min(0), [3.5, -0.5, -0.5])
    assert np.allclose(found.common_in(0).max(0), [15.5, 12.5, 15.5])
    assert np.allclose(found.common_in(1).max(0), [11.5, 15.5, 15.5])
    assert np.allclose(found.box_in_volume(0).min(0), 4.5)


def test_lattice_layer_next_to_a_plane():
    at = np.array([1.5, 5.5, 9.5, 13.5])
    points = np.stack(np.meshgrid(at, at, at, indexing="ij"), -1).reshape(1, -1, 3).repeat(2, 0)
    maps = np.stack([np.column_stack([np.eye(3), np.zeros(3)])] * 2)
    near = scene(maps, (16, 16, 16), points).near(0, AXIAL, 6)
    assert set(near[:, 0]) == {5.5}
    assert len(near) == 16


def test_crop_is_widened_to_hold_boxes_that_leave_the_volume():
    crop, outside, moved = around(np.ones((4, 4, 4), np.float32), np.array([[-2.5, -0.5, 0], [3.5, 3.5, 6.5]]))
    assert crop.shape == (6, 4, 7)
    assert moved.tolist() == [2, 0, 0]
    assert outside.sum() == crop.size - 64
    same, outside, _ = around(np.ones((4, 4, 4), np.float32), np.array([[-0.5] * 3, [3.5] * 3]))
    assert same.shape == (4, 4, 4)
    assert not outside.any()


def test_area_joins_rows():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:5] = True
    assert 'd="M2 1H5V4H2Z"' in area("masked", mask)
    assert area("masked", np.zeros((3, 3), bool)) == ""


def test_a_bright_skull_leaves_the_brain_visible():
    rng = np.random.default_rng(0)
    image = np.zeros((40, 40, 40), np.float32)
    image[4:36, 4:36, 4:36] = 400 + 20 * rng.normal(size=(32, 32, 32))  # fat and skull
    image[6:34, 6:34, 6:34] = 80 + 10 * rng.normal(size=(28, 28, 28))
    low, high = window(image)
    brain = shaded(image, (low, high))[10:30, 10:30, 10:30]
    assert 100 < brain.mean() < 220
    assert shaded(image, (low, high))[4, 4, 4] == 255
    assert shaded(image, (low, high))[0, 0, 0] == 0


def test_greys():
    assert window(np.array([np.nan])) == (0.0, 1.0)
    assert window(np.full(9, 2.0)) == (2.0, 3.0)
    assert shaded(np.array([[-1.0, 0.5, 9.0, np.nan]]), (0.0, 1.0)).tolist() == [[0, 128, 255, 0]]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("torn: /home/alice/store/a.b2nd.", "torn: …/a.b2nd."),
        ("[Errno 28] full: '/home/bob smith/run/x'", "[Errno 28] full: '…/x'"),
        (r"C:\Users\eve\run\x.pt is gone", "…/x.pt is gone"),
        ("see ~/data/scans, please", "see …/scans, please"),
        ("loss/consistency and 3/4 of 1 / 2", "loss/consistency and 3/4 of 1 / 2"),
    ],
)
def test_paths_are_shortened(text, shown):
    assert without_paths(text) == shown


def test_paths_with_spaces_are_shortened_where_they_are_known(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna maria")
    assert without_paths("torn: /home/anna maria/scans/x.nii is empty") == "torn: …/x.nii is empty"
    assert without_paths("/home/anna mariana") == "…/anna mariana"
    tree = {"data": {"root": "/data/of anna/store", "kept": [r"C:\Users\eve smith\x", 3, "a/b c"]}, "steps": None}
    told = {"data": {"root": "…/store", "kept": ["…/x", 3, "a/b c"]}, "steps": None}
    assert values_without_paths(tree) == told


def test_numbers():
    assert [number(v) for v in (0, 0.03124, 105.4, 7.63e-6, 2664819, float("nan"), 1e-4)] == [
        "0", "0.0312", "105", "7.6e-6", "2,664,819", "not finite", "1e-4",
    ]  # fmt: skip
    assert [percent(v) for v in (0, 0.004, 0.12, 1)] == ["0 %", "0.4 %", "12 %", "100 %"]
