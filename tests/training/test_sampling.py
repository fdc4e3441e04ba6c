from contextlib import nullcontext

import numpy as np
import pytest

from viewalign.data.columns import Row, write_index
from viewalign.data.layout import STORE_FORMAT, STORE_VERSION, write_json
from viewalign.data.store import Store, store_from_arrays
from viewalign.errors import UserError
from viewalign.methods.registry import requirements_of
from viewalign.training.launch import launch
from viewalign.training.run import _feed, check_data, open_store, pretrain
from viewalign.training.sampling import admitted, check_channels, weights_of
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig

from .conftest import smooth_volumes


@pytest.fixture
def store(tmp_path) -> Store:
    """Dataset a: one subject of six images, three of two; dataset b: two subjects of one."""
    people = [("a", "p0")] * 6 + [("a", f"p{k}") for k in (1, 1, 2, 2, 3, 3)] + [("b", "q0"), ("b", "q1")]
    rows = [
        Row(
            f"c__{d}__{s}__{k:02d}",
            "x",
            f"c__{d}__{s}",
            d,
            ("T1w", "FLAIR")[k % 2],
            (9, 9, 9),
            (1, 1, 1),
            0,
            False,
            False,
        )
        for k, (d, s) in enumerate(people)
    ]
    write_json(tmp_path / "store.json", {"format": STORE_FORMAT, "version": STORE_VERSION, "recipe": None})
    scored = [
        Row(**{**{f: getattr(r, f) for f in r.__slots__}, "quality": (None, 1.0, 3.0)[k % 3]})
        for k, r in enumerate(rows)
    ]
    write_index(tmp_path, scored)
    return Store.open(tmp_path)


def frequencies(store, weights, batch=1, draws=6000):
    source = ArraySource(np.zeros((9, 9, 9)))
    subjects = np.unique([store.subjects[k] for k in range(len(store))], return_inverse=True)[1]
    reader = SampleReader(
        source, subjects, np.arange(len(store)), ViewSamplingConfig((8, 8, 8)), batch, 0, weights=weights
    )
    return np.bincount([reader.volume_of(i) for i in range(draws)], minlength=len(store)) / draws


def test_sampling_by_image_is_uniform(store):
    assert weights_of(store, np.arange(14)) is None
    np.testing.assert_allclose(frequencies(store, None), 1 / 14, atol=0.02)


def test_sampling_by_subject(store):
    share = frequencies(store, weights_of(store, np.arange(14), "subject"))
    by_subject = [share[:6].sum(), share[6:8].sum(), share[8:10].sum(), share[10:12].sum(), share[12], share[13]]
    np.testing.assert_allclose(by_subject, 1 / 6, atol=0.02)


def test_sampling_by_dataset_with_factors(store):
    share = frequencies(store, weights_of(store, np.arange(14), "dataset", {"b": 3.0}))
    np.testing.assert_allclose([share[:12].sum(), share[12:].sum()], [0.25, 0.75], atol=0.02)


def test_the_most_specific_factor_applies_and_0_excludes(store):
    factors = {"a": 0.0, "c__a__p1": 2.0, "c__a__p1__06": 6.0}
    share = frequencies(store, weights_of(store, np.arange(14), factors=factors))
    np.testing.assert_allclose(share[[6, 7, 12, 13]], np.array([6, 2, 1, 1]) / 10, atol=0.02)
    assert share[[k for k in range(12) if k not in (6, 7)]].sum() == 0


def test_frequencies_hold_where_subjects_have_many_images_unless_a_loss_needs_different_subjects():
    """Dataset a: four subjects scanned 50 times each; dataset b: 200 subjects scanned once."""
    subjects = np.concatenate([np.repeat(np.arange(4), 50), np.arange(4, 204)])
    source, every, config = ArraySource(np.zeros((9, 9, 9))), np.arange(400), ViewSamplingConfig((8, 8, 8))

    def share_of_a(weights, distinct):
        reader = SampleReader(source, subjects, every, config, 8, 0, weights=weights, distinct=distinct)
        return np.mean([reader.volume_of(i) < 200 for i in range(4000)])

    assert share_of_a(None, distinct=False) == pytest.approx(0.5, abs=0.03)
    assert share_of_a(np.where(every < 200, 3.0, 1.0), distinct=False) == pytest.approx(0.75, abs=0.03)
    assert share_of_a(None, distinct=True) < 0.4


def test_of_subjects_with_one_image_both_samplings_are_the_same(store):
    every, config = np.arange(14), ViewSamplingConfig((8, 8, 8))
    readers = [SampleReader(store, every, every, config, 4, 0, distinct=distinct) for distinct in (True, False)]
    assert [readers[0].volume_of(i) for i in range(40)] == [readers[1].volume_of(i) for i in range(40)]


KINDS = [
    ("cva-resenc-xs", [], True),
    ("cva-resenc-xs", ["objectives.contrastive_weight=0"], True),  # as with it, to be compared
    ("simclr-resenc-xs", [], True),
    ("fusion-resenc-xs", [], True),
    ("mae-resenc-xs", [], False),
]


@pytest.mark.parametrize(("name", "settings", "distinct"), KINDS)
def test_methods_that_compare_or_mix_subjects_get_different_ones(name, settings, distinct, tiny_recipe):
    recipe, fabric = launch(tiny_recipe(*settings, recipe=name))
    store, needs = open_store(recipe), requirements_of(recipe)
    feed = _feed(recipe, needs, store, *check_data(recipe, needs, store), fabric)
    assert feed.train.args[0]._distinct is distinct


def test_weights_of_many_volumes():
    count = 50_000
    weights = np.where(np.arange(count) < 500, 99.0, 1.0)  # one per cent of the volumes, half of the draws
    source = ArraySource(np.zeros((9, 9, 9)))
    reader = SampleReader(
        source, np.arange(count), np.arange(count), ViewSamplingConfig((8, 8, 8)), 1, 0, weights=weights
    )
    drawn = np.array([reader.volume_of(i) for i in range(2000)])
    assert (drawn < 500).mean() == pytest.approx(0.5, abs=0.05)
    assert [reader.volume_of(i) for i in range(20)] == drawn[:20].tolist()


def test_substitutes_are_sampled_by_weight(store):
    class Broken(ArraySource):
        def read(self, k, start, stop):
            from viewalign.errors import ExcludedImageError

            if k == 0:
                raise ExcludedImageError("broken")
            return super().read(k, start, stop)

    weights = np.array([1.0, 0.0, 1.0, 0.0])
    reader = SampleReader(
        Broken(np.ones((9, 9, 9))), np.arange(4), np.arange(4), ViewSamplingConfig((8, 8, 8)), 1, 0, weights=weights
    )
    assert {reader[i].volume_id for i in range(12)} == {2}


def test_admitted_volumes(store):
    assert admitted(store).all()
    np.testing.assert_array_equal(admitted(store, ["flair"]), np.arange(14) % 2 == 1)
    np.testing.assert_array_equal(admitted(store, max_quality_score=2.0), np.arange(14) % 3 != 2)
    with pytest.raises(UserError, match=r"sampling\.modalities.*PET"):
        admitted(store, ["PET"])
    only_bad = Store.open(store.path)
    only_bad.quality = np.full(14, 3.0)
    with pytest.raises(UserError, match="max_quality_score"):
        admitted(only_bad, max_quality_score=2.0)


def test_volumes_of_weight_0_are_used_for_nothing(tiny_recipe, tmp_path):
    """Not for training, nor for validation, which chooses the best checkpoint; nor are they counted."""
    rng = np.random.default_rng(0)
    store_from_arrays(tmp_path / "s", {f"p{k:02d}": rng.normal(size=(8, 8, 8)).astype(np.float32) for k in range(24)})
    store = Store.open(tmp_path / "s")

    def split_with(weights):
        recipe = tiny_recipe(f"data={tmp_path / 's'}", f"sampling.weights={weights}", "validate.share=0.3")
        return check_data(recipe, requirements_of(recipe), store)[1]

    every = split_with({})
    assert len(every.validation) >= 5
    left = split_with({str(store.ids[part[0]]): 0 for part in (every.train, every.validation)})
    np.testing.assert_array_equal(left.train, every.train[1:])
    np.testing.assert_array_equal(left.validation, every.validation[1:])
    with pytest.raises(UserError, match="two subjects, and the store has 1 "):
        split_with({str(store.ids[k]): 0 for k in every.train[1:]})
    with pytest.raises(UserError, match=r"sampling\.weights"):
        split_with({str(name): 0 for name in store.ids})


def test_a_share_that_holds_out_everyone_is_named(tiny_recipe, tmp_path):
    store = store_from_arrays(tmp_path / "s", smooth_volumes(24))
    recipe = tiny_recipe("validate.share=1")
    with pytest.raises(UserError, match=r"validate\.share=1 holds out all"):
        check_data(recipe, requirements_of(recipe), store)


@pytest.mark.parametrize(("side", "fits"), [(8, False), (12, False), (16, True), (40, True)])
def test_volumes_without_views_to_compare_are_rejected(side, fits, tiny_recipe, tmp_path):
    """VoCo compares views of 16 voxels of which a quarter is inside the volume; without two it learns nothing."""
    store = store_from_arrays(tmp_path / "s", smooth_volumes(12, (side, side, side)))
    recipe = tiny_recipe(recipe="voco-resenc-xs")
    with nullcontext() if fits else pytest.raises(UserError, match=r"views\.patch_size=\[16, 16, 16\] is too large"):
        check_data(recipe, requirements_of(recipe), store)


def test_unknown_names_are_rejected(store):
    with pytest.raises(UserError, match=r"sampling\.weights.*c__a__p1'"):
        weights_of(store, np.arange(14), factors={"c__a__p11": 1.0})
    with pytest.raises(UserError, match=r"sampling\.weights"):
        weights_of(store, np.arange(14), factors={"a": 0.0, "b": 0.0})


def test_a_run_with_sampling(tiny_recipe):
    outcome = pretrain(tiny_recipe("sampling.by=subject", "sampling.weights={arrays: 2.0}", steps=2))
    assert outcome.finished
    with pytest.raises(UserError, match=r"sampling\.modalities.*T1w"):
        pretrain(tiny_recipe("sampling.modalities=[T1w]", out="other"))


def test_other_numbers_of_channels_are_rejected(store):
    inside = np.ones(14, dtype=bool)
    check_channels(store, inside, 1)
    store.channels[3] = 4
    with pytest.raises(UserError, match=r"network\.channels=1.*c__a__p0__03"):
        check_channels(store, inside, 1)
    inside[3] = False
    check_channels(store, inside, 1)
