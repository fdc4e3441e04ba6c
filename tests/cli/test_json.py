"""Results of commands as JSON: one object, and nothing else on standard output."""

import json
import shutil

import numpy as np
import pytest
from run_fixtures import TINY, smooth_volumes

from viewalign.cli.main import app, run
from viewalign.data.readers.itk import sitk
from viewalign.data.store import store_from_arrays
from viewalign.recipes.loading import load
from viewalign.training.run import pretrain

pytestmark = pytest.mark.slow


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with scans, label maps, a store and a run of one step."""
    root = tmp_path_factory.mktemp("world")
    for name, array in smooth_volumes(2).items():
        save(root / "scans" / f"{name}.nii.gz", array)
    (root / "scans" / "broken.nii.gz").write_bytes(b"no image")
    for k in range(2):
        for name, side in (("truth", 6), ("guess", 5), ("other", 4)):
            labels = np.zeros((12, 12, 12), np.uint8)
            labels[2 : 2 + side, 2:8, 2:8] = 1
            save(root / name / f"case_{k}.nii.gz", labels)
    store_from_arrays(root / "store", smooth_volumes(4))
    places = [f"data={root / 'store'}", f"out={root / 'run'}", "steps=1"]
    pretrain(load("cva-resenc-xs", places, common=TINY))
    return root


def call(capsys, *arguments):
    """Return exit code, standard output and standard error."""
    code = 0
    try:
        run([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


COMMANDS = {
    "doctor": {"findings", "machine"},
    "encoders": {"openmind-mae-resenc-l"},
    "encoders openmind-mae-resenc-l": {"name", "source", "spacing"},
    "fetch": {"datasets", "weights"},
    "index scans -o cat.json": {"catalogue", "images", "subjects", "excluded"},
    "prepare scans -o prepared workers=0": {"store", "prepared", "made", "excluded"},
    "methods": {"cva", "mae"},
    "recipes": {"cva-resenc-l"},
    "recipes cva-resenc-l": {"method", "optim", "views"},
    "settings": {"commands"},
    "settings prepare": {"command", "settings"},
    "report run": {"report"},
    "export run": {"path", "text"},
    "verify run": {"kind", "checked", "problems"},
    "verify store": {"kind", "checked", "problems"},
    "study --list": {"geometry-laptop"},
}
SLOW = {
    "evaluate guess truth": {"summary", "cases", "folder"},
    "compare guess/evaluation other/evaluation -o both": {"difference", "cases", "page"},
    "estimate scans cva-resenc-xs batch=2 views.patch_size=16": {"preparation", "pretraining"},
}


@pytest.mark.parametrize("command", [*COMMANDS, *(pytest.param(one, marks=pytest.mark.long) for one in SLOW)])
def test_the_result_is_the_only_output(command, world, capsys, monkeypatch):
    monkeypatch.chdir(world)
    if command.startswith("compare"):
        for name in ("guess", "other"):
            call(capsys, "evaluate", name, "truth")
    plain, text, _ = call(capsys, *command.split())
    shutil.rmtree("prepared", ignore_errors=True)
    code, out, _ = call(capsys, *command.split(), "--json")
    assert (code, out.count("\n")) == (plain, 1)
    facts = json.loads(out, parse_constant=pytest.fail)  # NaN and infinities are not JSON
    assert {**COMMANDS, **SLOW}[command] <= facts.keys()
    assert text != out


def test_excluded_files_are_in_the_result(world, capsys, monkeypatch):
    monkeypatch.chdir(world)
    code, out, _ = call(capsys, "index", "scans", "-o", "again.json", "--json")
    assert code == 3
    (excluded,) = json.loads(out)["excluded"]
    assert excluded["file"].endswith("broken.nii.gz")


def test_output_of_libraries_goes_to_standard_error(capsys, monkeypatch):
    import viewalign

    def report(run, out):
        print("a note of a library")
        return run[0] / "report.html"

    monkeypatch.setattr(viewalign, "report", report, raising=False)
    code, out, err = call(capsys, "report", "run", "--json")
    assert (code, json.loads(out)) == (0, {"report": "run/report.html"})
    assert "a note of a library" in err


def test_an_error_prints_no_result(capsys):
    code, out, err = call(capsys, "report", "nowhere", "--json")
    assert (code, out) == (1, "")
    assert "nowhere" in err


def test_every_command_has_the_flag():
    import typer.main
    from typer.core import TyperGroup

    def commands(group):
        for command in group.commands.values():
            yield from commands(command) if isinstance(command, TyperGroup) else [command]

    for command in commands(typer.main.get_command(app)):
        assert {"--json", "-q", "-v"} <= {name for param in command.params for name in param.opts}, command.name
