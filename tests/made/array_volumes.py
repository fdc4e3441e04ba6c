"""Several volumes in memory, in place of a store."""

from viewalign.views.samples import ArraySource


class ArrayVolumes(ArraySource):
    """Volumes (C, D, H, W) by their numbers."""

    def __init__(self, arrays):
        self._arrays = list(arrays)
        super().__init__(self._arrays[0])

    def __len__(self):
        return len(self._arrays)

    def read(self, k, start, stop):
        self._array = self._arrays[k]
        return super().read(k, start, stop)
