"""The picture of the method is drawn from any volume, and says what is missing."""

import sys

import numpy as np
import pytest

from viewalign.errors import UserError
from viewalign.report.method import method_picture
from viewalign.views.array import draw_views


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(size=(40, 48, 44)).astype(np.float32)


def test_picture_of_the_method(volume, tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    path = method_picture(volume, draw_views(volume, (32, 32, 32), 3), tmp_path / "deep" / "method.png", dpi=60)
    assert image.open(path).size[0] == 696


def test_without_matplotlib(volume, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'viewalign\[report\]'"):
        method_picture(volume, draw_views(volume, (32, 32, 32), 3), tmp_path / "method.png")
