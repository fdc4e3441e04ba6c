"""Small images made by code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from viewalign.data.readers.itk import sitk

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def write_image() -> Writer:
    """Write an array (D, H, W) with a geometry in SimpleITK's order (x, y, z)."""

    def write(path: Path, array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None) -> Path:
        image = sitk.GetImageFromArray(np.asarray(array))
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(np.eye(3).ravel() if direction is None else np.asarray(direction, float).ravel())
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
        return path

    return write


@pytest.fixture(scope="session")
def make_head() -> Callable[..., np.ndarray]:
    """Return a bright ball with noise in a dark, partly zero, volume (D, H, W)."""

    def make(seed: int = 0, shape=(24, 28, 20)) -> np.ndarray:
        rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        inside = (grid**2).sum(0) < 0.8
        return (inside * (100 + 20 * rng.normal(size=shape))).astype(np.float32)

    return make
