"""Settings of `viewalign finetune segmentation` reach the call that does the work, checked."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.finetuning.segmentation import environment, finetune
from viewalign.finetuning.segmentation.settings import FinetuneSettings
from viewalign.reports import segmentation


@pytest.fixture
def call(monkeypatch, tmp_path):
    """A function that runs the command and returns the settings that arrive, or the message."""
    seen = []
    (tmp_path / "results.json").write_text("{}")
    monkeypatch.setattr(environment, "check_installed", lambda: None)
    monkeypatch.setattr(segmentation, "write_page", lambda _: None)
    monkeypatch.setattr(finetune, "finetune", lambda *a: seen.append(a) or SimpleNamespace(out=tmp_path))

    def run(*words):
        done = CliRunner().invoke(app, ["finetune", "segmentation", "4", "run", "-o", "liver", *words])
        return seen[-1] if done.exit_code == 0 else str(done.exception)

    return run


def test_defaults_leave_what_depends_on_the_network_to_it(call):
    settings, out, machine = call()
    assert settings == FinetuneSettings(dataset="4", encoder="run")
    assert (str(out), machine.gpus) == ("liver", 1)
    for name in ("lr", "optimizer", "warmup_epochs", "patch_size", "plans", "validation"):
        assert getattr(settings, name) is None


def test_settings_arrive(call):
    words = ["spacing=1,1.5,2", "patch_size=[32,48,32]", "shots=5,10", "seeds=3", "folds=5", "min_share=0.5"]
    settings, _, machine = call(*words, "tta=false", "mirror=false", "lr=1e-3", "workers=2", "device=cpu")
    expected = {
        "spacing": (1.0, 1.5, 2.0), "patch_size": (32, 48, 32), "shots": (5, 10), "seeds": 3, "folds": 5,
        "min_share": 0.5, "tta": False, "mirror": False, "lr": 1e-3,
    }  # fmt: skip
    assert expected.items() <= settings.model_dump().items()
    assert (machine.processes, machine.device) == (2, "cpu")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["patch_size=32;48"], "patch_size"),
        (["spacing=wide"], "spacing = 'wide'"),
        (["patch=32"], "'patch_size'"),
        (["--epochs", "5"], "epochs=5"),
        (["--no-tta"], "tta=false"),
        (["dataset=5"], "dataset="),
    ],
)
def test_errors_name_the_setting(call, words, sentence):
    assert sentence in call(*words)
