"""A raw dataset prepared in nnssl's layout: its files, and broken files and runs."""

import json
import pickle

import blosc2
import numpy as np
import pytest

from viewalign.compat.nnssl import lists, preprocess
from viewalign.compat.nnssl.plans import plan, write_plans
from viewalign.compat.nnssl.store import open_preprocessed
from viewalign.data.catalogue import read_catalogue
from viewalign.data.readers.files import read_volume
from viewalign.data.settings import Limits
from viewalign.errors import UserError

NAME = "Dataset745_OpenMind"
SESSION = "nnsslPlans_onemmiso/Dataset001_OpenMind/ds01/{}/ses-DEFAULT"


@pytest.fixture
def folder(raw, tmp_path):
    """The dataset's folder of preprocessed data, planned."""
    folder = tmp_path / "preprocessed" / NAME
    folder.mkdir(parents=True)
    write_plans(folder, plan(NAME, [(1.0, 1.0, 1.0), (1.0, 0.9, 1.0)]))
    return folder


def prepare(raw, folder, configuration="onemmiso", processes=0, **more):
    plans = preprocess_plans(folder, configuration)
    catalogue = read_catalogue(raw / "pretrain_data.json")
    return preprocess.preprocess(catalogue, raw, folder, plans, configuration, processes, **more)


def preprocess_plans(folder, configuration):
    from viewalign.compat.nnssl.plans import read_plans

    return read_plans(folder, "nnsslPlans", configuration)


def json_of(path):
    return json.loads(path.read_text())


def names(catalogue):
    return [subject for dataset in catalogue["datasets"].values() for subject in dataset["subjects"]]


def test_an_unsupported_normalisation_is_an_error(raw, folder):
    path = folder / "nnsslPlans.json"
    told = json_of(path)
    told["configurations"]["onemmiso"]["use_mask_for_norm"] = [True]
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"nnsslPlans\.json.*onemmiso\.use_mask_for_norm"):
        prepare(raw, folder)
    assert not list(folder.rglob("*.b2nd"))


def test_files_are_those_of_nnssl(raw, folder):
    report = prepare(raw, folder)
    assert (report.prepared, report.made, report.skipped) == (4, 4, 0)
    session = folder / SESSION.format("sub-2")
    files = sorted(path.name for path in session.iterdir())
    assert files == ["t1.b2nd", "t1.json", "t1.pkl", "t1__anat.b2nd", "t1__anon.b2nd"]
    array = blosc2.open(str(session / "t1.b2nd"), mode="r", mmap_mode="r")  # as nnssl opens it
    assert (array.ndim, array.shape[0], array.dtype) == (4, 1, np.float32)
    assert abs(float(array[:].mean())) < 0.1
    for mask in ("t1__anon.b2nd", "t1__anat.b2nd"):
        found = blosc2.open(str(session / mask), mode="r")
        assert (found.shape, found.dtype) == (array.shape, np.float32)
        assert set(np.unique(found[:])) == {0.0, 1.0}
    properties = pickle.loads((session / "t1.pkl").read_bytes())  # our own, in a test
    assert properties["spacing"] == pytest.approx([1.0, 1.3, 1.0])
    assert properties["sitk_stuff"]["origin"] == pytest.approx((3.0, -4.0, 5.0))


def test_masks_have_their_own_names(raw, folder):
    prepare(raw, folder)
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    k = next(k for k in range(len(store)) if "sub-2" in store.ids[k])
    assert store.notes == ()
    anonymisation, anatomy = (store.read_mask(k, kind) for kind in ("anonymisation", "anatomy"))
    low = store.properties(k)["crop_box"][1][0]
    edge = (12 - low) * 1.3  # the mask ends at row 12
    assert abs(anonymisation.any(axis=(0, 2)).sum() - edge) <= 1
    on_disk = blosc2.open(str(folder / SESSION.format("sub-2") / "t1__anon.b2nd"), mode="r")
    np.testing.assert_array_equal(on_disk[0] > 0, anonymisation)
    assert anatomy.any()
    assert not np.array_equal(anatomy, anonymisation)


def test_the_lists_contain_prepared_images_only(raw, folder):
    report = prepare(raw, folder)
    assert [one.file for one in report.excluded] == [str(raw / "sub-9" / "t1.nii.gz")]
    assert json_of(folder / "report__onemmiso.json")["excluded"][0]["reason"]
    listed = json_of(folder / "pretrain_data__onemmiso.json")
    assert names(listed) == ["sub-0", "sub-1", "sub-2", "sub-3"]
    subject = listed["datasets"]["ds01"]["subjects"]["sub-2"]
    assert subject["subject_info"] == {"age": 40}
    image = subject["sessions"]["ses-DEFAULT"]["images"][0]
    path = f"$nnssl_preprocessed/{NAME}/{SESSION.format('sub-2')}/t1"
    assert image["image_path"] == path
    assert image["image_info"] == {"echo_time": 3}
    assert image["associated_masks"] == {"anonymization_mask": f"{path}__anon", "anatomy_mask": f"{path}__anat"}
    valid = json_of(folder / "valid_imgs.json")
    assert [one["subject_id"] for one in valid] == ["sub-0", "sub-1", "sub-2", "sub-3"]
    assert valid[0]["dataset_index"] == "ds01"
    assert valid[0]["collection_name"] == "Dataset001_OpenMind"
    read_catalogue(folder / "pretrain_data__onemmiso.json")


def test_axes_stay_as_in_the_file_but_for_the_plans(raw, folder):
    prepare(raw, folder, "noresample")
    store = open_preprocessed(folder, "nnsslPlans", "noresample")
    k = next(k for k in range(len(store)) if "sub-3" in store.ids[k])
    facts = store.properties(k)
    original = read_volume(raw / "sub-3" / "t1.nii.gz").array
    box = tuple(slice(*ends) for ends in facts["crop_box"])
    np.testing.assert_allclose(store.read(k)[0] * facts["std"] + facts["mean"], original[box], atol=1e-3)
    assert store.spacing(k) == (2.0, 1.0, 1.0), "no pickle is needed for it"
    assert store.notes == ()


def test_complete_images_are_skipped_and_changed_ones_prepared_again(raw, folder):
    prepare(raw, folder)
    array = folder / SESSION.format("sub-0") / "t1.b2nd"
    before = array.stat().st_mtime_ns
    report = prepare(raw, folder)
    assert (report.prepared, report.made, report.skipped) == (4, 0, 4)
    assert array.stat().st_mtime_ns == before
    array.write_bytes(array.read_bytes()[:-9])
    (folder / SESSION.format("sub-1") / "t1.json").unlink()
    assert prepare(raw, folder).made == 2
    write_plans(folder, plan(NAME, [(1.0, 3.0, 1.0)]))
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    assert "Images prepared by other plans: 4" in store.notes[0]
    assert prepare(raw, folder).made == 4
    assert open_preprocessed(folder, "nnsslPlans", "onemmiso").notes == ()


def test_images_that_the_dataset_names_no_more_are_not_used(raw, folder):
    prepare(raw, folder)
    path = folder / "pretrain_data__onemmiso.json"
    listed = json_of(path)
    del listed["datasets"]["ds01"]["subjects"]["sub-1"]
    path.write_text(json.dumps(listed))
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    assert len(store) == 3
    assert not any("sub-1" in name for name in store.ids)
    assert any("1 image" in note for note in store.notes)


@pytest.mark.slow
def test_processes_and_parts_give_the_same_bytes(raw, folder, tmp_path):
    prepare(raw, folder)
    whole = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("t1*")}
    other = tmp_path / "preprocessed" / "Dataset746_Parts"
    other.mkdir()
    (other / "nnsslPlans.json").write_bytes((folder / "nnsslPlans.json").read_bytes())
    first = prepare(raw, other, processes=2, part=1, parts=2)
    assert (first.complete, first.made) == (False, 2)
    assert not (other / "valid_imgs.json").exists()
    last = prepare(raw, other, processes=2, part=0, parts=2)
    assert (last.complete, last.prepared) == (True, 4)
    assert {path.relative_to(other): path.read_bytes() for path in other.rglob("t1*")} == whole
    listed = (other / "pretrain_data__onemmiso.json").read_text().replace("Dataset746_Parts", NAME)
    assert json.loads(listed) == json_of(folder / "pretrain_data__onemmiso.json")
    assert (other / "valid_imgs__onemmiso__0_of_2.json").is_file()
    assert not prepare(raw, other, "noresample", part=0, parts=2).complete, (
        "parts of another configuration do not count"
    )
    prepare(raw, other, part=0, parts=1)
    prepare(raw, other, part=0, parts=2)
    assert lists.write_part(other, "onemmiso", 0, 1, []), "one part is all there is"
    assert not (other / "valid_imgs__onemmiso__0_of_2.json").exists(), "what another number of parts left is swept"


def test_names_that_cannot_be_files_are_excluded(raw, folder):
    catalogue = json_of(raw / "pretrain_data.json")
    subjects = catalogue["datasets"]["ds01"]["subjects"]
    images = subjects["sub-0"]["sessions"]["ses-DEFAULT"]["images"]
    good = images[0]
    images += [{**good, "name": name} for name in ("../out", "t1", "t1__anon", "t1.nii.gz", "other.nii.gz")]
    (raw / "pretrain_data.json").write_text(json.dumps(catalogue))
    report = prepare(raw, folder)
    reasons = [one.reason for one in report.excluded if "sub-0" in one.file]
    assert sum("cannot be used as a file name" in reason for reason in reasons) == 1
    assert sum("same id" in reason for reason in reasons) == 1
    assert sum("another image's mask" in reason for reason in reasons) == 1
    assert report.prepared == 6
    assert (folder / SESSION.format("sub-0") / "other.b2nd").is_file()
    assert (folder / SESSION.format("sub-0") / "t1.nii.gz.b2nd").is_file(), "t1 is taken"
    listed = json.dumps(json_of(folder / "pretrain_data__onemmiso.json"))
    assert f"{SESSION.format('sub-0')}/t1.nii.gz" in listed
    assert not list(folder.rglob("out*"))


def test_a_file_beyond_its_limits_is_excluded(raw, folder):
    report = prepare(raw, folder, limits=Limits(max_voxels=1000))
    assert report.prepared == 0
    assert any("1,000" in one.reason for one in report.excluded)


def test_a_file_that_hangs_is_excluded(raw, folder):
    report = prepare(raw, folder, processes=1, limits=Limits(seconds=0.001))
    assert report.prepared == 0
    assert any("longer than the time limit" in one.reason for one in report.excluded)
    assert prepare(raw, folder).prepared == 4, "what was given up leaves nothing that is in the way"


def test_an_unwritable_disk_is_an_error(raw, folder):
    (folder / "nnsslPlans_onemmiso").write_text("a file where a folder must be")
    with pytest.raises(UserError, match="Dataset745_OpenMind"):
        prepare(raw, folder)


def test_images_overwritten_by_nnssl_are_read_as_nnssl_s(raw, folder):
    prepare(raw, folder)
    session = folder / SESSION.format("sub-2")
    shape = blosc2.open(str(session / "t1.b2nd"), mode="r").shape
    for name, value in (("t1", 0.5), ("t1__anon", 1.0), ("t1__anat", 0.0)):
        array = np.full(shape, value, dtype=np.float32)
        blosc2.asarray(array, urlpath=str(session / f"{name}.b2nd"), mode="w")
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    k = next(k for k in range(len(store)) if "sub-2" in store.ids[k])
    assert not store.ours[k]
    assert store.read_mask(k, "anatomy").all(), "nnssl swaps the names of masks"
    assert len(store.notes) == 1


def test_the_dataset_s_split_is_kept(raw, folder):
    prepare(raw, folder)
    whose = "Dataset001_OpenMind__ds01__sub-{}".format
    split = lists.Split(frozenset({whose(0), whose(1)}), frozenset({whose(2)}))
    lists.write_split(folder, split)
    assert json_of(folder / "splits_final.json") == {"train": [whose(0), whose(1)], "val": [whose(2)]}
    store = open_preprocessed(folder, "nnsslPlans", "onemmiso")
    assert store.held_out == {whose(2)}
    assert list(store.subjects) == [whose(0), whose(1), whose(2)]
    assert "subjects not in splits_final.json: 1 image" in store.notes[0]
    lists.write_split(folder, lists.Split(frozenset({"x"}), frozenset()))
    with pytest.raises(UserError, match=r"splits_final\.json"):
        open_preprocessed(folder, "nnsslPlans", "onemmiso")
    (folder / "splits_final.json").write_text("[]")
    with pytest.raises(UserError, match=r"splits_final\.json"):
        open_preprocessed(folder, "nnsslPlans", "onemmiso")
