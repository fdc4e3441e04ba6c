"""Preprocessing of cases: as in pretraining, for every channel and orientation, with an exact window."""

import json
from dataclasses import replace
from itertools import permutations, product

import blosc2
import numpy as np
import pytest

from viewalign.data.preprocessing import prepare_volume
from viewalign.data.readers.files import read_volume
from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.tasks.preprocessing import Preprocessor, window
from viewalign.tasks.spec import ChannelSpec

T1 = (ChannelSpec(name="t1"),)
TWO = (ChannelSpec(name="t1"), ChannelSpec(name="swi", aliases=("t2s",), optional=True))


def test_a_case_is_prepared_as_pretraining_prepares_it(tmp_path, write_image, head):
    file = write_image(tmp_path / "a.nii.gz", head(1), (0.8, 1.1, 2.0))
    settings = PrepareSettings(spacing=(1.0, 1.0, 1.0))
    stored = prepare_volume(read_volume(file), settings).array
    sample = Preprocessor(T1, stored.shape, settings)({"t1": file})
    np.testing.assert_array_equal(sample.image[0], stored)
    assert sample.valid.all()


def test_all_48_orientations_give_one_tensor(tmp_path, write_image, head):
    array = head(2, (12, 14, 16))
    array[:6] *= 1.5
    array[:, :5] *= 1.2
    array[:, :, :4] *= 1.3
    prepare = Preprocessor(T1, (12, 16, 16), PrepareSettings(spacing=None))
    base = prepare({"t1": write_image(tmp_path / "base.nii.gz", array)})
    for number, (axes, flips) in enumerate(product(permutations(range(3)), product((False, True), repeat=3))):
        turned = np.flip(np.transpose(array, axes), [k for k in range(3) if flips[k]])
        # column i of the direction belongs to x, y, z; array axis a is index axis 2 - a
        direction = np.zeros((3, 3))
        for a in range(3):
            direction[2 - axes[a], 2 - a] = -1.0 if flips[a] else 1.0
        file = write_image(tmp_path / f"{number}.nii.gz", np.ascontiguousarray(turned), direction=direction)
        np.testing.assert_array_equal(prepare({"t1": file}).image, base.image)


def test_the_statistics_of_a_mask_are_those_inside_it(tmp_path, write_image, head):
    array = head(3) + 7.0
    mask = np.zeros(array.shape, np.uint8)
    mask[5:15, 6:16, 4:14] = 1
    files = {"t1": write_image(tmp_path / "a.nii.gz", array)}
    region = write_image(tmp_path / "m.nii.gz", mask)
    settings = PrepareSettings(spacing=None, normalise="foreground")
    sample = Preprocessor(T1, (10, 10, 10), settings, strip=True)(files, region)
    assert abs(float(sample.image.mean())) < 1e-5
    assert abs(float(sample.image.std()) - 1) < 1e-4
    with pytest.raises(UserError, match="mask"):
        Preprocessor(T1, (10, 10, 10), settings, strip=True)(files)


def test_the_window_is_centred_on_the_mask(tmp_path, write_image):
    array = np.arange(20 * 20 * 20, dtype=np.float32).reshape(20, 20, 20) + 1
    mask = np.zeros(array.shape, np.uint8)
    mask[12:16, 2:6, 8:12] = 1
    files = {"t1": write_image(tmp_path / "a.nii.gz", array)}
    prepare = Preprocessor(T1, (4, 4, 4), PrepareSettings(spacing=None, normalise="none"))
    sample = prepare(files, write_image(tmp_path / "m.nii.gz", mask))
    np.testing.assert_array_equal(sample.image[0], array[12:16, 2:6, 8:12])
    np.testing.assert_array_equal(prepare(files).image[0], array[8:12, 8:12, 8:12])


def test_voxels_outside_the_volume_are_not_valid(tmp_path, write_image, head):
    file = write_image(tmp_path / "a.nii.gz", head())
    settings = PrepareSettings(spacing=None)
    cropped = prepare_volume(read_volume(file), settings).array.shape
    sample = Preprocessor(T1, (32, 8, 18), settings)({"t1": file})
    inside = [int(sample.valid[0].any(axis=tuple({0, 1, 2} - {k})).sum()) for k in range(3)]
    assert inside == [n if n < side else side for n, side in zip(cropped, (32, 8, 18), strict=True)]
    assert inside[0] < 32
    assert inside[1] == 8
    assert not sample.image[:, ~sample.valid[0]].any()


def test_windows_against_a_plain_loop():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(2, 5, 6, 7))
    for starts, size in (((-2, 1, 3), (4, 9, 2)), ((6, 0, 0), (2, 2, 2)), ((0, 0, 0), (5, 6, 7))):
        out = window(array, starts, size)
        for index in product(*(range(n) for n in size)):
            at = tuple(i + s for i, s in zip(index, starts, strict=True))
            inside = all(0 <= i < n for i, n in zip(at, array.shape[1:], strict=True))
            np.testing.assert_array_equal(out[(slice(None), *index)], array[(slice(None), *at)] if inside else 0)


def test_missing_channels_are_zero_and_aliases_replace_them(tmp_path, write_image, head):
    a, b = write_image(tmp_path / "a.nii.gz", head(1)), write_image(tmp_path / "b.nii.gz", head(2))
    prepare = Preprocessor(TWO, (16, 16, 16), PrepareSettings(spacing=None))
    alone, alias, both = prepare({"t1": a}), prepare({"t1": a, "t2s": b}), prepare({"t1": a, "swi": a, "t2s": b})
    assert alone.present.tolist() == [True, False]
    assert not alone.image[1].any()
    assert alias.image[1].any()
    np.testing.assert_array_equal(both.image[0], both.image[1])
    with pytest.raises(UserError, match="channel t1"):
        prepare({"swi": b})


def test_the_order_of_files_does_not_matter_and_the_box_is_of_all_channels(tmp_path, write_image, head):
    small, large = head(1), head(2)
    small[:8] = 0
    a, b = write_image(tmp_path / "a.nii.gz", small), write_image(tmp_path / "b.nii.gz", large)
    prepare = Preprocessor(TWO, (24, 24, 24), PrepareSettings(spacing=None))
    first, second = prepare({"t1": a, "swi": b}), prepare({"swi": b, "t1": a})
    np.testing.assert_array_equal(first.image, second.image)
    assert first.valid[0].any(axis=(1, 2)).sum() == 16


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shape": (20, 22, 16)}, "20×22×16 voxels instead of 20×22×18"),
        ({"spacing": (1.0, 1.0, 1.5)}, "another voxel size"),
        ({"origin": (5.0, 0.0, 0.0)}, "5.0 mm"),
        ({"direction": np.diag([-1.0, 1.0, 1.0])}, "another direction"),
    ],
)
def test_channels_on_another_grid_are_rejected_or_resampled(tmp_path, change, told, write_image, head):
    a = write_image(tmp_path / "a.nii.gz", head(1))
    shape = change.pop("shape", (20, 22, 18))
    b = write_image(tmp_path / "b.nii.gz", head(2, shape), **change)
    with pytest.raises(UserError) as problem:
        Preprocessor(TWO, (16, 16, 16))({"t1": a, "swi": b})
    assert told in str(problem.value)
    assert "b.nii.gz is on another voxel grid than t1" in str(problem.value)
    if "direction" not in change:
        sample = Preprocessor(TWO, (16, 16, 16), frames="resample")({"t1": a, "swi": b})
        assert sample.image[1].any()


def test_resampling_keeps_world_coordinates(tmp_path, write_image):
    z = np.broadcast_to(np.arange(1, 21, dtype=np.float32)[:, None, None], (20, 20, 20))
    a = write_image(tmp_path / "a.nii.gz", z)
    b = write_image(tmp_path / "b.nii.gz", z[4:16, ::2, ::2], (2.0, 2.0, 1.0), (0.0, 0.0, 4.0))
    settings = PrepareSettings(spacing=None, normalise="none")
    sample = Preprocessor(TWO, (8, 8, 8), settings, frames="resample")({"t1": a, "swi": b})
    np.testing.assert_allclose(sample.image[0], sample.image[1], atol=1e-4)


def test_whole_numbers_are_resampled_as_floats(tmp_path, write_image, head):
    array = head(4).round()
    a = write_image(tmp_path / "a.nii.gz", array.astype(np.int16), (1.0, 1.0, 1.6))
    b = write_image(tmp_path / "b.nii.gz", array, (1.0, 1.0, 1.6))
    prepare = Preprocessor(T1, (32, 20, 16))
    np.testing.assert_array_equal(prepare({"t1": a}).image, prepare({"t1": b}).image)


def test_prepared_arrays_are_read_unchanged(tmp_path):
    array = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    blosc2.asarray(array, urlpath=str(tmp_path / "a_0000.b2nd"))
    sample = Preprocessor(T1, (8, 8, 8), PrepareSettings(normalise="none"))({"t1": tmp_path / "a_0000.b2nd"})
    np.testing.assert_array_equal(sample.image, array)


def test_a_preprocessor_is_plain_data(tmp_path):
    one = Preprocessor(TWO, (16, 16, 24), PrepareSettings(spacing=(1.0, 1.0, 2.0)), frames="resample")
    again = Preprocessor.from_json(json.loads(json.dumps(one.as_json())))
    assert again == one
    assert again.fingerprint() == one.fingerprint() != replace(one, size=(16, 16, 16)).fingerprint()
    with pytest.raises(UserError, match="version 9"):
        Preprocessor.from_json({**one.as_json(), "version": 9})


def test_unusable_files_are_named(tmp_path, write_image):
    flat = write_image(tmp_path / "flat.nii.gz", np.full((8, 8, 8), 3.0, np.float32))
    with pytest.raises(UserError, match=r"flat\.nii\.gz.*constant"):
        Preprocessor(T1, (8, 8, 8))({"t1": flat})
    with pytest.raises(UserError, match=r"gone\.nii\.gz"):
        Preprocessor(T1, (8, 8, 8))({"t1": tmp_path / "gone.nii.gz"})
