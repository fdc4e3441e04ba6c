"""Real volumes of four kinds, a DICOM series among them, go from files to a trained encoder in one store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app


@pytest.mark.long
def test_index_prepare_and_pretrain_on_four_real_datasets(shared_data: Path, tmp_path: Path) -> None:
    names = (
        "dicom_head_mr",
        "ms_raw/patient04_study1_*",
        "heads/volpack*",
        "hippocampus/images/hippocampus_00*",
    )
    (tmp_path / "flat.nii").write_text("no image")
    catalogue, store, run = (str(tmp_path / name) for name in ("cat.json", "store", "run"))
    commands = (
        (3, "index", *(str(shared_data / name) for name in names), str(tmp_path / "flat.nii"), "-o", catalogue),
        (3, "prepare", catalogue, "-o", store, "workers=1"),
        (0, "pretrain", "cva-resenc-xs", store, "-o", run, "steps=2"),
    )
    for code, *arguments in commands:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
    report = json.loads((tmp_path / "store" / "report.json").read_text())
    assert [Path(entry["file"]).name for entry in report["excluded"]] == ["flat.nii"]
    assert report["prepared"] >= 8
    datasets = {entry["dataset"] for entry in json.loads((tmp_path / "cat.index.json").read_text())["entries"]}
    assert len(datasets) == 4
    assert (tmp_path / "run" / "checkpoints").is_dir()
