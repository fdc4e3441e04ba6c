from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.data.readers.itk import sitk
from viewalign.data.store import Store
from viewalign.errors import UserError


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def save(path: Path, shape=(8, 9, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).normal(5, 1, shape).astype(np.float32)), str(path))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    save(tmp_path / "scans" / "a_T1.nii.gz")
    save(tmp_path / "scans" / "b_T1.nrrd")
    return tmp_path / "scans"


def test_from_a_catalogue(tmp_path: Path, scans: Path) -> None:
    run("index", scans, "-o", tmp_path / "cat.json")
    result = run("prepare", tmp_path / "cat.json", "-o", tmp_path / "store", "workers=0")
    assert result.exit_code == 0
    assert "2 images in the store; 2 prepared now." in result.stdout
    assert f"viewalign pretrain cva-resenc-xs {tmp_path / 'store'} -o run" in result.stdout
    assert len(Store.open(tmp_path / "store")) == 2
    again = run("prepare", tmp_path / "cat.json", "-o", tmp_path / "store", "workers=0")
    assert "0 prepared now; 2 already there." in again.stdout


def test_exclusions_of_the_index_are_counted(tmp_path: Path, scans: Path) -> None:
    save(scans / "flat.nii.gz", (9, 10))
    save(scans / "steady.nii.gz")
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkFloat32) + 2, str(scans / "steady.nii.gz"))
    run("index", scans, "-o", tmp_path / "cat.json")
    result = run("prepare", tmp_path / "cat.json", "-o", tmp_path / "store", "workers=0")
    assert result.exit_code == 3
    report = json.loads((tmp_path / "store/report.json").read_text())
    assert report["prepared"] == 2
    assert [Path(entry["file"]).name for entry in report["excluded"]] == ["flat.nii.gz", "steady.nii.gz"]
    assert "steady.nii.gz: the image is constant" in result.stdout


def test_from_a_folder(tmp_path: Path, scans: Path) -> None:
    arguments = ("spacing=none", "normalise=none", "workers=0")
    assert run("prepare", scans, "-o", tmp_path / "store", *arguments).exit_code == 0
    store = Store.open(tmp_path / "store")
    assert store.shape(0) == (8, 9, 10)
    assert store.recipe["spacing"] is None
    assert store.read(0).mean() == pytest.approx(5, abs=0.3)


def test_nothing_usable_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkFloat32), str(tmp_path / "scans/zero.nii.gz"))
    result = run("prepare", tmp_path / "scans", "-o", tmp_path / "store", "workers=0")
    assert result.exit_code == 1
    assert "No image could be used (1 tried)" in str(result.exception)
    assert json.loads((tmp_path / "store/report.json").read_text())["prepared"] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["spacing=1,x"], "spacing = '1,x': must be 'median', or needs one number or three"),
        (["spacing=0"], "must be at least 0.01"),
        (["spacing="], "spacing=null"),
        (["normalise=median"], "normalise = 'median': must be 'zscore'"),
        (["normalise=window"], "belong together"),
        (["window=5"], "window"),
        (["patch_size=1,2"], "patch_size"),
        (["shard=4/3"], "shard=4/3"),
        (["shard=4"], "shard=4: write i/n"),
        (["spacings=2"], "'spacing'"),
        (["view=96"], "'patch_size'"),
        (["--spacing", "1.5"], "spacing=1.5"),
        (["--fill-nonfinite"], "fill_nonfinite=true"),
        (["--spacin", "1.5"], "'spacing'"),
        (["-workers", "4"], "workers=4"),
        (["-x"], "has no flag -x"),
        (["more"], "'more'"),
        (["spacing", "=", "2"], "without spaces"),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, scans: Path, arguments: list[str], sentence: str) -> None:
    result = run("prepare", scans, "-o", tmp_path / "store", *arguments)
    assert isinstance(result.exception, UserError)
    assert sentence in str(result.exception)
    assert not (tmp_path / "store").exists()


def test_three_numbers_are_written_in_three_ways(tmp_path: Path, scans: Path) -> None:
    for number, words in enumerate(("spacing=2", "spacing=2,2,2", "spacing=[2,2,2]")):
        assert run("prepare", scans, "-o", tmp_path / f"{number}", "workers=0", words).exit_code == 0
        assert Store.open(tmp_path / f"{number}").recipe["spacing"] == [2.0, 2.0, 2.0]


def test_refused_by_their_headers_alone_is_reported_too(tmp_path: Path) -> None:
    save(tmp_path / "scans" / "flat.nii.gz", (9, 10))
    result = run("prepare", tmp_path / "scans", "-o", tmp_path / "store", "workers=0")
    assert result.exit_code == 1
    assert "2D" in json.loads((tmp_path / "store/report.json").read_text())["excluded"][0]["reason"]


def test_ctrl_c_explains_how_to_resume(tmp_path: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("viewalign.data.prepare.prepare_records", interrupted)
    result = run("prepare", scans, "-o", tmp_path / "store")
    assert result.exit_code == 130
    assert "run the same command again" in result.output


def test_nothing_to_prepare(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "No volumes were found" in str(run("prepare", tmp_path / "empty", "-o", tmp_path / "s").exception)
    (tmp_path / "catalogue.json").touch()
    for source, sentence in {"catalog.json": "mean 'catalogue.json'", "scans": "no folder or catalogue"}.items():
        assert sentence in str(run("prepare", tmp_path / source, "-o", tmp_path / "s").exception)
