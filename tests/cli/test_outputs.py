"""A command replaces nothing but an earlier output of the same command."""

import shutil

import numpy as np
import pytest
import typer.main
from doc_world import bids, nnunet_dataset, save
from run_fixtures import TINY, smooth_volumes
from typer.core import TyperGroup
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.compat.task_conversion import ConvertSettings
from viewalign.compat.task_layouts import convert
from viewalign.data.store import store_from_arrays
from viewalign.errors import UserError
from viewalign.evaluation.embedding import Embeddings
from viewalign.finetuning.segmentation.nnunet import Machine
from viewalign.finetuning.segmentation.predict import predict
from viewalign.recipes.loading import load
from viewalign.tasks.manifest import TaskCase
from viewalign.training.run import pretrain
from viewalign.utils.outputs import check_file, check_folder, contains, has_keys

pytestmark = pytest.mark.slow

FILES = {
    "index": ("index scans", "mine.json"),
    "estimate": ("estimate scans cva-resenc-xs", "mine.json"),
    "report": ("report run", "mine.html"),
    "report of several": ("report run again", "mine.html"),
    "export format=fomo": ("export run format=fomo", "mine.pth"),
    "predict": ("predict tuned task", "mine.csv"),
    "embed": ("embed run task", "mine.npz"),
    "embed as a table": ("embed run task", "mine.parquet"),
    "probe": ("probe task run", "mine.json"),
}
FOLDERS = {
    "prepare": "prepare scans",
    "pretrain": "pretrain cva-resenc-xs store network=resenc-xxs",
    "pretrain --dry-run": "pretrain cva-resenc-xs store network=resenc-xxs --dry-run",
    "export": "export run",
    "export format=nnssl": "export run format=nnssl",
    "finetune segmentation": "finetune segmentation Dataset001_Made run",
    "finetune classification": "finetune classification task run",
    "finetune regression": "finetune regression ages run",
    "gain": "gain store --labelled Dataset001_Made",
    "study": "study geometry-laptop data",
    "compare-methods": "compare-methods store images labels learn=a test=b",
    "demo": "demo",
    "fetch": "fetch hippocampus -y",
    "fomo prepare": "fomo prepare Task_2 task=2",
    "fomo submission": "fomo submission run",
}
INSIDE = {
    "evaluate": ("evaluate images labels", ("evaluation.json", "cases.csv")),
    "compare": ("compare a b", ("comparison.json",)),
    "task convert": ("task convert bids ABIDE target=group channels=T1w", ("manifest.csv", "task.yaml")),
    "export format=onnx": ("export tuned format=onnx", ("model.onnx", "model.json")),
}
"""Commands that add files to a folder, which may have others, and the names of these files."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with scans, a store, a run of one step, tasks and a dataset."""
    root = tmp_path_factory.mktemp("world")
    for name, array in smooth_volumes(4).items():
        save(root / "scans" / f"{name}.nii.gz", array)
    store_from_arrays(root / "store", smooth_volumes(4))
    pretrain(load("cva-resenc-xs", [f"data={root / 'store'}", f"out={root / 'run'}", "steps=1"], common=TINY))
    shutil.copytree(root / "run", root / "again")
    bids(root / "ABIDE")
    convert("bids", root / "ABIDE", root / "task", ConvertSettings(target="group", channels=("T1w",)))
    ages = (root / "ABIDE" / "participants.tsv").read_text()
    (root / "ABIDE" / "participants.tsv").write_text(ages.replace("control", "31").replace("patient", "42"))
    convert(
        "bids", root / "ABIDE", root / "ages", ConvertSettings(target="group", channels=("T1w",), kind="regression")
    )
    (root / "ABIDE" / "participants.tsv").write_text(ages)
    nnunet_dataset(root / "Dataset001_Made", "made")
    return root


@pytest.fixture
def inside(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


def refused(words, out):
    """Run a command that must not write, and return its message."""
    result = CliRunner().invoke(app, [*words.split(), "-o", str(out)])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.mark.parametrize(("words", "name"), FILES.values(), ids=FILES)
def test_a_file_of_another_use_is_kept(words, name, inside, tmp_path):
    (tmp_path / name).write_text('{"mine": 1}')
    reason = "" if "fomo" in words else " and is no earlier "
    assert f"{name} is not written: it exists{reason}" in refused(words, tmp_path / name)
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    if "fomo" not in words:
        (tmp_path / "brain.nii.gz").write_text("mine")
        assert "brain.nii.gz is not written: its name must end in ." in refused(words, tmp_path / "brain.nii.gz")
        assert (tmp_path / "brain.nii.gz").read_text() == "mine"
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "folder is not written: it is a folder" in refused(words, folder)


@pytest.mark.parametrize("words", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_of_another_use_is_kept(words, inside, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    assert "used is not written: it contains notes.txt" in refused(words, tmp_path / "used")
    assert [one.name for one in (tmp_path / "used").rglob("*") if not one.name.startswith(".")] == ["notes.txt"]
    (tmp_path / "file").write_text("mine")
    assert "file" in refused(words, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("words", "names"), INSIDE.values(), ids=INSIDE)
def test_a_file_of_another_use_in_a_folder_is_kept(words, names, inside, tmp_path):
    for name in names:
        (tmp_path / name).write_text('{"mine": 1}')
        assert "is not written: it " in refused(words, tmp_path)
        assert [one.name for one in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == '{"mine": 1}'
        (tmp_path / name).unlink()


def test_every_command_with_an_output_is_in_a_table():
    def commands(group, path=()):
        for name, command in group.commands.items():
            if isinstance(command, TyperGroup):
                yield from commands(command, (*path, name))
            elif any("-o" in param.opts for param in command.params):
                yield " ".join((*path, name))

    assert set(commands(typer.main.get_command(app))) <= {*FILES, *FOLDERS, *INSIDE}


def test_an_earlier_output_is_replaced(inside, tmp_path):
    for words, name in ((FILES["index"][0], "cat.json"), (FILES["report"][0], "page.html")):
        for _ in range(2):
            assert CliRunner().invoke(app, [*words.split(), "-o", str(tmp_path / name)]).exit_code == 0
    embeddings = Embeddings(("a",), np.zeros((1, 2), np.float32), None, (), {})
    embeddings.write(tmp_path / "mine.npz")
    check_file(tmp_path / "mine.npz", "file", (".npz",), lambda path: bool(Embeddings.read(path)))


def test_what_may_be_replaced(tmp_path):
    file, folder = tmp_path / "a.json", tmp_path / "folder"
    check_file(file, "thing", (".json",))
    file.touch()
    check_file(file, "thing", (".json",))
    file.write_text('{"a": 1, "b": 2}')
    check_file(file, "thing", ours=has_keys("a", "b"))
    check_file(file, "thing", ours=contains('"b"'))
    for ours in (None, has_keys("c"), contains("c")):
        with pytest.raises(UserError, match="it exists"):
            check_file(file, "thing", ours=ours)
    check_folder(folder, "thing")
    folder.mkdir()
    (folder / ".lock").touch()
    check_folder(folder, "thing", False, (".lock",))
    check_folder(folder, "thing", ours=True)
    with pytest.raises(UserError, match=r"it contains \.lock\. Name"):
        check_folder(folder, "thing")
    with pytest.raises(UserError, match=r"it contains \.lock and is no earlier thing\. Name"):
        check_folder(folder, "thing", ours=False)


def test_masks_are_not_written_among_images_or_labels(tmp_path):
    (tmp_path / "raw" / "imagesTr").mkdir(parents=True)
    (tmp_path / "raw" / "labelsTr").mkdir()
    (tmp_path / "raw" / "labelsTr" / "a.nii.gz").touch()
    cases = [TaskCase("a", "a", {"t1": tmp_path / "a.nii.gz"})]
    for out, reason in ((".", "of images"), ("raw", "of images"), ("raw/labelsTr", "it contains a.nii.gz")):
        with pytest.raises(UserError, match=reason):
            predict(None, cases, tmp_path / out, Machine.choose("cpu", 1, 1))


def test_the_job_script_of_a_study_replaces_no_other(inside, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\nrsync -a results backup\n")
    result = CliRunner().invoke(app, ["study", "geometry-laptop", "data", "-o", "new", "--slurm", str(script)])
    assert "job.sh is not written: it exists" in str(result.exception)
