"""Methods side by side are a study like any other, from the command line to the page."""

import json

import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import environment
from viewalign.methods import registry
from viewalign.studies.loading import comparison, finetuning_evaluations, methods_for

from .conftest import write_data

DATA = {"store": "s", "labelled": {"images": "i", "labels": "l", "learn": ["a"], "test": ["b"]}}


def test_every_method_has_its_place():
    found = set(methods_for("resenc-xs")) | set(methods_for("primus-xs"))
    assert found == set(registry.METHODS)
    assert "simmim" not in methods_for("resenc-xs"), "SimMIM is Primus' alone"


def test_what_differs_is_the_method_alone():
    made = comparison("resenc-xs", DATA, common={"batch": 8, "views": {"patch_size": [24, 32, 32]}}, steps=7, seeds=2)
    assert set(made.arms) == {"untrained", *methods_for("resenc-xs")}
    assert made.against == "mae"
    assert (made.steps, made.seeds) == (7, (0, 1))
    assert made.common == {"batch": 8, "views": {"patch_size": [24, 32, 32]}}


def test_an_unknown_method_or_network_is_answered_with_those_there_are():
    with pytest.raises(UserError, match=r"mea-resenc-xs.*cva.*mae"):
        comparison("resenc-xs", DATA, ["mea"])
    with pytest.raises(UserError, match=r"'resnet'.*primus-m.*resenc-xs"):
        comparison("resnet", DATA)


def test_finetuning_evaluations_differ_only_in_shots():
    evaluations = finetuning_evaluations("resenc-xs", [5, 10], {"epochs": 3, "patch_size": [16, 16, 16]})
    assert list(evaluations) == ["tuned-5", "tuned-10"]
    assert evaluations["tuned-5"]["settings"] == evaluations["tuned-10"]["settings"]
    assert evaluations["tuned-5"]["settings"]["epochs"] == 3
    assert comparison("resenc-xs", DATA, evaluations=evaluations).evaluations["tuned-10"].shots == 10
    assert finetuning_evaluations("primus-xs", [1])["tuned-1"]["settings"]["lr"] == 3e-4


@pytest.mark.slow
def test_the_command_writes_table_and_page_and_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    line = ["compare-methods", "store", "images", "labels", "learn=c0", "test=c1,c2", "methods=mae,genesis", "steps=1"]
    line += ["seeds=1", "shots=1", "threads=1", "-o", "out", "common.batch=2", "common.views.patch_size=16"]
    line += ["common.runtime.workers=0", "common.validate.every=0", "common.log.tensorboard=false"]
    pytest.importorskip("nnunetv2")
    few = ["finetune.spacing=dataset", "finetune.epochs=1", "finetune.device=cpu"]
    few = CliRunner().invoke(app, [*line, *few, "--dry-run"])
    assert few.output.count("evaluate/tuned-1/") == 3, few.output
    wrong = CliRunner().invoke(app, [*line, "finetune_shots=some", "--dry-run"])
    assert "finetune_shots" in str(wrong.exception)
    with monkeypatch.context() as patch:
        patch.setattr(environment.util, "find_spec", lambda name: None)
        without = CliRunner().invoke(app, [*line, "--dry-run"])
        assert "evaluated frozen only" in without.output
        assert without.output.count("to do") == 9
    line += ["finetune_shots=none"]
    listed = CliRunner().invoke(app, [*line, "--dry-run"])
    assert listed.exit_code == 0, listed.output
    assert listed.output.count("to do") == 9
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert {row["arm"] for row in rows} == {"untrained", "mae", "genesis"}
    assert "genesis" in (tmp_path / "out" / "report.html").read_text()
    again = CliRunner().invoke(app, [*line, "--dry-run"])
    assert "to do" not in again.output
