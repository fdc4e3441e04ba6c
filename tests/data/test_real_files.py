"""The whole way with real volumes of three kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store


@pytest.mark.slow
def test_real_volumes_go_in(tmp_path: Path, shared_data: Path) -> None:
    names = ("hippocampus/images/hippocampus_00[13].nii.gz", "ms_raw/patient04_study1_T2W.nii.gz", "heads/volpack*")
    index = index_sources([str(shared_data / name) for name in names])
    assert index.images == 4
    report = prepare_records(list(index.collection.records()), tmp_path / "s", PrepareSettings(), workers=2)
    assert (report.prepared, report.excluded) == (4, [])
    store = Store.open(tmp_path / "s")
    for k in range(4):
        np.testing.assert_allclose(store.spacing(k), 1.0, atol=0.05)
        assert abs(float(store.read(k).mean())) < 1e-3


def test_a_real_ct_keeps_its_hounsfield_units(tmp_path: Path, shared_data: Path) -> None:
    index = index_sources([str(shared_data / "heads/cranium_ct.nii.gz")])
    settings = PrepareSettings(normalise="window", window=(-1000.0, 1000.0), spacing=(1.5, 1.5, 1.5))
    report = prepare_records(index.collection.records(), tmp_path / "s", settings, workers=0)
    assert (report.prepared, report.excluded) == (1, [])
    store = Store.open(tmp_path / "s")
    array = store.read(0)
    assert (float(array.min()), float(array.max())) == (-1.0, 1.0)
    assert -1.0 <= float(np.median(array[array < -0.5])) < -0.95  # air
    middle = tuple(slice(n // 2 - 10, n // 2 + 10) for n in array.shape[1:])
    assert 0 <= 1000 * float(np.median(array[0][middle])) <= 60  # brain, in Hounsfield units
