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
        (["finetune", "segmentation", "4"], "For example: viewalign finetune segmentation 2 run -o heart"),
        (["settings", "prepair"], "'prepair' has settings (did you mean 'prepare'?)"),
        (["export", "run", "hub=me"], "hub = 'me': must be OWNER/NAME"),
        (["export", "tuned"], "format=onnx"),
        (["report", "nowhere"], "nowhere"),
        (["prepare", "nowhere.json", "-o", "s"], "nowhere.json"),
        (["prepare", "scan.nii.gz", "-o", "s"], "scan.nii.gz is an image. Name the folder of images"),
        (["pretrain", "cva-resenc-xs", "trained", "-o", "x"], "trained is a run, not a store"),
        (["pretrain", "cva-resenc-xs", "catalogue.json", "-o", "x"], "`viewalign prepare catalogue.json -o store`"),
        (["pretrain", "cva-resenc-xs", "store", "-o", "x", "views.patch_size=32x32x32"], "needs one number or three"),
        (["pretrain", "empty.yaml", "store", "-o", "x"], "empty.yaml has no settings"),
        (["pretrain", "based.yaml", "store", "-o", "x"], "no setting 'based_on' (did you mean 'base'?)"),
        (
            ["pretrain", "mine.json", "store", "-o", "x"],
            "mine.json is no recipe: the name of its file must end",
        ),
        (["pretrain", "made", "cva-resenc-xs", "-o", "x"], "made is a store, not a recipe. The recipe is the first"),
        (["pretrain", "tuned/fold_0", "made", "-o", "x"], "tuned/fold_0 is a folder, not a recipe"),
        (["report", "made"], "made contains no run: it has no config.yaml. It is a store, whose page is"),
        (["study", "geometry-laptop", "made", "--dry-run"], "images or"),
        (["study", "geometry-laptop", "data=made"], "data= is not a setting"),
        (["study", "geometry-laptop", "made", "data.labelled.images=elsewhere"], "made/elsewhere"),
        (["study", "geometry-laptop", "made", "data.labeled.images=i"], "(did you mean 'labelled'?)"),
        (["task", "convert", "bids", "made", "-o", "t"], "has no labels without target=COLUMN; its columns are"),
        (["task", "convert", "bids", "made", "-o", "t", "target=grup"], "has no column 'grup'"),
        (["task", "convert", "bidss", "made", "-o", "t"], "There is no layout 'bidss'"),
        (["evaluate", "truth"], "viewalign evaluate needs REFERENCES"),
        (["evaluate", "nowhere", "truth"], "There is no folder"),
        (["compare", "tuned", "tuned"], "There is no evaluation at tuned"),
        (["probe", "made", "run"], "There is no task at made"),
        (["probe", "task", "run", "folds=1"], "folds = 1: must be at least 2"),
        (["probe", "task", "run", "learners=svm"], "'linear', 'knn' or 'sgd'"),
        (["embed", "run", "made", "-o", "x.npz"], "There is no task at made"),
        (["predict", "made", "task", "-o", "x.csv"], "made has no trained model"),
        (["finetune", "classification", "task", "run", "-o", "x", "mode=headfirst"], "'head_first'"),
        (["finetune", "segmentation", "made", "run", "-o", "x"], "made has no dataset.json"),
        (["estimate", "made", "gpu=a1000"], "unknown GPU"),
        (["fetch", "nowhere"], "There is no dataset nowhere to fetch"),
        (["fetch", "a", "b", "c"], "Set one NAME"),
        (["encoders", "openmind"], "did you mean 'openmind-mae'?"),
        (["verify", "tuned"], "tuned is not a store (store.json), run"),
        (["fomo", "prepare", "made", "-o", "f", "task=9"], "task = 9: must be 1, 2, 3, 4 or 5"),
        (["fomo", "submission", "made", "-o", "f"], "made contains no weights"),
        (["prepare", "made", "-o", "s", "shard=5/4"], "write i/n with 1 ≤ i ≤ n"),
        (["prepare", "made", "-o", "s", "normalise=window", "window=[100,-100]"], "window = [100, -100]"),
        (["index", "made", "-o", "c.json", "subject_pattern=("], "is not a regular expression"),
        (["index", "made", "-o", "c.json", r"subject_pattern=x(\d+)"], "has no group named subject"),
        (["index", "made", "-o", "c.json", "exclude=nofile"], "The exclusion list nofile cannot be read"),
        (["pretrain", "cva-resenc-xs", "made", "-o", "x", "views=32"], "is a group of settings, not a value"),
        (["pretrain", "cva-resenc-xs", "made", "-o", "x", "optim.betas=0.9"], "needs two numbers, LOW,HIGH"),
        (["pretrain", "cva-resenc-xs", "made", "-o", "x", "runtime.device=gpu"], "'auto', 'cpu' or 'cuda'"),
        (["pretrain", "cva-resenc-xs", "made", "-o", "x", "steps=1k"], "steps = '1k': must be a whole number"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuned" / "fold_0").mkdir(parents=True)
    (tmp_path / "tuned" / "fold_0" / "model.json").touch()
    (tmp_path / "trained").mkdir()
    for name in ("trained/config.yaml", "scan.nii.gz", "catalogue.json", "empty.yaml", "mine.json"):
        (tmp_path / name).touch()
    (tmp_path / "based.yaml").write_text("based_on: cva-resenc-xs\n")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "store.json").write_text("{}")
    (tmp_path / "made" / "participants.tsv").write_text("participant_id\tgroup\nsub-01\ta\n")
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


@pytest.mark.slow
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
