from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_series
from pydicom import Dataset

from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.readers.suv import suv_factor
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store
from viewalign.errors import ExcludedImageError

HEADER = {
    **{"Modality": "PT", "Units": "BQML", "DecayCorrection": "START", "PatientWeight": "80"},
    **{"SeriesDate": "20260102", "SeriesTime": "003000", "AcquisitionDate": "20260102", "AcquisitionTime": "003000.50"},
}


def treatment(**tags: str) -> Dataset:
    data = Dataset()
    data.RadionuclideTotalDose, data.RadionuclideHalfLife = "400000000", "6000"
    data.RadiopharmaceuticalStartTime = "225000.00"  # 100 minutes before the scan, before midnight
    for key, value in tags.items():
        setattr(data, key, value)
    return data


def write(folder: Path, inner: Dataset, **tags: str) -> Path:
    voxels = np.random.default_rng(0).integers(0, 5000, (20, 24, 22)).astype(np.int16)
    header = {**HEADER, **tags, "RadiopharmaceuticalInformationSequence": [inner]}
    return min(write_series(folder, voxels, **header))


@pytest.mark.parametrize(
    ("inner", "tags", "factor"),
    [
        ({}, {}, 80_000 / 200e6),  # one half-life of 100 minutes
        ({}, {"DecayCorrection": "ADMIN"}, 80_000 / 400e6),
        ({"RadiopharmaceuticalStartDateTime": "20260101205000.000000+0100"}, {}, 80_000 / 400e6 * 2 ** (220 / 100)),
    ],
)
def test_the_factor(tmp_path: Path, inner: dict[str, str], tags: dict[str, str], factor: float) -> None:
    assert suv_factor(write(tmp_path, treatment(**inner), **tags)) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    ("inner", "tags", "reason"),
    [
        ({}, {"Units": "CNTS"}, "needs voxels in Bq/ml; its units are CNTS"),
        ({}, {"PatientWeight": "0"}, "needs PatientWeight"),
        ({"RadionuclideTotalDose": ""}, {}, "needs RadionuclideTotalDose"),
        ({"RadionuclideHalfLife": ""}, {}, "needs RadionuclideHalfLife"),
        ({"RadiopharmaceuticalStartTime": ""}, {}, "needs RadiopharmaceuticalStartTime"),
        ({"RadiopharmaceuticalStartDateTime": "20250101205000"}, {}, "outside the day before"),
        ({}, {"DecayCorrection": "NONE"}, "DecayCorrection START or ADMIN, not NONE"),
        ({}, {"SeriesTime": "004000"}, "its SeriesTime is after its acquisition"),
        ({}, {"AcquisitionDate": ""}, "needs AcquisitionDate and AcquisitionTime"),
    ],
)
def test_what_a_header_lacks_is_named(tmp_path: Path, inner: dict[str, str], tags: dict[str, str], reason: str) -> None:
    with pytest.raises(ExcludedImageError, match=reason):
        suv_factor(write(tmp_path, treatment(**inner), **tags))


def test_other_formats_need_to_be_in_suv() -> None:
    assert suv_factor(Path("a.nii.gz"), "SUV") == 1
    with pytest.raises(ExcludedImageError, match="only DICOM headers state"):
        suv_factor(Path("a.nii.gz"), "Bq/ml")


def test_a_store_in_suv(tmp_path: Path, write_image: Callable[..., Path], make_head: Callable[..., np.ndarray]) -> None:
    write(tmp_path / "scans/pet", treatment(), PatientID="a")
    write_image(tmp_path / "scans/b_T1w.nii.gz", make_head())
    records = list(index_sources([str(tmp_path / "scans")]).collection.records())
    stores = []
    for suv in (False, True):
        settings = PrepareSettings(spacing=None, normalise="none", suv=suv)
        prepare_records(records, tmp_path / str(suv), settings, workers=0)
        stores.append(Store.open(tmp_path / str(suv)))
    plain, scaled = stores
    for k, modality in enumerate(plain.modalities):
        factor = 80_000 / 200e6 if modality == "PET" else 1
        np.testing.assert_allclose(scaled.read(k), factor * plain.read(k), rtol=1e-5)
    assert "suv" not in PrepareSettings().essence()  # stores of earlier versions stay usable
    assert "PET in SUV" in PrepareSettings(suv=True).describe()
