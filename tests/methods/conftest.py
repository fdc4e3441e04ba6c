import numpy as np
import pytest
from array_volumes import ArrayVolumes

from viewalign.views.batch import build_views
from viewalign.views.samples import SampleReader
from viewalign.views.sampling import ViewSamplingConfig


class Bodies(ArrayVolumes):
    """Volumes of smooth blobs at different positions."""

    def __init__(self, count=8, shape=(26, 30, 28)):
        arrays = []
        rng = np.random.default_rng(0)
        axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
        for _ in range(count):
            array = np.zeros(shape)
            for _ in range(6):
                centre, width = rng.uniform(0, 1, 3) * shape, rng.uniform(2, 6)
                array += rng.normal() * np.exp(-sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) / width**2)
            arrays.append(((array - array.mean()) / array.std()).astype(np.float32)[None])
        super().__init__(arrays)


@pytest.fixture(scope="session")
def bodies():
    return Bodies()


@pytest.fixture(scope="session")
def make_batch(bodies):
    def make(size=(16, 16, 16), batch=4, index=0, **config):
        every = np.arange(len(bodies))
        reader = SampleReader(bodies, every, every, ViewSamplingConfig(size, **config), batch, seed=1)
        return build_views([reader[index + k] for k in range(batch)], size, None)

    return make
