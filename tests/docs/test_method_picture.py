"""The picture of the method is drawn from any volume."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from viewalign.views.batch import sample_views

SCRIPT = Path(__file__).parents[2] / "docs" / "method_picture.py"


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(size=(40, 48, 44)).astype(np.float32)


def test_picture_of_the_method(volume, tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    method_picture = runpy.run_path(str(SCRIPT))["method_picture"]
    path = method_picture(volume, sample_views(volume, (32, 32, 32), 3), tmp_path / "deep" / "method.png", dpi=60)
    assert image.open(path).size[0] == 696
