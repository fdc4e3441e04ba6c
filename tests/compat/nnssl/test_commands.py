"""nnssl's command lines for data."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from viewalign.data.readers.itk import sitk

NAME = "Dataset745_OpenMind"
SMALL = ["steps=1", "views.patch_size=[32,32,32]", "network=resenc-xxs"]
SMALL += ["runtime.workers=0", "runtime.precision=fp32", "runtime.threads=1"]
HEADS = ["heads.width=16", "heads.predictor_width=8"]


def head(seed, shape=(26, 30, 28)):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return (((grid**2).sum(0) < 0.8) * (100 + 20 * rng.normal(size=shape))).astype(np.float32)


def write(path, array, spacing=(1.0, 1.1, 1.3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Six subjects in `$nnssl_raw`, and none of nnssl's other variables."""
    raw = tmp_path / "raw" / NAME
    subjects = {}
    for k in range(6):
        write(raw / f"sub-{k}" / "t1.nii.gz", head(k))
        path = f"$nnssl_raw/{NAME}/sub-{k}/t1.nii.gz"
        image = {"name": "t1", "image_path": path, "modality": "T1w", "image_info": None, "associated_masks": None}
        session = {"session_id": "ses-DEFAULT", "session_info": None, "images": [image]}
        subjects[f"sub-{k}"] = {"subject_id": f"sub-{k}", "subject_info": None, "sessions": {"ses-DEFAULT": session}}
    dataset = {"dataset_index": "ds01", "name": None, "dataset_info": None, "subjects": subjects}
    catalogue = {"collection_index": 1, "collection_name": "Dataset001_OpenMind", "datasets": {"ds01": dataset}}
    (raw / "pretrain_data.json").write_text(json.dumps(catalogue))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnssl_{name}", str(tmp_path / name))
    for name in ("rocket_preprocessed", "nnUNet_def_n_proc", "nnUNet_n_proc_DA", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def folder_of(home):
    return home / "preprocessed" / NAME


def scripts():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    return {name: where for name, where in tomllib.loads(text)["project"]["scripts"].items() if name != "viewalign"}


def entry_point(command):
    """Return the function that a console script calls."""
    module, function = scripts()[command].split(":")
    return getattr(importlib.import_module(module), function)


def call(capsys, command, line):
    """Run a command in this process; returns exit code, stdout, stderr."""
    code = 0
    try:
        entry_point(command)(line.split())
    except SystemExit as ended:
        code = ended.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


def typed(command, *arguments):
    """Run a command as a process of its own."""
    module, function = scripts()[command].split(":")
    line = [sys.executable, "-c", f"from {module} import {function} as run\nrun()", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def small(*more):
    return [word for setting in (*SMALL, *more) for word in ("--set", setting)]


def json_of(path):
    return json.loads(path.read_text())


@pytest.mark.long
def test_from_raw_files_to_the_published_run(home):
    done = typed("nnssl_plan_and_preprocess", "-d", "745", "-np", "2")
    assert done.returncode == 0, done.stderr
    assert "6 images prepared" in done.stdout
    results = home / "results" / NAME
    weights = results / "MAETrainer" / "fold_all" / "checkpoint_final.pth"  # as printed in the paper's repository
    done = typed("nnssl_train", "745", "onemmiso", "-tr", "MAETrainer", *small())
    assert done.returncode == 0, done.stderr
    line = [
        "745",
        "onemmiso",
        "-tr",
        "AlignedMAEFTTrainer",
        "-p",
        "nnsslPlans",
        "-num_gpus",
        "1",
        "-pretrained_weights",
    ]
    done = typed("nnssl_train", *line, str(weights), *small(*HEADS))
    assert done.returncode == 0, done.stderr
    assert "MAETrainer__nnsslPlans__onemmiso is used" in done.stdout
    assert torch.cuda.is_available() or "no GPU; the run trains on the CPU" in done.stdout
    run = results / "AlignedMAEFTTrainer__nnsslPlans__onemmiso"
    assert json_of(run / "plans.json") == json_of(folder_of(home) / "nnsslPlans.json")
    plan = json_of(run / "adaptation_plan.json")["pretrain_plan"]
    assert plan["dataset_name"] == NAME
    assert plan["configurations"]["onemmiso"]["patch_size"] == [32, 32, 32]
    state = torch.load(run / "fold_all" / "checkpoint_final.pth", weights_only=True)
    assert state["nnssl_adaptation_plan"]["pretrain_plan"] == plan
    line = ["745", "onemmiso", "-tr", "AlignedMAEFTLR3EvaTrainer", "-pretrained_weights"]
    cnn = results / "MAETrainer__nnsslPlans__onemmiso" / "fold_all" / "checkpoint_final.pth"
    done = typed("nnssl_train", *line, str(cnn), *small(*HEADS, "network=primus-xxs"))
    assert done.returncode == 1
    assert "weights of a " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_many_subjects_get_a_split_that_nnssl_can_use(home, capsys):
    raw = home / "raw" / NAME / "pretrain_data.json"
    catalogue = json_of(raw)
    subjects = catalogue["datasets"]["ds01"]["subjects"]
    for k in range(6, 24):
        subjects[f"sub-{k}"] = {**subjects["sub-0"], "subject_id": f"sub-{k}"}
    raw.write_text(json.dumps(catalogue))
    assert call(capsys, "nnssl_plan_and_preprocess", "-d 745 -np 0")[0] == 0
    line = " ".join(["745 onemmiso -tr MAETrainer -device cpu", *small("validate.every=1", "validate.batches=1")])
    code, _, err = call(capsys, "nnssl_train", line)
    assert code == 0, err
    split = json_of(folder_of(home) / "splits_final.json")
    assert (len(split["train"]), len(split["val"])) == (19, 5)
    log = home / "results" / NAME / "MAETrainer__nnsslPlans__onemmiso" / "fold_all" / "log.jsonl"
    facts = json.loads(log.read_text().splitlines()[0])
    assert (facts["train_volumes"], facts["validation_volumes"]) == (19, 5)


def test_step_by_step_gives_what_one_command_gives(home, capsys):
    assert call(capsys, "nnssl_plan_and_preprocess", "-d 745 -np 0")[0] == 0
    once = {path.relative_to(home): path.read_bytes() for path in folder_of(home).rglob("*") if path.is_file()}
    folder_of(home).rename(home / "once")
    for command, line in (
        ("nnssl_extract_fingerprint", "-d 745 -np 0"),
        ("nnssl_plan_experiment", f"-d {NAME} -pl ExperimentPlanner"),
        ("nnssl_preprocess", "-d 745 -c onemmiso -plans_name nnsslPlans -part 0 -total_parts 1 -np 0"),
    ):
        code, out, err = call(capsys, command, line)
        assert code == 0, err
        assert out
    assert {path.relative_to(home): path.read_bytes() for path in folder_of(home).rglob("*") if path.is_file()} == once


def test_the_flags_of_measuring(home, capsys):
    assert call(capsys, "nnssl_extract_fingerprint", "-d 745 -np 0")[0] == 0
    code, out, _ = call(capsys, "nnssl_extract_fingerprint", "-d 745")
    assert (code, "use --clean" in out) == (0, True)
    write(home / "raw" / NAME / "sub-0" / "t1.nii.gz", head(0), (1.0, 1.0, 5.0))
    code, out, _ = call(capsys, "nnssl_extract_fingerprint", "-d 745 --clean --verbose -np 0")
    assert code == 0
    assert str(home / "raw" / NAME / "sub-0" / "t1.nii.gz") + ": done" in out
    assert [5.0, 1.0, 1.0] in json_of(folder_of(home) / "dataset_fingerprint.json")["spacings"]


def test_the_flags_of_preparing(home, capsys):
    code, out, _ = call(capsys, "nnssl_plan_and_preprocess", "-d 745 --no_pp -npfp 0 -pl ExperimentPlanner --clean")
    assert code == 0
    assert sorted(path.name for path in folder_of(home).iterdir()) == ["dataset_fingerprint.json", "nnsslPlans.json"]
    code, out, _ = call(capsys, "nnssl_preprocess", "-d 745 -c median noresample -np 0 0 --verbose")
    assert code == 0
    assert out.count(": done") == 12
    for name in ("median", "noresample"):
        assert len(list((folder_of(home) / f"nnsslPlans_{name}").rglob("*.b2nd"))) == 6
    (folder_of(home) / "nnsslPlans.json").rename(folder_of(home) / "mine.json")
    code, _, err = call(capsys, "nnssl_preprocess", "-d 745 -np 0")
    assert (code, "There are no plans" in err) == (1, True)
    assert call(capsys, "nnssl_preprocess", "-d 745 -plans_name mine -c noresample -np 0")[0] == 0


def test_parts(home, capsys):
    assert call(capsys, "nnssl_plan_and_preprocess", "-d 745 --no_pp")[0] == 0
    code, out, _ = call(capsys, "nnssl_preprocess", "-d 745 -np 0 -part 2 -total_parts 4")
    assert (code, "the lists are written when all parts are complete" in out) == (0, True)
    for part in (0, 3, 1):
        code, out, _ = call(capsys, "nnssl_preprocess", f"-d 745 -np 0 -part {part} -total_parts 4")
        assert code == 0
    assert "6 images prepared" in out
    assert "all parts are complete" in out
    assert len(json_of(folder_of(home) / "valid_imgs.json")) == 6
    code, _, err = call(capsys, "nnssl_preprocess", "-d 745 -part 4 -total_parts 4")
    assert (code, "-part 4 must be less" in err) == (1, True)


def test_a_broken_file_is_excluded(home, capsys):
    (home / "raw" / NAME / "sub-3" / "t1.nii.gz").write_bytes(b"nothing")
    code, out, _ = call(capsys, "nnssl_plan_and_preprocess", "-d 745 -np 0")
    assert code == 3
    assert "5 images prepared; 1 excluded" in out
    assert "sub-3" in out
    code, out, _ = call(capsys, "nnssl_preprocess", "-d 745 -np 0")
    assert code == 3
    assert "5 already there" in out


def test_rocket_preprocessed_is_reported(home, capsys, monkeypatch):
    monkeypatch.setenv("rocket_preprocessed", str(home / "elsewhere"))
    code, out, _ = call(capsys, "nnssl_plan_and_preprocess", "-d 745 --no_pp")
    assert code == 0
    assert "rocket_preprocessed is set and replaces nnssl_preprocessed" in out
    assert (home / "elsewhere" / NAME / "nnsslPlans.json").is_file()


@pytest.mark.parametrize(
    ("command", "line", "sentence"),
    [
        ("nnssl_extract_fingerprint", "-d 745 --cleen", "did you mean '--clean'?"),
        ("nnssl_extract_fingerprint", "", "-d"),
        ("nnssl_plan_experiment", "-d 745 -p x", "did you mean '-pl'?"),
        ("nnssl_plan_experiment", "-d 745 -pl Mine", "ExperimentPlanner"),
        ("nnssl_preprocess", "-d 745 -total_part 2", "did you mean '-total_parts'?"),
        ("nnssl_preprocess", "-d 745 -c onemm", "onemmiso"),
        ("nnssl_preprocess", "-d 745 -part -1", "needs 0 or more"),
        ("nnssl_plan_and_preprocess", "-d 745 --nopp", "did you mean '--no_pp'?"),
        ("nnssl_convert_openmind", "--openmind_root x", "did you mean '--openmind_root_dir'?"),
        ("nnssl_train_wandb", "745 onemmiso -fold 0", "all"),
    ],
)
def test_unknown_flags_and_choices_are_errors(home, capsys, command, line, sentence):
    code, _, err = call(capsys, command, line)
    assert code == 2
    assert sentence in err
    assert not (home / "preprocessed").exists()


@pytest.mark.parametrize(
    ("command", "line", "sentence"),
    [
        ("nnssl_extract_fingerprint", "-d 746", "There is no dataset 746 in $nnssl_raw"),
        ("nnssl_plan_and_preprocess", "-d 745 -np 1 2 3", "-np has 3 numbers for 1 configuration"),
    ],
)
def test_errors_are_messages(home, capsys, command, line, sentence):
    code, _, err = call(capsys, command, line)
    assert code == 1
    assert sentence in err


def test_planning_needs_a_fingerprint(home, capsys, monkeypatch):
    folder_of(home).mkdir(parents=True)
    code, _, err = call(capsys, "nnssl_plan_experiment", "-d 745")
    assert (code, "`nnssl_extract_fingerprint -d 745`" in err) == (1, True)
    monkeypatch.delenv("nnssl_raw")
    code, _, err = call(capsys, "nnssl_extract_fingerprint", "-d 745")
    assert (code, "nnssl_raw is not set" in err) == (1, True)


def test_the_number_of_processes_of_nnunet_is_used(monkeypatch):
    from viewalign.compat.nnssl.flags import default_processes
    from viewalign.errors import UserError

    monkeypatch.setenv("nnUNet_def_n_proc", "5")
    assert default_processes() == 5
    monkeypatch.setenv("nnUNet_def_n_proc", "many")
    with pytest.raises(UserError, match=r"nnUNet_def_n_proc|many"):
        default_processes()


@pytest.mark.parametrize("name", sorted(scripts()))
def test_every_script_is_there_and_its_help_is_quick(name):
    module, function = scripts()[name].split(":")
    assert module.startswith("viewalign.compat.nnssl.")
    assert callable(getattr(importlib.import_module(module), function))
    code = f"import sys, {module} as command\ntry: command.{function}(['-h'])\nfinally: print('torch' in sys.modules)"
    environment = {**os.environ, "COLUMNS": "120"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert f"usage: {name}" in out.stdout
    assert "examples:" in out.stdout
    assert out.stdout.endswith("False\n")


def test_openmind_becomes_a_raw_dataset(home, capsys):
    root = home / "raw" / "downloaded" / "OpenMind"
    for k, dataset in enumerate(("ds000001", "ds000002")):
        write(root / dataset / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz", head(k))
    code, out, err = call(capsys, "nnssl_convert_openmind", f"--openmind_root_dir {root.parent}")
    assert code == 0, err
    assert "2 images" in out
    catalogue = json_of(home / "raw" / NAME / "pretrain_data.json")
    assert catalogue["collection_name"] == NAME, "folder and collection are called alike"
    assert "$nnssl_raw/downloaded/OpenMind/ds000001" in json.dumps(catalogue)
    assert call(capsys, "nnssl_plan_and_preprocess", "-d 745 -np 0")[0] == 0
    assert len(list(folder_of(home).rglob("*.b2nd"))) == 2
    (home / "empty").mkdir()
    code, _, err = call(capsys, "nnssl_convert_openmind", f"--openmind_root_dir {home / 'empty'}")
    assert (code, "No volumes were found" in err) == (1, True)


def test_openmind_s_table_brings_masks_ages_and_scores(home, capsys):
    root = home / "raw" / "downloaded"
    mask = np.zeros((26, 30, 28), dtype=np.uint8)
    mask[:, :10] = 1
    rows = ["image_path,modality,age,anon_mask_path,anat_mask_path,image_quality_score"]
    for k, masked in enumerate((True, False)):
        stem = f"ds00000{k}/sub-0{k}/anat/sub-0{k}_T1w"
        write(root / "OpenMind" / f"{stem}.nii.gz", head(k))
        if masked:
            write(root / "OpenMind" / f"{stem}_anon.nii.gz", mask)
        rows.append(f"{stem}.nii.gz,T1w,4{k},{f'{stem}_anon.nii.gz' if masked else ''},,2.5")
    rows.append("ds000009/sub-09/anat/sub-09_T1w.nii.gz,T1w,30,,,1.0")
    (root / "openneuro_metadata.csv").write_text("\n".join(rows) + "\n")
    code, out, err = call(capsys, "nnssl_convert_openmind", f"--openmind_root_dir {root}")
    assert code == 0, err
    assert "2 images of 2 subjects" in out
    assert "1 of 3 images of openneuro_metadata.csv are not here" in out
    datasets = json_of(home / "raw" / NAME / "pretrain_data.json")["datasets"]
    assert datasets["ds000000"]["dataset_info"]["image_quality_score"][0]["image_quality_score"] == 2.5
    subject = datasets["ds000000"]["subjects"]["sub-00"]
    assert subject["subject_info"] == {"age": 40}
    masks = subject["sessions"]["ses-DEFAULT"]["images"][0]["associated_masks"]
    path = "$nnssl_raw/downloaded/OpenMind/ds000000/sub-00/anat/sub-00_T1w_anon.nii.gz"
    assert masks == {"anonymization_mask": path, "anatomy_mask": None}
    assert call(capsys, "nnssl_plan_and_preprocess", "-d 745 -np 0")[0] == 0
    assert len(list(folder_of(home).rglob("*__anon.b2nd"))) == 1
    assert not list(folder_of(home).rglob("*__anat.b2nd"))


def commands_of_the_page():
    page = (Path(__file__).parents[3] / "docs" / "nnssl.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", page, re.S)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.mark.long
def test_every_command_of_the_page_runs(home, capsys, monkeypatch):
    pytest.importorskip("wandb")
    for k in range(4):
        path = home / "downloads" / "OpenMind" / f"ds00000{k}" / f"sub-0{k}" / "anat" / "T1w.nii.gz"
        write(path, head(k))
    monkeypatch.chdir(home)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(home))
    ran = set()
    for line in commands_of_the_page():
        name, *words = shlex.split(os.path.expandvars(line))
        ran.add(name)
        if name == "export":
            for word in words:
                monkeypatch.setenv(*word.split("="))
                Path(word.split("=")[1]).mkdir(parents=True)
            continue
        if "train" in name:
            heads = HEADS if "Aligned" in line or "ConMAE" in line else []
            words += small(*heads, "network=primus-xxs") if "Eva" in line else small(*heads)
        code = 0
        try:
            entry_point(name)(words)
        except SystemExit as ended:
            code = ended.code or 0
        out = capsys.readouterr()
        assert code == 0, f"{line}: {out.out}{out.err}"
    assert ran == {"export", *scripts()}
    results = home / "data" / "results" / NAME
    assert len(list(results.glob("*/fold_all/checkpoint_final.pth"))) == 6
    assert list(results.glob("ConMAEFTTrainer__*/fold_all/wandb/offline-run-*"))


def test_the_page_names_every_flag():
    page = (Path(__file__).parents[3] / "docs" / "nnssl.md").read_text()
    from viewalign.compat.nnssl.train import make_parser

    for flag in make_parser().flags:
        assert flag in {"-h", "--help"} or f"`{flag}" in page, flag
