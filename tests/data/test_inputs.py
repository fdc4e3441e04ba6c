from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from viewalign.data.indexing import index_sources
from viewalign.data.inputs import median_spacing
from viewalign.errors import UserError


def test_the_median_is_of_the_stored_axes(tmp_path: Path, write_image, make_head) -> None:
    turned = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], float)  # x runs along world y, y along z, z along x
    write_image(tmp_path / "a.nii.gz", make_head(), (1.0, 2.0, 3.0))
    write_image(tmp_path / "b.nii.gz", make_head(), (2.0, 3.0, 1.0), direction=turned)
    write_image(tmp_path / "c.nii.gz", make_head(), (1.5, 2.0, 5.0))
    records = list(index_sources([str(tmp_path)]).collection.records())
    assert median_spacing(records) == (3.0, 2.0, 1.0)
    for name in ("b.nii.gz", "c.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    counted: list[int] = []
    assert median_spacing(records, on_image=counted.append) == (3.0, 2.0, 1.0)
    assert counted == [1, 2, 3]
    with pytest.raises(UserError, match="median"):
        median_spacing(records[1:])
    with pytest.raises(UserError, match="median"):
        median_spacing([])
