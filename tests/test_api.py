"""The Python calls do the same as the commands, with the same messages."""

import inspect
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.data.readers.itk import sitk
from viewalign.data.store import Store
from viewalign.errors import UserError
from viewalign.evaluation.embedding import Embeddings
from viewalign.tasks.manifest import TaskCase, write_manifest
from viewalign.tasks.spec import TaskSpec, write_spec

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "steps": 2,
    "batch": 2,
    "views": {"patch_size": (16, 16, 16)},
    "heads.width": 16,
    "runtime": {"workers": 0, "precision": "fp32"},
    "validate": {"every": 0},
    "log": {"tensorboard": False},
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder of six images of six people, and one file that is no image."""
    folder = tmp_path_factory.mktemp("scans")
    for k in range(6):
        rng = np.random.default_rng(k)
        image = np.kron(rng.normal(size=(5, 5, 5)), np.ones((4, 4, 4))) + 0.1 * rng.normal(size=(20, 20, 20)) + 5
        sitk.WriteImage(sitk.GetImageFromArray(image.astype(np.float32)), str(folder / f"p{k}.nii.gz"))
    (folder / "broken.nii.gz").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    root = tmp_path_factory.mktemp("api")
    report = viewalign.prepare(scans, root / "store", workers=0)
    assert (report.prepared, len(report.excluded)) == (6, 1)
    outcome = viewalign.pretrain("cva-resenc-xs", root / "store", root / "run", **SMALL)
    assert outcome.finished
    return outcome.folder.root


@pytest.fixture(scope="module")
def task(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    spec = TaskSpec.model_validate(
        {"name": "made up", "kind": "binary", "channels": [{"name": "t1"}], "classes": ["no", "yes"]}
    )
    cases = [TaskCase(f"c{k}", f"s{k}", {"t1": scans / f"p{k}.nii.gz"}, target=k % 2) for k in range(6)]
    write_spec(spec, folder)
    write_manifest(cases, spec, folder)
    return folder


@pytest.mark.slow
def test_prepare_makes_the_store_of_the_command(scans, run, tmp_path):
    done = CliRunner().invoke(app, ["prepare", str(scans), "-o", str(tmp_path / "store"), "workers=0"])
    assert done.exit_code == 3, done.output
    ours, theirs = Store.open(run.parent / "store"), Store.open(tmp_path / "store")
    assert len(ours) == len(theirs) == 6
    assert ours.recipe == theirs.recipe
    files = [
        sorted(p.relative_to(root) for p in root.rglob("*.b2nd")) for root in (run.parent / "store", tmp_path / "store")
    ]
    assert files[0] == files[1]
    for name in files[0]:
        assert (run.parent / "store" / name).read_bytes() == (tmp_path / "store" / name).read_bytes()


def test_settings_of_a_run_in_groups_and_dotted(run):
    told = (run / "config.yaml").read_text()
    assert "width: 16" in told
    assert "tensorboard: false" in told


@pytest.mark.slow
def test_embed_is_the_command_s(run, task, scans, tmp_path):
    found = viewalign.embed(run, task, patch_size=16)
    done = CliRunner().invoke(app, ["embed", str(run), str(task), "-o", str(tmp_path / "e.npz"), "patch_size=16"])
    assert done.exit_code == 0, done.output
    assert np.array_equal(found.features, Embeddings.read(tmp_path / "e.npz").features)
    plain = viewalign.embed(run, [scans / "p0.nii.gz", scans / "broken.nii.gz"], patch_size=(16, 16, 16))
    assert np.array_equal(plain.features[0], found.features[0])
    assert plain.excluded[0][0].endswith("broken.nii.gz")
    assert viewalign.load_encoder(run).size == (16, 16, 16)


@pytest.mark.slow
def test_finetune_and_predict(run, task, tmp_path):
    tuned = viewalign.finetune("classification", task, run, tmp_path / "tuned", epochs=1, folds=2, batch=2)
    assert 0 <= tuned.score.values["auroc"] <= 1
    said = viewalign.predict(tuned.folder, task, tmp_path / "p.csv")
    assert said.columns == ("p_no", "p_yes")
    assert all(value.sum() == pytest.approx(1) for value in said.values.values())
    done = CliRunner().invoke(app, ["predict", str(tuned.folder), str(task), "-o", str(tmp_path / "q.csv")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "q.csv").read_bytes()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: viewalign.prepare("nowhere", "s", spacings=1), "'spacings'.*'spacing'"),
        (
            lambda: viewalign.prepare("nowhere", "s", spacing=-1),
            r"spacing = -1.*median.*0\.01",
        ),
        (lambda: viewalign.prepare("nowhere.json", "s"), "nowhere.json"),
        (lambda: viewalign.pretrain("cva-resenc-xs", "s", "r", optim={"learningrate": 1}), r"'optim\.lr'"),
        (lambda: viewalign.pretrain("cva-resenc-xs", "s", "r", batchsize=1), "'batch'"),
        (lambda: viewalign.pretrain("cva-resnet-xs", "s", "r"), "'cva-resenc-xs'"),
        (lambda: viewalign.pretrain("cva-resenc-xs"), "store"),
        (lambda: viewalign.embed("nowhere", []), "empty"),
        (lambda: viewalign.embed("nowhere", ["a.nii.gz"]), "nowhere"),
        (lambda: viewalign.finetune("detection", "t", "e", "o"), "segmentation.*classification.*regression"),
        (lambda: viewalign.finetune("regression", "nowhere", "e", "o"), "nowhere"),
        (lambda: viewalign.predict("nowhere", "t"), "nowhere"),
    ],
)
def test_mistakes_are_sentences(call, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        call()


def test_a_task_of_another_kind_is_reported(task, tmp_path):
    with pytest.raises(UserError, match=r"binary.*classification"):
        viewalign.finetune("regression", task, "untrained:resenc-xxs", tmp_path / "o")


def test_names_are_there_for_editors():
    assert {"prepare", "pretrain", "load_encoder", "embed", "finetune", "predict"} <= set(dir(viewalign))
    for name in viewalign.__all__:
        assert getattr(viewalign, name) is not None
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = viewalign.nothing


def example(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-3000:]
    return out.stdout


@pytest.mark.long
def test_the_examples_run(scans, task, tmp_path):
    said = example("pretrain_on_a_folder.py", scans, tmp_path, "--steps", 2, "--side", 16)
    assert "6 images prepared, 1 excluded" in said
    assert (tmp_path / "run" / "report.html").is_file()
    said = example("find_similar_images.py", tmp_path / "run", *(scans / f"p{k}.nii.gz" for k in range(4)))
    assert said.count("->") == 4
    said = example("classify.py", task, tmp_path / "run", "resenc-xxs", tmp_path, "--epochs", 1, "--folds", 2)
    assert "pretrained" in said
    assert "6 cases in" in said


def shown(function):
    """Return the example of a docstring; nnU-Net's line is left out, for it takes minutes."""
    block = re.search(r"```python\n(.+?)```", inspect.getdoc(function), re.DOTALL)
    lines = [line for line in block[1].splitlines() if '"segmentation"' not in line]
    return textwrap.dedent("\n".join(lines))


@pytest.mark.long
def test_the_examples_of_docstrings_run(scans, task, tmp_path, monkeypatch, capsys):
    shutil.copytree(scans, tmp_path / "scans")
    shutil.copytree(task, tmp_path / "task")
    shutil.copytree(task, tmp_path / "new")
    for name in "ab":
        shutil.copy(scans / "p0.nii.gz", tmp_path / f"{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    calls = [viewalign.prepare, viewalign.pretrain, viewalign.embed, viewalign.finetune, viewalign.predict]
    pretrain, finetune = viewalign.pretrain, viewalign.finetune
    monkeypatch.setattr(viewalign, "pretrain", lambda *a, **k: pretrain(*a, **{**SMALL, **k, "steps": 2}))
    monkeypatch.setattr(viewalign, "finetune", lambda *a, **k: finetune(*a, **{**k, "epochs": 1, "folds": 2}))
    for call in calls:
        exec(compile(shown(call), call.__name__, "exec"), {"viewalign": viewalign})
    told = capsys.readouterr().out
    assert "broken.nii.gz" in told
    assert "auroc" in told
    assert "('a.nii.gz', 'b.nii.gz') (2, " in told or "['a.nii.gz', 'b.nii.gz'] (2, " in told
    assert (tmp_path / "predictions.csv").is_file()
