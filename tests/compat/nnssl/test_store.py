"""Data that nnssl has preprocessed, written here by code, read without opening a pickle."""

import json
import pickle
from pathlib import Path

import blosc2
import numpy as np
import pytest

from viewalign.compat.nnssl.folders import find_dataset
from viewalign.compat.nnssl.store import open_preprocessed
from viewalign.errors import ExcludedImageError, UserError

COLLECTION = "Dataset001_OpenMind"
SUBJECTS = 8


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.ascontiguousarray(array, dtype=np.float32)
    blosc2.asarray(array, urlpath=str(path), mode="w", chunks=array.shape, blocks=(1, 8, 8, 8))


def image_path(folder, k, configuration="onemmiso"):
    return folder / f"nnsslPlans_{configuration}" / COLLECTION / "ds01" / f"sub-{k}" / "ses-DEFAULT" / "t1.b2nd"


def values(k):
    return np.random.default_rng(k).normal(size=(1, 20, 21, 22)).astype(np.float32)


def record(k):
    return {"dataset_index": "ds01", "subject_id": f"sub-{k}", "session_id": "ses-DEFAULT", "name": "t1"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "preprocessed" / "Dataset745_OpenMind"
    for k in range(SUBJECTS):
        save(values(k), image_path(folder, k))
        image_path(folder, k).with_suffix(".pkl").write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    mask = np.zeros((1, 20, 21, 22))
    mask[0, :, :, :6], mask[0, :4] = 1, -1
    save(mask, image_path(folder, 0).with_name("t1__anon.b2nd"))
    spacings = {"onemmiso": [1, 1, 1], "median": [3, 0.5, 0.5], "noresample": None}
    plans = {
        name: {
            "data_identifier": f"nnsslPlans_{name}",
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "spacing": spacing,
        }
        for name, spacing in spacings.items()
    }
    (folder / "nnsslPlans.json").write_text(json.dumps({"configurations": plans}))
    return folder


def test_the_store_has_all_images(folder, tmp_path):
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    assert len(store) == SUBJECTS
    assert store.ids[3] == f"{COLLECTION}__ds01__sub-3__ses-DEFAULT__t1"
    assert store.subjects[3] == f"{COLLECTION}__ds01__sub-3"
    assert (store.shape(3), store.spacing(3), store.foreground_threshold(3)) == ((20, 21, 22), (1, 1, 1), 0.0)
    plans = store.recipe.pop("nnssl_plans")
    assert list(plans["configurations"]) == ["onemmiso"]
    assert store.recipe == {"spacing": [1, 1, 1], "normalise": "zscore", "dtype": "float32"}
    np.testing.assert_array_equal(store.read(3), values(3))
    np.testing.assert_array_equal(store.read(3, (1, 2, 3), (9, 8, 7)), values(3)[:, 1:9, 2:8, 3:7])
    assert store.properties(3)["shape"] == [20, 21, 22]
    assert store.notes == ()
    assert not (tmp_path / "sprung").exists()


def test_inside_a_mask_is_above_zero(folder):
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    hidden = store.read_mask(0, "anonymisation", (2, 0, 0), (8, 21, 22))
    assert hidden.shape == (6, 21, 22)
    assert not hidden[:2].any(), "-1 is the crop's, not the mask's"
    assert hidden[2:, :, :6].all()
    assert not hidden[:, :, 6:].any()
    assert store.read_mask(0, "anatomy", (0, 0, 0), (4, 4, 4)) is None
    assert store.read_mask(1, "anonymisation", (0, 0, 0), (4, 4, 4)) is None


def test_two_masks_have_swapped_names(folder):
    save(np.ones((1, 20, 21, 22)), image_path(folder, 0).with_name("t1__anat.b2nd"))
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    assert len(store) == SUBJECTS
    assert store.read_mask(0, "anonymisation").all()
    assert not store.read_mask(0, "anatomy").all()
    assert "1 image has both masks" in store.notes[0]


def test_valid_imgs_is_respected(folder):
    (folder / "valid_imgs.json").write_text(json.dumps([record(k) for k in range(5)]))
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    assert len(store) == 5
    assert "3 images" in store.notes[0]


def listed(count):
    return {
        "collection_name": COLLECTION,
        "datasets": {
            "ds01": {
                "subjects": {
                    f"sub-{k}": {"sessions": {"ses-DEFAULT": {"images": [{"name": "t1.nii.gz" if k % 2 else "t1"}]}}}
                    for k in range(count)
                }
            }
        },
    }


def test_a_listed_image_that_is_not_there_is_reported(folder):
    path = folder / "pretrain_data__onemmiso.json"
    path.write_text(json.dumps(listed(SUBJECTS)))
    assert not [note for note in open_preprocessed(folder, "nnsslPlans", "onemmiso").notes if path.name in note]
    path.write_text(json.dumps(listed(SUBJECTS + 2)))
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    assert len(store) == SUBJECTS
    told = f"2 of the {SUBJECTS + 2} images in pretrain_data__onemmiso.json are missing"
    assert any(told in note and "ds01/sub-8/ses-DEFAULT/t1" in note for note in store.notes)
    path.write_text("[]")
    notes = open_preprocessed(folder, "nnsslPlans", "onemmiso").notes
    assert any("pretrain_data__onemmiso.json is invalid" in note for note in notes)


@pytest.mark.parametrize("content", ["[{}]", "{", "[]", '[{"dataset_index": 1, "subject_id": 1, "session_id": 1}]'])
def test_an_invalid_valid_imgs_is_reported_and_ignored(folder, content):
    (folder / "valid_imgs.json").write_text(content)
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    assert len(store) == SUBJECTS
    assert "ignored" in store.notes[0]


def test_damaged_images_are_excluded(folder):
    broken = image_path(folder, 2)
    broken.write_bytes(broken.read_bytes()[:40])
    other = image_path(folder, 9)
    other.parent.mkdir(parents=True)
    blosc2.asarray(np.zeros((20, 21, 22), np.float32), urlpath=str(other), mode="w")  # no channel axis
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    assert len(store) == SUBJECTS - 1
    assert "Excluded as damaged or not 3D: 2 images" in store.notes[0]
    save(np.zeros((1, 8, 8, 8)), image_path(folder, 0))  # written anew since
    with pytest.raises(ExcludedImageError):
        store.read(0)


def test_spacing_is_the_configuration_s(folder):
    for name in ("median", "noresample"):
        save(values(0), image_path(folder, 0, name))
    store = open_preprocessed(folder, "nnsslPlans", "median")
    assert (store.spacing(0), store.recipe["spacing"]) == ((3.0, 0.5, 0.5), [3, 0.5, 0.5])
    store = open_preprocessed(folder, "nnsslPlans", "noresample")
    assert (store.spacing(0), store.recipe["spacing"]) == ((1.0, 1.0, 1.0), None)
    assert "1 mm is assumed" in store.notes[0]


def test_missing_data_are_reported_with_the_command_that_creates_them(folder):
    with pytest.raises(UserError, match=r"nnsslPlans_median.*nnssl_plan_and_preprocess -d 745 -c median"):
        open_preprocessed(folder, "nnsslPlans", "median")
    (folder / "nnsslPlans_median").mkdir()
    with pytest.raises(UserError, match="nnsslPlans_median"):
        open_preprocessed(folder, "nnsslPlans", "median")
    with pytest.raises(UserError, match=r"otherPlans\.json"):
        open_preprocessed(folder, "otherPlans", "median")
    with pytest.raises(UserError, match=r"twomm.*onemmiso, median, noresample"):
        open_preprocessed(folder, "nnsslPlans", "twomm")
    for text in ("{", "[]", '{"configurations": []}', '{"configurations": {"median": {"spacing": [1, 0, 1]}}}'):
        (folder / "nnsslPlans.json").write_text(text)
        with pytest.raises(UserError, match=r"nnsslPlans\.json"):
            open_preprocessed(folder, "nnsslPlans", "median")


def test_a_dataset_is_found_by_id_and_name(folder):
    root = folder.parent
    assert find_dataset(root, "745") == find_dataset(root, "Dataset745_OpenMind") == folder
    with pytest.raises(UserError, match=r"dataset 746.*Dataset745_OpenMind.*-d 746"):
        find_dataset(root, "746")
    with pytest.raises(UserError, match="dataset OpenMind"):
        find_dataset(root, "OpenMind")
    (root / "Dataset745_Again").mkdir()
    with pytest.raises(UserError, match="Dataset745_Again, Dataset745_OpenMind"):
        find_dataset(root, "745")
