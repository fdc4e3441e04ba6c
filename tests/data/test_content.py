"""Label maps are recognised by their voxels; images of whole numbers are not taken for them."""

import numpy as np
import pytest

from viewalign.data.content import label_map_reason
from viewalign.data.readers.files import read_volume


def blocks(labels: int, side: int = 6) -> np.ndarray:
    """A cube of structures of `side` voxels each, with background around them."""
    grid = np.random.default_rng(0).integers(1, labels + 1, (6, 6, 6))
    return np.pad(np.kron(grid, np.ones((side, side, side))), 8).astype(np.float32)


@pytest.mark.parametrize("labels", [1, 2, 5, 110])
def test_a_label_map_is_recognised(labels: int) -> None:
    assert label_map_reason(blocks(labels)) is not None
    assert label_map_reason(blocks(labels) + 1000) is not None


def test_images_are_not_label_maps() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(100, 20, (30, 30, 30)).astype(np.float32)
    assert label_map_reason(noise) is None
    assert label_map_reason(np.rint(noise)) is None
    assert label_map_reason(blocks(110) * 1.37) is None
    smooth = np.rint(np.add.outer(np.arange(40), np.add.outer(np.arange(40), np.arange(40))) * 1.0)
    assert label_map_reason(smooth.astype(np.float32)) is None


def test_real_volumes(shared_data) -> None:
    maps = [
        *sorted((shared_data / "head_labelmaps").iterdir())[:2],
        *sorted((shared_data / "hippocampus/labels").iterdir())[:2],
    ]
    images = [
        *sorted((shared_data / "hippocampus/images").iterdir())[:2],
        *sorted((shared_data / "cardiac_cine/images").iterdir())[:2],
    ]
    assert all(label_map_reason(read_volume(path).array) for path in maps)
    assert not any(label_map_reason(read_volume(path).array) for path in images)
