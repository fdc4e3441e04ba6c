"""The command line: help, messages instead of tracebacks, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from viewalign.cli.grammar import MODELS, command, model_of, reflowed
from viewalign.cli.main import app, run
from viewalign.utils.settings_description import describe


def call(capsys, *arguments):
    code = 0
    try:
        run(list(arguments))
    except SystemExit as ended:
        code = ended.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


def commands():
    return sorted(typer.main.get_command(app).commands)


def test_all_commands_are_there():
    there = "compare compare-methods demo doctor embed encoders estimate evaluate export fetch finetune fomo gain index"
    there += " methods nnunet predict prepare pretrain probe recipes report settings study task verify"
    assert commands() == there.split()


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help(command, capsys):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert len(out.splitlines()) > 10
    assert f"viewalign {command}" in out
    assert r"\b" not in out


def test_paragraphs_of_the_help_wrap_at_the_width_of_the_terminal():
    assert reflowed("One line.\n\nOf two\nlines:\n  an example\nmore\nof it.") == (
        "One line.\n\nOf two lines:\n  an example\nmore of it."
    )
    assert reflowed("One.\n\n\b\na   table\nb   of two rows") == "One.\n\n\b\na   table\nb   of two rows"


@pytest.mark.parametrize("command", MODELS)
def test_every_command_s_help_shows_its_settings(command, capsys):
    code, out, _ = call(capsys, *command.split(), "-h")
    assert code == 0
    assert "[KEY=VALUE]..." in out
    own = [one.name for one in describe(model_of(command)) if "." not in one.name]
    shown = [name for name in own if f" {name} " in out]
    assert set(own) - set(shown) <= {"data", "out", "dataset", "encoder"}


def test_version_and_no_arguments(capsys):
    assert call(capsys, "--version")[1].startswith("viewalign 0.")
    out = call(capsys)[1]
    assert "pretrain" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pretrain", "cva-resenc-xs", "optim.learningrate=1"], "'optim.lr'"),
        (["pretrain", "cva-resnet-xs"], "'cva-resenc-xs'"),
        (["pretrain", "cva-resenc-xs"], "store"),
        (["pretrain", "cva-resenc-xs", "--lr", "1"], "--lr"),
        (["export", "nowhere"], "nowhere"),
        (["export", "nowhere", "weights=best"], "weights = 'best'"),
        (["export", "nowhere", "format=ssl3d"], "nowhere"),
        (["export", "nowhere", "--onnx"], "--onnx"),
        (["export", "nowhere", "format=ssl3d", "hub=me/it"], "format=ssl3d"),
        (["export", "nowhere", "public=true"], "hub=OWNER/NAME"),
        (["export", "nowhere", "dataset=4"], "format=encoder"),
        (["pretrain", "cva-resenc-xs", "data=store"], "data="),
        (["pretrain", "cva-resenc-xs", "out=run"], "-o PATH"),
        (["pretrain", "cva-resenc-xs", "resume=true"], "--resume"),
        (["pretrain", "cva-resenc-xs", "store=run"], "'store'"),
        (["report", "run", "more"], "run contains no run"),
        (["recipes", "steps=1"], "'steps=1'"),
        (["prepare", "scans", "store"], "viewalign prepare needs -o STORE"),
        (["prepare"], "viewalign prepare needs SOURCE"),
        (["gain", "store"], "needs --labelled DATA"),
        (["finetune", "segmentation", "4"], "For example: viewalign finetune segmentation 4 run -o liver"),
        (["settings", "prepair"], "'prepair' has settings (did you mean 'prepare'?)"),
        (["export", "run", "hub=me"], "hub = 'me': must be OWNER/NAME"),
        (["export", "tuned"], "format=onnx"),
        (["report", "nowhere"], "nowhere"),
        (["prepare", "nowhere.json", "-o", "s"], "nowhere.json"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuned" / "fold_0").mkdir(parents=True)
    (tmp_path / "tuned" / "fold_0" / "model.json").touch()
    code, _, err = call(capsys, *arguments)
    assert code == 1
    assert sentence in err.replace("\n", " ")
    assert "Traceback" not in err


def test_the_next_command_is_quoted():
    assert command("export", Path("my run")) == "viewalign export 'my run'"


def test_recipes_print_in_full(capsys):
    code, out, _ = call(capsys, "recipes", "cva-resenc-l")
    assert code == 0
    assert "# Learning rate after the warm-up. [number > 0]\n  lr: 0.01" in out
    assert "cva-primus-m" in call(capsys, "recipes")[1]


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m viewalign recipes cva-resenc-l | head -1"
    out = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in out.stderr


def test_methods_lists_every_method_with_its_recipes():
    from typer.testing import CliRunner

    from viewalign.cli.main import app
    from viewalign.methods.registry import METHODS

    out = CliRunner().invoke(app, ["methods"])
    assert out.exit_code == 0
    for name, entry in METHODS.items():
        assert f"{name}: {entry.title} ({entry.paper})" in out.output
    assert "spark-resenc-l, spark-resenc-xs" in out.output


def test_an_input_may_have_the_name_of_its_argument(capsys):
    code, _, told = call(capsys, "export", "run", "format=nnunet", "dataset=4")
    assert code == 1
    assert "nnUNet_raw" in told or "run" in told
    assert "'run'" not in told
