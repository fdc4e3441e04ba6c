import numpy as np
import pytest
import torch

from viewalign.errors import ExcludedImageError
from viewalign.views import affines
from viewalign.views.batch import build_views
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.samples import ArraySource, SampleReader, StepSampler, enclosing_box
from viewalign.views.sampling import SampledViews, ViewSamplingConfig

CONFIG = ViewSamplingConfig((16, 16, 16))


class Cohort(ArraySource):
    """Several volumes, of which some cannot be read, and a bright corner that is foreground."""

    def __init__(self, count=12, broken=(), threshold=-np.inf, masked=False):
        rng = np.random.default_rng(0)
        array = rng.normal(size=(32, 30, 28)) * 0.1
        array[:12, :12, :12] += 10
        super().__init__(array)
        self._count, self._broken, self._threshold, self._hidden = count, set(broken), threshold, masked

    def __len__(self):
        return self._count

    def foreground_threshold(self, k):
        return self._threshold

    def read(self, k, start, stop):
        if k in self._broken:
            raise ExcludedImageError(f"volume {k} is broken")
        return super().read(k, start, stop)

    def read_mask(self, k, kind, start, stop):
        if not self._hidden:
            return None
        mask = np.zeros((32, 30, 28), dtype=bool)
        mask[:, :, :14] = True
        return mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]


def reader(source, subjects=None, batch=4, **options):
    subjects = np.arange(len(source)) if subjects is None else np.asarray(subjects)
    return SampleReader(source, subjects, np.arange(len(source)), CONFIG, batch, seed=3, **options)


def test_samples_do_not_depend_on_the_reader():
    a, b = reader(Cohort())[17], reader(Cohort())[17]
    assert torch.equal(a.crop, b.crop)
    assert torch.equal(a.to_volume, b.to_volume)
    views = [build_views([s], (16, 16, 16), IntensityConfig(p_noise=1, p_blur=1), seed=3).views for s in (a, b)]
    assert torch.equal(*views)


def test_a_global_batch_has_different_subjects():
    subjects = [0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6]
    one = reader(Cohort(), subjects, batch=6)
    for step in range(50):
        volumes = [one.volume_of(step * 6 + slot) for slot in range(6)]
        assert len(set(volumes)) == 6
        assert len({subjects[v] for v in volumes}) == 6


def test_with_few_subjects_a_batch_has_different_volumes():
    one = reader(Cohort(), [0] * 6 + [1] * 6, batch=8)
    volumes = [one.volume_of(slot) for slot in range(8)]
    assert len(set(volumes)) == 8


def test_volumes_are_sampled_uniformly():
    one = reader(Cohort(), batch=4)
    counts = np.bincount([one.volume_of(i) for i in range(2400)], minlength=12)
    assert counts.min() > 140
    assert counts.max() < 260


def test_many_volumes_are_sampled_uniformly():
    class Huge(Cohort):
        pass

    one = SampleReader(Huge(100_000), np.arange(100_000) // 3, np.arange(100_000), CONFIG, 8, seed=0)
    volumes = np.array([one.volume_of(i) for i in range(4000)])
    assert len(np.unique(volumes)) > 3800
    assert 45_000 < volumes.mean() < 55_000


def test_an_unreadable_volume_is_replaced_and_reported():
    source = Cohort(broken={2, 5})
    one = reader(source)
    seen = [one[i] for i in range(40)]
    reported = {volume for sample in seen for volume, _ in sample.excluded}
    assert reported == {2, 5}
    assert all(sample.volume_id not in {2, 5} for sample in seen)
    again = reader(source)
    assert [s.volume_id for s in seen] == [again[i].volume_id for i in range(40)]


def test_only_unreadable_volumes_are_an_error():
    with pytest.raises(ExcludedImageError, match="cannot be read"):
        reader(Cohort(broken=range(12)))[0]


def test_views_without_foreground_are_redrawn():
    source = Cohort(threshold=5.0)

    def foreground(redraws):
        one = reader(source, min_foreground=0.1, redraws=redraws)
        return np.mean([float((one[i].crop > 5).float().mean()) for i in range(40)])

    assert foreground(8) > 1.3 * foreground(0)


def test_anonymised_regions_are_not_valid():
    batch = build_views([reader(Cohort(masked=True))[i] for i in range(4)], (16, 16, 16), None)
    index = torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"), -1).double()
    for v in range(2):
        for b in range(4):
            where = index @ batch.to_volume[v, b, :, :3].T + batch.to_volume[v, b, :, 3]
            deep = (where[..., 2] < 12.5) & batch.valid[v, b, 0]
            assert not deep.any()
            assert (batch.views[v, b, 0][~batch.valid[v, b, 0]] == 0).all()


def test_processes_get_disjoint_slots():
    whole = list(StepSampler(2, 5, 6))
    parts = [list(StepSampler(2, 5, 6, rank, 3)) for rank in range(3)]
    assert [[i for part in parts for i in part[k]] for k in range(3)] == whole
    assert whole[0] == [12, 13, 14, 15, 16, 17]
    with pytest.raises(ValueError, match="divide"):
        StepSampler(0, 1, 5, 0, 2)


def test_the_box_of_a_view_outside_the_volume_is_one_voxel_inside_it():
    beyond = affines.identity(1)
    beyond[0, :, 3] = torch.tensor([100.0, -100.0, 3.0])
    assert enclosing_box(beyond, (8, 8, 8), (32, 30, 28)) == ((31, 0, 3), (32, 1, 11))


def tries(volume, views, threshold=0.5, **options):
    """Return how often views of a volume are sampled until they are accepted, if they are the same each time."""
    source, calls = ArraySource(volume), []
    source.foreground_threshold = lambda k: threshold
    number = np.zeros(1, dtype=np.int64)

    def sampler(*_):
        calls.append(1)
        return SampledViews(views, 1.0)

    SampleReader(source, number, number, CONFIG, 1, seed=0, sampler=sampler, **options)[0]
    return len(calls)


@pytest.mark.parametrize("plane", [0, 15])
def test_the_foreground_of_a_view_is_counted_at_eight_places_per_axis_with_both_ends(plane):
    volume = np.zeros((16, 16, 16), dtype=np.float32)
    volume[plane] = 1
    assert tries(volume, affines.identity(1), min_foreground=1 / 8, redraws=3) == 1
    assert tries(volume, affines.identity(1), min_foreground=1 / 8 + 1e-6, redraws=3) == 4
    assert tries(volume, affines.identity(1)) == 1
    volume[:, 8:] = 0
    assert tries(volume, affines.identity(1)) == 9, "by default a tenth, and eight further tries"


@pytest.mark.parametrize(("depth", "expected"), [(3, 1), (2, 4)])
def test_a_quarter_of_what_a_pair_shares_must_lie_in_the_volume(depth, expected):
    """Of four points per axis, at 1.5, 5.5, 9.5 and 13.5, a volume of three voxels has the first, one of two none."""
    volume = np.ones((16, 16, depth), dtype=np.float32)
    assert tries(volume, affines.identity(2), min_foreground=0.1, redraws=3) == expected


@pytest.mark.parametrize(("legs", "expected"), [(6.0, 4), (60.0, 1)])
def test_a_quarter_of_the_box_around_what_a_pair_shares_must_be_shared(legs, expected):
    """A face that cuts off a cube's corner shares a sixth of the corner's box: 10 of 64 points."""
    turned = torch.linalg.qr(torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 1]]).double())[0]
    across = turned[:, 0] * turned[0, 0].sign()
    views = affines.identity(2)
    views[0, :, 3] = 12.0
    views[1, :, :3] = 4 * torch.column_stack([across, turned[:, 1:]])
    middle = 27.5 + across * (4 * 8 - legs / 3**0.5)
    views[1, :, 3] = middle - views[1, :, :3] @ torch.full((3,), 7.5, dtype=torch.float64)
    assert tries(np.ones((40, 40, 40)), views, min_foreground=0.01, redraws=3) == expected


@pytest.mark.parametrize(("count", "share"), [(4, 1 / 4), (3, 1 / 3), (1, 1.0)])
def test_of_many_views_the_mean_foreground_counts(count, share):
    """The first lies in the foreground, the others beside it."""
    volume = np.zeros((16, 16, 64), dtype=np.float32)
    volume[..., :16] = 1
    views = affines.identity(count)
    views[:, 2, 3] = 16.0 * torch.arange(count)
    assert tries(volume, views, min_foreground=share - 1e-6, redraws=3) == 1
    assert tries(volume, views, min_foreground=share + 1e-6, redraws=3) == 4
