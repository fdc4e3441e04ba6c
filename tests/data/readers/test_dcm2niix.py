"""Series that are handed to dcm2niix: what it makes of them, what is not believed, and its limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import write_series, write_slice

from viewalign.data.catalogue import read_catalogue, write_catalogue
from viewalign.data.indexing import Index, index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.readers import dcm2niix
from viewalign.data.readers.files import read_volume
from viewalign.data.settings import PrepareSettings
from viewalign.data.sources import FindOptions
from viewalign.data.store import Store
from viewalign.errors import ExcludedImageError

pytest.importorskip("dcm2niix")


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 4000, (8, 10, 12)).astype(np.uint16)


def write_gaps(folder: Path, voxels: np.ndarray) -> Path:
    """Write slices 2.5 mm apart below and 5 mm apart above, as of a head CT."""
    heights = np.cumsum([0, 2.5, 2.5, 2.5, 5, 5, 5, 5])
    for number, (plane, height) in enumerate(zip(voxels, heights, strict=True)):
        write_slice(folder / f"{number}.dcm", plane, (0, 0, height), InstanceNumber=number + 1)
    return folder


def write_time_series(folder: Path, voxels: np.ndarray) -> Path:
    """Write two volumes that differ only in InstanceNumber."""
    for number in range(16):
        plane = voxels[number % 8] + 100 * (number // 8)
        tags = {"InstanceNumber": number + 1, "Manufacturer": "SIEMENS", "RepetitionTime": 2000}
        write_slice(folder / f"{number:02d}.dcm", plane, (0, 0, 2.5 * (number % 8)), **tags)
    return folder


def prepared(index: Index, folder: Path, **settings: object) -> Store:
    write_catalogue(index.collection, folder / "cat.json")
    records = list(read_catalogue(folder / "cat.json").records(folder))
    wanted = PrepareSettings(spacing=None, normalise="none", **settings)
    report = prepare_records(records, folder / "store", wanted, workers=0)
    assert report.excluded == []
    assert prepare_records(records, folder / "store", wanted, workers=0).skipped == report.made
    return Store.open(folder / "store")


def by_hand(folder: Path, out: Path) -> dict[str, np.ndarray]:
    """Convert a folder as a user would; return LPS voxels (…, D, H, W) by file name."""
    out.mkdir()
    program = dcm2niix.executable()
    assert program is not None
    subprocess.run([program, "-g", "i", "-b", "n", "-l", "n", "-f", "x", "-o", str(out), str(folder)], check=True)
    flip = {path.stem: nibabel.as_closest_canonical(nibabel.load(path)) for path in out.glob("*.nii")}
    return {name: np.flip(image.get_fdata(), (0, 1)).T for name, image in flip.items()}


def test_unequal_gaps_are_resampled_by_dcm2niix_and_prepared_another_day(tmp_path: Path, voxels: np.ndarray) -> None:
    index = index_sources([str(write_gaps(tmp_path / "scan", voxels))])
    (entry,) = index.entries
    assert "converted by dcm2niix v" in entry.suspects["header"]
    assert "because its slices are unequally spaced: 2.5 to 5 mm" in entry.suspects["header"]
    expected = by_hand(tmp_path / "scan", tmp_path / "out")["x_Eq_1"]
    np.testing.assert_array_equal(prepared(index, tmp_path).read(0)[0], expected)
    np.testing.assert_allclose(read_volume(tmp_path / "scan" / "0.dcm").spacing, entry.spacing, rtol=1e-6)


def write_tilted(folder: Path, voxels: np.ndarray, modality: str) -> Index:
    tilt = np.radians(12)
    for number, plane in enumerate(voxels):
        orientation = (1, 0, 0, 0, np.cos(tilt), -np.sin(tilt))
        tags = {"Modality": modality, "InstanceNumber": number + 1}
        write_slice(folder / f"{number}.dcm", plane, (0, 0, 5 * number), orientation, **tags)
    return index_sources([str(folder)])


def test_a_tilted_gantry_is_straightened_by_dcm2niix(tmp_path: Path, voxels: np.ndarray) -> None:
    (entry,) = write_tilted(tmp_path, voxels, "CT").entries
    assert "tilted by 12° against their axis" in entry.suspects["header"]
    assert entry.spacing[0] == pytest.approx(5 * np.cos(np.radians(12)), rel=1e-4)


def test_a_conversion_that_moves_slices_is_not_accepted(tmp_path: Path, voxels: np.ndarray) -> None:
    (excluded,) = write_tilted(tmp_path, voxels, "MR").excluded  # dcm2niix writes it as if it were not tilted
    assert "its slices are not at the positions in their headers" in excluded.reason


def test_volumes_of_a_time_series_are_counted_and_stored(tmp_path: Path, voxels: np.ndarray) -> None:
    folder = write_time_series(tmp_path / "scan", voxels)
    (excluded,) = index_sources([str(folder)]).excluded
    assert "2 frames (4-D)" in excluded.reason
    assert "converted by dcm2niix" in excluded.reason
    index = index_sources([str(folder)], FindOptions(frames=True))
    store = prepared(index, tmp_path, frames="volumes")
    assert len(store.ids) == 2
    for k in range(2):
        np.testing.assert_array_equal(store.read(k)[0], voxels + 100 * k)


@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_a_mosaic_is_no_slice(tmp_path: Path, voxels: np.ndarray, drift: float) -> None:
    for number in range(4):
        write_slice(tmp_path / f"{number}.ima", voxels[0], (0, 0, drift * number), ImageType=["ORIGINAL", "MOSAIC"])
    (excluded,) = index_sources([str(tmp_path)]).excluded
    assert "it is a mosaic" in excluded.reason
    assert "the number of slices in its mosaics is missing" in excluded.reason


def test_missing_slices_are_not_invented(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path, voxels)[3].unlink()
    (excluded,) = index_sources([str(tmp_path)]).excluded
    assert "1 slice missing" in excluded.reason


def test_without_the_extra_the_reason_names_cause_and_command(
    tmp_path: Path, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcm2niix, "executable", lambda: None)
    write_gaps(tmp_path, voxels)
    (excluded,) = index_sources([str(tmp_path)]).excluded
    assert "its slices are unequally spaced: 2.5 to 5 mm" in excluded.reason
    assert "pip install dcm2niix" in excluded.reason
    with pytest.raises(ExcludedImageError, match="pip install"):
        read_volume(tmp_path / "0.dcm")


@pytest.mark.slow
def test_a_conversion_has_limits_of_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcm2niix, "_SECONDS", 1)
    with pytest.raises(dcm2niix.ConversionError, match="took more than"):
        dcm2niix._run([sys.executable, "-c", "import time; time.sleep(60)"], 1)
    monkeypatch.setattr(dcm2niix, "_SECONDS", 60)
    monkeypatch.setattr(dcm2niix, "_BASE_BYTES", 200_000_000)
    log = dcm2niix._run([sys.executable, "-c", "import time; time.sleep(0.2); bytearray(1 << 30)"], 1)
    assert "MemoryError" in log
