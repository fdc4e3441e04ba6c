"""Every option of `viewalign finetune segmentation` arrives as the setting that it means."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from viewalign import api
from viewalign.cli.main import app

PLACES = ["--dataset", "4", "--encoder", "run", "-o", "liver"]


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What the call that does the work was given."""
    given = {}

    def record(kind, dataset, encoder, out, teller, **settings):
        given.update(settings, kind=kind, dataset=dataset, encoder=encoder, out=str(out))
        return SimpleNamespace(out=tmp_path)

    monkeypatch.setattr(api, "finetune", record)
    return given


def test_defaults_leave_what_depends_on_the_network_to_it(told):
    done = CliRunner().invoke(app, ["finetune", "segmentation", *PLACES])
    assert done.exit_code == 0, done.output
    assert told.keys().isdisjoint({"lr", "optimizer", "warmup", "patch", "shots", "plans", "processes", "validation"})
    assert (told["dataset"], told["encoder"], told["out"]) == ("4", "run", "liver")
    assert (told["spacing"], told["folds"], told["minimum_share"], told["mirror_validation"]) == (
        "pretraining", (0,), 0.9, True,
    )  # fmt: skip


def test_options_arrive_under_the_names_of_settings(told):
    words = ["--spacing", "1,1.5,2", "--patch", "32x48x32", "--shots", "5,10", "--seeds", "3", "--folds", "cv"]
    words += ["--min-share", "0.5", "--no-tta", "--no-mirror", "--lr", "1e-3", "--sawtooth", "--processes", "2"]
    done = CliRunner().invoke(app, ["finetune", "segmentation", *PLACES, *words])
    assert done.exit_code == 0, done.output
    expected = {
        "spacing": (1.0, 1.5, 2.0), "patch": (32, 48, 32), "shots": (5, 10), "seeds": 3, "folds": "cv",
        "minimum_share": 0.5, "mirror_validation": False, "mirror": False, "lr": 1e-3, "sawtooth": True,
        "processes": 2, "gpus": 1, "device": "auto",
    }  # fmt: skip
    assert expected.items() <= told.items()


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [("--patch", "32;48", "no list of whole numbers"), ("--spacing", "wide", "three numbers of mm, not 'wide'")],
)
def test_what_is_no_number_is_told(told, option, value, sentence):
    done = CliRunner().invoke(app, ["finetune", "segmentation", *PLACES, option, value])
    assert done.exit_code != 0
    assert sentence in " ".join(str(done.exception or done.output).split())
    assert not told
