"""An estimate against the store that is then made."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from viewalign.data import estimate as estimating
from viewalign.data.channels import stacked
from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.settings import PrepareSettings
from viewalign.data.sources import FindOptions
from viewalign.data.store import Store


@pytest.fixture
def found(tmp_path: Path, write_image, make_head):
    for n in range(8):
        write_image(tmp_path / "scans" / f"scan{n}.nii.gz", make_head(n, (24 + n, 28, 20)), (1.0, 1.5, 2.0))
    write_image(tmp_path / "scans" / "steady.nii.gz", np.ones((9, 9, 9), np.float32))
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no image")
    return index_sources([str(tmp_path / "scans")])


def test_an_estimate_comes_near_what_then_happens(tmp_path: Path, found) -> None:
    settings = PrepareSettings(dtype="float16")
    records = list(found.collection.records())
    survey = estimating.survey(records, settings)
    trial = estimating.try_some(survey.sizes, settings, seconds=60.0)
    report = prepare_records(records, tmp_path / "s", settings, 0, found.excluded)
    store = Store.open(tmp_path / "s")
    size = sum(path.stat().st_size for path in (tmp_path / "s" / "volumes").rglob("*.b2nd"))
    assert estimating.disk_bytes(survey, trial) == pytest.approx(size, rel=0.02)
    assert estimating.excluded_in_all(survey, trial, found.excluded) == len(report.excluded) == 2
    assert trial.images == len(store) == 8
    assert estimating.core_seconds(survey, trial) > 0
    assert survey.largest == max(int(np.prod(each.shape)) for each in survey.sizes)
    assert survey.smaller_than((30, 30, 30)) == sum(each.shape[0] < 30 or min(each.shape) < 30 for each in survey.sizes)


def test_of_a_large_catalogue_a_part_is_looked_at(found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "MOST_HEADERS", 3)
    records = list(found.collection.records())
    survey = estimating.survey(records, PrepareSettings(spacing=None))
    assert (survey.looked_at, survey.images, survey.factor) == (3, 9, 3.0)
    again = estimating.survey(records, PrepareSettings(spacing=None))
    assert [each.record for each in again.sizes] == [each.record for each in survey.sizes]


def compare(source: Path, store: Path, settings: PrepareSettings, frames: bool = False) -> estimating.Trial:
    """Estimate and prepare images, check that exclusions and bytes agree, and return the trial."""
    found = index_sources([str(source)], FindOptions(frames=frames))
    records, unused = stacked(found.collection.records(), settings.channels)
    survey = estimating.survey(records, settings)
    trial = estimating.try_some(survey.sizes, settings, seconds=60.0)
    report = prepare_records(found.collection.records(), store, settings, 0, found.excluded)
    assert estimating.excluded_in_all(survey, trial, [*found.excluded, *unused]) == len(report.excluded)
    size = sum(path.stat().st_size for path in (store / "volumes").rglob("*.b2nd"))
    assert estimating.disk_bytes(survey, trial) == pytest.approx(size, rel=0.02)
    return trial


@pytest.mark.parametrize("how", ["volumes", "channels"])
def test_of_frames(tmp_path: Path, make_head, how: str) -> None:
    (tmp_path / "scans").mkdir()
    for n in range(2):
        array = np.stack([make_head(10 * n + k) for k in range(3)], -1)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "scans" / f"bold{n}.nii.gz")
    trial = compare(tmp_path / "scans", tmp_path / "s", PrepareSettings(frames=how), frames=True)
    assert (trial.images, trial.excluded) == (2, [])


def test_of_channels(tmp_path: Path, write_image, make_head) -> None:
    for n in range(3):
        for k, modality in enumerate(("T1w", "T2w")):
            write_image(tmp_path / "scans" / f"sub-{n}_{modality}.nii.gz", make_head(10 * n + k))
    write_image(tmp_path / "scans" / "sub-3_T1w.nii.gz", make_head(99))
    trial = compare(tmp_path / "scans", tmp_path / "s", PrepareSettings(channels=("T1w", "T2w")))
    assert (trial.images, trial.excluded) == (3, [])


def test_label_maps_by_their_voxels_are_excluded(tmp_path: Path, write_image, make_head) -> None:
    write_image(tmp_path / "scans" / "a.nii.gz", make_head())
    write_image(tmp_path / "scans" / "b.nii.gz", (make_head() > 60).astype(np.uint8))
    found = index_sources([str(tmp_path / "scans")])
    survey = estimating.survey(found.collection.records(), PrepareSettings())
    trial = estimating.try_some(survey.sizes, PrepareSettings())
    assert (trial.images, estimating.excluded_in_all(survey, trial, [])) == (1, 1)


@pytest.mark.long
def test_the_command_writes_what_it_prints(tmp_path: Path, found, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from viewalign.cli.main import app

    monkeypatch.chdir(tmp_path)
    arguments = ["estimate", str(tmp_path / "scans"), "cva-resenc-xs", "views.patch_size=16", "batch=2", "-o", "e.json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "e.json").read_text())
    assert told["preparation"]["images"] == 9
    assert told["preparation"]["excluded"] == 2
    assert told["pretraining"]["here"]["seconds"] > 0
    assert "Smaller than 16×16×16" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.json", "scans"]
