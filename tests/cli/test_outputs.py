"""A command does not overwrite a file or folder of another kind than it writes."""

import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.finetuning.segmentation.nnunet import Machine
from viewalign.finetuning.segmentation.predict import predict
from viewalign.tasks.manifest import TaskCase


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["index", "scans", "-o"], "brain.nii.gz"),
        (["estimate", "scans", "cva-resenc-xs", "-o"], "brain.nii.gz"),
        (["probe", "task", "run", "-o"], "manifest.csv"),
        (["embed", "run", "task", "-o"], "manifest.csv"),
        (["predict", "tuned", "task", "-o"], "task.yaml"),
        (["report", "run", "other", "-o"], "config.yaml"),
    ],
)
def test_a_file_of_another_kind_is_kept(words, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("content")
    for run in ("run", "other"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.yaml").write_text("method: cva\n")
    result = CliRunner().invoke(app, [*words, name])
    assert isinstance(result.exception, UserError), result.output
    assert f"{name} is not written: its name must end in" in str(result.exception)
    assert (tmp_path / name).read_text() == "content"


def test_masks_are_not_written_among_images(tmp_path):
    (tmp_path / "raw" / "imagesTr").mkdir(parents=True)
    cases = [TaskCase("a", "a", {"t1": tmp_path / "a.nii.gz"})]
    for out in (tmp_path, tmp_path / "raw"):
        with pytest.raises(UserError, match="is a folder of images"):
            predict(None, cases, out, Machine.choose("cpu", 1, 1))


@pytest.mark.parametrize("words", [["gain", "store", "--labelled", "task"], ["study", "geometry-laptop", "data"]])
def test_a_study_does_not_write_into_a_store(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").touch()
    result = CliRunner().invoke(app, [*words, "-o", "store", "--dry-run"])
    assert "store contains store.json: it has another use" in str(result.exception)
    assert [one.name for one in (tmp_path / "store").iterdir()] == ["store.json"]
