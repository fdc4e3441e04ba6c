"""A disk that is full, at every step of the way: a sentence, exit code 1, nothing half made, nothing lost."""

import numpy as np
import pytest
from full_disk import no_room

import viewalign
from viewalign.cli.main import run
from viewalign.data.readers.itk import sitk
from viewalign.tasks.manifest import TaskCase, write_manifest
from viewalign.tasks.spec import TaskSpec, write_spec

SMALL = ["steps=2", "batch=2", "views.patch_size=[16,16,16]", "heads.width=16", "runtime.workers=0", "validate.every=0"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """A folder in which every command has what it needs from those before it."""
    root = tmp_path_factory.mktemp("way")
    cases = []
    for k in range(6):
        image = root / "scans" / f"p{k}.nii.gz"
        image.parent.mkdir(exist_ok=True)
        array = np.random.default_rng(k).normal(5 + k % 2, 1, size=(20, 20, 20)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(image))
        cases.append(TaskCase(f"p{k}", f"p{k}", {"t1": image}, target=k % 2))
    kinds = {"name": "made up", "kind": "binary", "channels": [{"name": "t1"}], "classes": ["no", "yes"]}
    spec = TaskSpec.model_validate(kinds)
    write_spec(spec, root / "task")
    write_manifest(cases, spec, root / "task")
    for command in (
        ["index", "scans", "-o", "catalogue.json"],
        ["prepare", "catalogue.json", "-o", "store", "workers=0"],
        ["pretrain", "cva-resenc-xs", "store", "-o", "run", *SMALL],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            with pytest.raises(SystemExit) as ended:
                run(command)
        assert ended.value.code == 0, command
    return root


COMMANDS = {
    "index": ["index", "scans", "-o", "again.json"],
    "prepare": ["prepare", "catalogue.json", "-o", "again", "workers=0"],
    "prepare by workers": ["prepare", "catalogue.json", "-o", "again-w", "workers=1"],
    "pretrain": ["pretrain", "cva-resenc-xs", "store", "-o", "again-run", "--resume", *SMALL],
    "report": ["report", "run"],
    "export": ["export", "run", "-o", "again-export"],
    "embed": ["embed", "run", "task", "-o", "vectors.npz"],
    "embed, kept": ["embed", "run", "task", "-o", "vectors-2.npz", "cache=cache"],
}


def call(command, capsys):
    with pytest.raises(SystemExit) as ended:
        run(command)
    return ended.value.code, capsys.readouterr().err


def assert_told(code, told, folder):
    assert code == 1, told
    assert "Traceback" not in told
    assert any(word in told for word in ("full", "too large", "room", "space")), told
    assert not [path for path in folder.rglob("*") if "writing" in path.name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_a_sentence_and_the_same_command_works_later(name, way, monkeypatch, capsys):
    monkeypatch.chdir(way)
    before = {path for path in way.rglob("*") if path.is_file()}
    contents = {path: path.read_bytes() for path in before if path.suffix in {".json", ".html", ".jsonl", ".pt"}}
    with no_room(100):
        code, told = call(COMMANDS[name], capsys)
    assert_told(code, told, way)
    assert {path: path.read_bytes() for path in contents} == contents
    code, told = call(COMMANDS[name], capsys)
    assert code == 0, told


def test_predictions_on_a_full_disk(way, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(way)
    viewalign.finetune("classification", "task", "run", "tuned", epochs=1, folds=2, batch=2)
    command = ["predict", "tuned", "task", "-o", "said.csv"]
    assert call(command, capsys)[0] == 0
    kept = (way / "said.csv").read_bytes()
    with no_room(100):
        code, told = call(command, capsys)
    assert_told(code, told, way)
    assert (way / "said.csv").read_bytes() == kept


@pytest.mark.long
def test_fine_tuning_on_a_full_disk_resumes_later(way, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(way)
    command = ["finetune", "classification", "task", "epochs=1", "folds=2", "batch=2"]
    command += ["run", "-o", "tuned-2"]
    with no_room(20_000):
        code, told = call(command, capsys)
    assert_told(code, told, way / "tuned-2")
    code, told = call(command, capsys)
    assert code == 0, told
