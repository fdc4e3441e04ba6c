"""nnssl's training command as the paper's repository prints it, on a dataset in nnssl's layout."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch

from viewalign.compat.nnssl.train import run

README_RESENC = "745 onemmiso -tr AlignedMAEFTTrainer -p nnsslPlans -num_gpus 1 -pretrained_weights"
README_PRIMUS = "745 onemmiso -tr AlignedMAEFTLR3EvaTrainer -p nnsslPlans -num_gpus 1 -pretrained_weights"
PLANS = Path("preprocessed", "Dataset745_OpenMind", "nnsslPlans.json")
SMALL = ["views.patch_size=[16,16,16]", "heads.width=16", "heads.predictor_width=8", "runtime.precision=fp32"]
SMALL += ["runtime.workers=0", "log.tensorboard=false", "log.every=1", "masking.block=8", "validate.every=0"]


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.ascontiguousarray(array[None], dtype=np.float32)
    blosc2.asarray(array, urlpath=str(path), mode="w", chunks=array.shape, blocks=(1, 16, 16, 16))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Eight subjects of 20³ voxels below the folders that nnssl's variables name."""
    folder = tmp_path / "preprocessed" / "Dataset745_OpenMind"
    for k in range(8):
        session = folder / "nnsslPlans_onemmiso" / "Dataset001_OpenMind" / "ds01" / f"sub-{k}" / "ses-DEFAULT"
        coarse = np.random.default_rng(k).normal(size=(4, 4, 4))
        save(np.kron((coarse - coarse.mean()) / coarse.std(), np.ones((5, 5, 5))), session / "t1.b2nd")
        (session / "t1.pkl").write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
        if k == 0:
            save(np.indices((20, 20, 20))[2] < 6, session / "t1__anon.b2nd")
    plans = {"configurations": {"onemmiso": {"spacing": [1, 1, 1], "use_mask_for_norm": [False]}}}
    (folder / "nnsslPlans.json").write_text(json.dumps(plans))
    monkeypatch.setenv("nnssl_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnssl_results", str(tmp_path / "results"))
    monkeypatch.delenv("nnssl_raw", raising=False)
    return tmp_path


def results(home, trainer):
    return home / "results" / "Dataset745_OpenMind" / f"{trainer}__nnsslPlans__onemmiso"


def call(capsys, line, *more, network=None, steps=1, small=SMALL):
    unread = () if "Aligned" in line else ("heads.",)
    unread += ("masking.block",) if network == "primus-xs" else ()
    read = [setting for setting in small if not setting.startswith(unread)]
    sets = [f"steps={steps}", *read, f"network={network}"] if network else []
    arguments = [*line.split(), *more]
    for setting in sets:
        arguments += ["--set", setting]
    code = 0
    try:
        run(arguments)
    except SystemExit as ended:
        code = ended.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "first", "network"),
    [(README_RESENC, "MAETrainer", "resenc-xs"), (README_PRIMUS, "MAEEvaTrainer", "primus-xs")],
    ids=["resenc", "primus"],
)
def test_the_published_command_lines_run(home, capsys, line, first, network):
    code, out, err = call(capsys, f"745 onemmiso -tr {first}", network=network)
    assert code == 0, err
    # As printed there: the folder of the first stage is named without plans and configuration.
    weights = home / "results" / "Dataset745_OpenMind" / "MAETrainer" / "fold_all" / "checkpoint_final.pth"
    code, out, err = call(capsys, line, str(weights), network=network)
    assert code == 0, err
    assert f"{first}__nnsslPlans__onemmiso is used" in out
    assert "100.0% of the encoder is covered" in out + err
    if not torch.cuda.is_available():
        assert "no GPU; the run trains on the CPU" in out
    folder = results(home, line.split()[3])
    state = torch.load(folder / "fold_all" / "checkpoint_final.pth", weights_only=True)
    assert "nnssl_adaptation_plan" in state
    plan = json.loads((folder / "adaptation_plan.json").read_text())
    assert plan["pretrain_plan"]["configurations"]["onemmiso"]["spacing"] == [1, 1, 1]
    assert [path.name for path in sorted(folder.iterdir())] == ["adaptation_plan.json", "fold_all", "plans.json"]
    assert (folder / "plans.json").read_bytes() == (home / PLANS).read_bytes()
    assert not (home / "sprung").exists()


@pytest.mark.slow
def test_c_resumes_and_a_second_start_is_an_error(home, capsys):
    line = "Dataset745_OpenMind onemmiso -tr MAETrainer -device cpu --disable_checkpointing --npz --val_best"
    code, out, err = call(capsys, line, "--c", network="resenc-xs", steps=2)
    assert code == 0, err
    for sentence in ("no run in", "--npz does nothing", "--val_best does nothing", "only at its end"):
        assert sentence in out
    code, _, err = call(capsys, line, network="resenc-xs", steps=2)
    assert code == 1
    assert "Resume it with --c" in err
    code, out, err = call(capsys, line, "--c", network="resenc-xs", steps=2)
    assert code == 0, err
    assert "Resuming from step 2 of 2" in out + err
    checkpoint = results(home, "MAETrainer") / "fold_all" / "checkpoint_final.pth"
    assert checkpoint.is_file()


@pytest.mark.parametrize("variable", ["nnssl_preprocessed", "nnssl_results"])
def test_an_unset_variable(home, capsys, monkeypatch, variable):
    monkeypatch.delenv(variable)
    code, _, err = call(capsys, "745 onemmiso -tr AlignedMAEFTTrainer")
    assert code == 1
    assert f"{variable} is not set" in err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("746 onemmiso -tr AlignedMAEFTTrainer", "There is no dataset 746"),
        ("745 median -tr AlignedMAEFTTrainer", "has no configuration median"),
        ("745 onemmiso -tr AlignedMAEFTTrainer -p others", "There are no plans"),
        ("745 onemmiso -tr AlignedMAEFTrainer", "did you mean 'AlignedMAEFTTrainer'"),
        ("745 onemmiso -tr BaseAlignedMAETrainer", "--network resenc-l or --network primus-m"),
        ("745 onemmiso -tr AlignedMAEFTTrainer --set views.sizes=16", "did you mean 'views.patch_size'"),
        ("745 onemmiso -tr AlignedMAEFTTrainer --set out=here", "leave it out"),
        ("745 onemmiso -tr AlignedMAEFTTrainer -num_gpus 0 -device cpu", "runtime.gpus"),
    ],
)
def test_errors_are_messages(home, capsys, line, sentence):
    code, _, err = call(capsys, line)
    assert code == 1
    assert sentence in err
    assert not (home / "results").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("745 onemmiso -tr AlignedMAEFTTrainer -pretrained_weight F", "did you mean '-pretrained_weights'?"),
        ("745 onemmiso -tr AlignedMAEFTTrainer --cc", "did you mean '--c'?"),
        ("745 twomm -tr AlignedMAEFTTrainer", "onemmiso"),
    ],
)
def test_unknown_flags_are_errors(home, capsys, line, sentence):
    code, _, err = call(capsys, line)
    assert code == 2
    assert sentence in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_more_gpus_than_none(home, capsys):
    code, _, err = call(capsys, "745 onemmiso -tr AlignedMAEFTTrainer -num_gpus 2")
    assert code == 1
    assert "-num_gpus 2: there is no GPU" in err


def test_val_trains_nothing(home, capsys):
    code, out, _ = call(capsys, "745 onemmiso -tr AlignedMAEFTTrainer --val")
    assert code == 0
    assert "Nothing was trained" in out
    assert not (home / "results").exists()


def test_help_is_quick_and_shows_the_published_line():
    code = "import sys, viewalign.compat.nnssl.train as command\n"
    code += "try: command.run(['-h'])\nfinally: print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
    assert "nnssl_train 745 onemmiso -tr AlignedMAEFTTrainer" in out
    assert out.endswith("False\n")
