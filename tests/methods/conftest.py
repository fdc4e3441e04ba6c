import numpy as np
import pytest

from viewalign.views.array import ArraySource
from viewalign.views.build import build_views
from viewalign.views.drawing import Drawing
from viewalign.views.samples import SampleReader


class Bodies(ArraySource):
    """Volumes that differ: smooth blobs at places of their own."""

    def __init__(self, count=8, shape=(26, 30, 28)):
        self._count = count
        rng = np.random.default_rng(0)
        axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
        self._arrays = []
        for _ in range(count):
            array = np.zeros(shape)
            for _ in range(6):
                centre, width = rng.uniform(0, 1, 3) * shape, rng.uniform(2, 6)
                array += rng.normal() * np.exp(-sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) / width**2)
            self._arrays.append(((array - array.mean()) / array.std()).astype(np.float32)[None])
        super().__init__(self._arrays[0])

    def __len__(self):
        return self._count

    def read(self, k, start, stop):
        self._array = self._arrays[k]
        return super().read(k, start, stop)


@pytest.fixture(scope="session")
def bodies():
    return Bodies()


@pytest.fixture(scope="session")
def make_batch(bodies):
    def make(size=(16, 16, 16), batch=4, index=0, **drawing):
        every = np.arange(len(bodies))
        reader = SampleReader(bodies, every, every, Drawing(size, **drawing), batch, seed=1)
        return build_views([reader[index + k] for k in range(batch)], size, None)

    return make
