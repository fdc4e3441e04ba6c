"""`viewalign finetune segmentation` from its command line to its page, and what is rejected before it starts."""

import json
import logging
import os
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
import yaml
from smooth_images import write_images

from viewalign.cli.main import run
from viewalign.errors import UserError
from viewalign.evaluation.results import read_evaluation
from viewalign.finetuning.segmentation import finetune, nnunet, planning, plans, splits
from viewalign.finetuning.segmentation.settings import FinetuneSettings
from viewalign.utils.locks import locked
from viewalign.utils.settings import checked
from viewalign.weights.reading import read_source

from .conftest import tiny, write_dataset, write_encoder

pytest.importorskip("nnunetv2")
QUICK = ["epochs=1", "warmup_epochs=0", "iterations=1", "validation_iterations=1", "tta=false"]
CPU = ["device=cpu", "workers=1"]


def call(capfd, *arguments):
    with pytest.raises(SystemExit) as end:
        run(["finetune", "segmentation", *map(str, arguments)])
    told = capfd.readouterr()
    return end.value.code or 0, told.out, told.err


@pytest.mark.long
def test_few_shots_from_command_line_to_page(prepared, nnunet_home, tmp_path, capfd, monkeypatch):
    one, _, root = prepared[1]
    path, _ = write_encoder(tmp_path, "resenc-xxs")
    (root / "labelsTs").mkdir(exist_ok=True)
    shutil.copy(root / "labelsTr" / "case_00.nii.gz", root / "labelsTs" / "test_00.nii.gz")
    out = tmp_path / "run"
    asked = ["901", path, "-o", out, *QUICK, *CPU]
    few = ["shots=2", "seeds=2", "validation=case_05", "predict=imagesTs"]
    code, told, err = call(capfd, *asked, *few)
    assert code == 0, err
    assert "2 shots, seed 1: Dice" in err
    assert f"Report: {out / 'report.html'}" in told
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["results"]] == ["2 shots, seed 0", "2 shots, seed 1", "test images"]
    folder = nnunet_home.preprocessed / one.name
    divided = json.loads((folder / "splits_final.json").read_text())
    assert divided[0]["val"] == ["case_04"]  # the split that was there stays where it was
    for row in results["results"][:2]:
        split = divided[row["fold"]]
        assert (len(split["train"]), split["val"]) == (2, ["case_05"])
        assert "case_05" not in split["train"]
    assert results["results"][-1]["predictions"] == "predictions"  # the folder may be moved
    evaluation = read_evaluation(out / results["results"][0]["evaluation"])
    assert [case.name for case in evaluation.cases] == ["case_05"]
    assert list(evaluation.rules.classes) == ["rind", "core"]
    assert (out / "predictions" / "test_00.nii.gz").is_file()
    page = (out / "report.html").read_text()
    for word in ("2 shots, seed 1", "100.0% of the encoder came from", "Prediction", "rind"):
        assert word in page
    assert str(tmp_path) not in page
    assert str(nnunet_home.raw.parent) not in page
    assert f"-p {results['plans']} -tr ViewalignTrainer" in (out / "commands.sh").read_text()
    # The same command has nothing left to train, and another one is refused.
    monkeypatch.setattr(nnunet, "train", lambda *_: pytest.fail("trained again"))
    code, _, err = call(capfd, *asked, *few)
    assert code == 0
    assert err.count("already trained") == 2
    code, _, err = call(capfd, *asked, *few, "batch=4")
    assert code == 1
    assert "batch=2, not 4" in err


BAD_ENCODERS = {
    "a pickle": (lambda root: {**root, "evil": print}, "pickled objects"),
    "no plan": (lambda root: {k: v for k, v in root.items() if k != "nnssl_adaptation_plan"}, "no adaptation plan"),
    "no weights": (
        lambda root: {"network_weights": {"fc.weight": torch.zeros(2)}},
        "no weights of a ResEnc or a Primus",
    ),
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results", "extTrainer", "def_n_proc", "n_proc_DA"):
        monkeypatch.setenv(f"nnUNet_{name}", "")  # so that what the command sets is undone afterwards
        monkeypatch.delenv(f"nnUNet_{name}")
    return write_dataset(tmp_path / "Dataset007_Small", cases=3, size=(12, 12, 12))


@pytest.mark.parametrize("what", BAD_ENCODERS)
def test_bad_encoders(what, small, tmp_path, capfd):
    path, _ = write_encoder(tmp_path, "resenc-xxs")
    change, sentence = BAD_ENCODERS[what]
    torch.save(change(torch.load(path, weights_only=True)), path)
    code, _, err = call(capfd, small, path, "-o", tmp_path / "run", *CPU)
    assert code == 1
    assert sentence in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_damaged_encoder_and_none(small, tmp_path, capfd):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 and so on")
    for encoder, sentence in [("x.pth", "damaged"), ("nothing.pth", "There are no weights at")]:
        code, _, err = call(capfd, small, tmp_path / encoder, "-o", tmp_path / "run", *CPU)
        assert code == 1
        assert sentence in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["epochs=2", "warmup_epochs=5"], "5 warm-up epochs"),
        (["normalise=some"], "normalise = 'some'"),
        (["patch_size=a,b,c"], "patch_size"),
        (["spacing=thick"], "spacing = 'thick'"),
        (["device=tpu"], "device = 'tpu': must be 'auto'"),
        (["gpus=2"], "several GPUs only with CUDA"),
        (["shots=5"], "too few for 5 folds"),
        (["shots=5", "validation=case_00"], "shots=5: there are only"),
        (["validation=liver_*"], "No case matches liver_*"),
        (["training=case_00", "validation=case_0*"], "case_00 is named for training and for validation"),
        (["training=case_00", "shots=1"], "use only one of them"),
        (["training=case_00", "validation=case_01", "patient=(case)"], "same patient case"),
        (["validation=case_01", "patient=(case)"], "no case for training"),
        (["predict=nowhere"], "There is no folder nowhere to predict"),
        (["tolerance=kidney=1", "shots=1", "validation=case_00"], "no class 'kidney'"),
        (["seeds=3"], "add shots, or omit seeds"),
        (["validation=case_00", "folds=5"], "validation names cases"),
        (["training=case_00", "fold=1"], "training names cases"),
        (["shots=1", "fold=0"], "fold chooses a fold and shots draws samples"),
        (["shots=1", "folds=5"], "folds=5 trains folds and shots draws samples"),
    ],
)
def test_bad_settings_are_reported_before_planning(options, sentence, small, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(planning, "base_plan", lambda *_: pytest.fail("planned"))
    path, _ = write_encoder(tmp_path, "resenc-xxs")
    code, _, err = call(capfd, small, path, "-o", tmp_path / "run", *CPU, *options)
    assert code == 1
    assert sentence in err
    assert "Traceback" not in err


def test_copies_of_an_image_are_one_patient_in_folds(tmp_path, caplog):
    images = write_images(tmp_path / "images", [(0, 7), (3, 4)])
    cases = [SimpleNamespace(name=name, images=(path,)) for name, path in images.items()]
    here = SimpleNamespace(preprocessed=tmp_path / "preprocessed")
    here.preprocessed.mkdir()
    dataset = SimpleNamespace(name="Dataset007_Small", cases=cases)
    found = finetune._copies(SimpleNamespace(dataset=dataset, folders=here, settings=SimpleNamespace(patient=None)))
    assert "case_00, case_07; case_03, case_04" in caplog.text
    for fold in finetune._default_folds(found.subject_of, needed=True):
        for one, other in (("case_00", "case_07"), ("case_03", "case_04")):
            assert (one in fold.train) == (other in fold.train)


SCANS = [f"pat{patient}_scan{scan}" for patient in range(6) for scan in range(2)]


def requested(**settings):
    """Return the settings of a fine-tuning, and the patients of twelve cases, without its files."""
    asked = settings_from({"dataset": "4", "encoder": "x", **settings})
    return SimpleNamespace(settings=asked), splits.patients_of(SCANS, asked.patient)


def test_folds_without_patients_are_not_used_with_patients(tmp_path, caplog):
    planned = SimpleNamespace(folder=tmp_path)
    run_, patients = requested(folds=2)
    before = finetune._number_splits(run_, planned, [], patients)
    assert [number for _, number in before] == [0, 1]
    run_, patients = requested(folds=2, patient=r"(pat\d)")
    numbered = finetune._number_splits(run_, planned, [], patients)
    assert [number for _, number in numbered] == [5, 6]
    assert not any(splits.divided(patients, split) for split, _ in numbered)
    assert splits.FILE in caplog.text
    assert finetune._number_splits(run_, planned, [], patients) == numbered
    run_, _ = requested(fold=(0,), patient=r"(pat\d)")
    with pytest.raises(UserError, match=rf"Fold 0 of .*{splits.FILE}.*pat\d.*patient="):
        finetune._number_splits(run_, planned, [], patients)
    run_, _ = requested(fold=(5,), patient=r"(pat\d)")
    assert finetune._number_splits(run_, planned, [], patients) == numbered[:1]
    run_, patients = requested(folds=2)
    assert finetune._number_splits(run_, planned, [], patients) == before


def test_folds_are_compared_with_the_cases_of_the_dataset(tmp_path, caplog):
    planned = SimpleNamespace(folder=tmp_path)
    run_, patients = requested()
    ((fold, _),) = finetune._number_splits(run_, planned, [], patients)
    assert not caplog.text
    gone = fold.train[0]
    fewer = {case: patient for case, patient in patients.items() if case != gone}
    with pytest.raises(UserError, match=rf"Fold 0 of .*{splits.FILE} has cases .* not in the dataset: {gone}\."):
        finetune._number_splits(run_, planned, [], fewer)
    assert len(finetune._number_splits(run_, planned, [], patients | {"pat9_scan0": "pat9_scan0"})) == 1
    assert f"{splits.FILE} has them: pat9_scan0." in caplog.text


def test_samples_are_not_taken_for_folds(tmp_path):
    planned = SimpleNamespace(folder=tmp_path)
    own = [{"train": SCANS[4:], "val": SCANS[:2]}, {"train": SCANS[:-2], "val": SCANS[-2:]}]
    (tmp_path / splits.FILE).write_text(json.dumps(own))
    few, patients = requested(shots=(2, 8), validation=",".join(SCANS[:4]))
    samples = finetune._number_splits(few, planned, finetune._requested_splits(few, patients), patients)
    assert [number for _, number in samples] == [2, 3]
    run_, _ = requested(folds=5)
    assert [number for _, number in finetune._number_splits(run_, planned, [], patients)] == [0, 1]
    run_, _ = requested(fold=(3,))
    assert finetune._number_splits(run_, planned, [], patients) == samples[1:]


def test_folds_are_added_behind_samples(tmp_path):
    planned = SimpleNamespace(folder=tmp_path)
    few, patients = requested(shots=(1,), validation="pat0_scan0")
    some = dict(list(patients.items())[:4])
    finetune._number_splits(few, planned, finetune._requested_splits(few, some), some)
    run_, _ = requested(folds=5)
    for _ in range(2):
        numbered = finetune._number_splits(run_, planned, [], patients)
        assert [number for _, number in numbered] == [1, 2, 3, 4, 5]
        assert sorted(case for split, _ in numbered for case in split.validation) == sorted(SCANS)


def test_a_fold_that_is_also_a_sample_remains_a_fold(tmp_path):
    planned = SimpleNamespace(folder=tmp_path)
    few, patients = requested(shots=(9,))  # all cases that are not held out
    requests = finetune._requested_splits(few, patients)
    assert [number for _, number in finetune._number_splits(few, planned, requests, patients)] == [0]
    run_, _ = requested(folds=5)
    assert [number for _, number in finetune._number_splits(run_, planned, [], patients)] == [0, 1, 2, 3, 4]
    names = splits.read_names(tmp_path)
    (tmp_path / splits.NAMES).write_text(json.dumps(names | {"0": "9 shots, seed 0"}))  # as an earlier version
    assert [number for _, number in finetune._number_splits(run_, planned, [], patients)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("place", ["results", "preprocessed"])
def test_a_model_of_other_weights_is_not_continued(place, prepared, nnunet_home, tmp_path):
    """The plan's name contains the path of the encoder, which may have other weights later or in another folder."""
    one, _, _ = prepared[1]
    path, _ = write_encoder(tmp_path, "resenc-xxs")

    def run_of(**settings):
        asked = settings_from({"dataset": "901", "encoder": str(path), "plans": f"before_{place}", **settings})
        machine = nnunet.Machine("cpu")
        return SimpleNamespace(
            settings=asked,
            dataset=one,
            folders=nnunet_home,
            machine=machine,
            source=read_source(path),
            schedule=tiny("resenc"),
        )

    planned = finetune._plan(run_of())
    plan = json.loads((planned.folder / f"{planned.name}.json").read_text())
    model = nnunet.Model(one.name, planned.name, nnunet_home)
    root = torch.load(path, weights_only=True)
    name = next(name for name in root["network_weights"] if name.startswith("encoder."))
    root["network_weights"][name] += 1
    torch.save(root, path)
    finetune._plan(run_of())  # nothing was trained
    (planned.folder / f"{planned.name}.json").write_text(json.dumps(plan))
    model.fold(0).mkdir(parents=True)
    if place == "results":
        (model.folder / "plans.json").write_text(json.dumps(plan))
        (planned.folder / f"{planned.name}.json").write_text("{}")
    for settings, sentence in (({}, "from weights .*, not from weights .* of"), ({"from_scratch": True}, "not from s")):
        with pytest.raises(UserError, match=rf"{planned.name}.* was trained .*{sentence}.*plans=NAME"):
            finetune._plan(run_of(**settings))
    write_encoder(tmp_path, "resenc-xxs")  # the first weights again
    assert finetune._plan(run_of()).plan[plans.BLOCK] == plan[plans.BLOCK]
    for file in (model.folder / "plans.json", planned.folder / f"{planned.name}.json"):
        file.write_text(json.dumps({**plan, plans.BLOCK: {"encoder": {"file": "x.pth"}}}))  # records no digest
    finetune._plan(run_of())


def test_cases_that_are_left_out_because_of_their_patient_are_named(caplog):
    run_, patients = requested(validation="pat3_scan0", patient=r"(pat\d)")
    (split,) = finetune._requested_splits(run_, patients)
    assert len(split.train) == 10
    assert "pat3_scan1" in caplog.text


def test_samples_of_the_same_cases_are_trained_once(caplog):
    run_, patients = requested(shots=(3, 11), seeds=3, validation="pat0_scan0")
    names = [split.name for split in finetune._requested_splits(run_, patients)]
    assert names == ["3 shots, seed 0", "3 shots, seed 1", "3 shots, seed 2", "11 shots, seed 0"]
    assert "shots=" in caplog.text


def test_a_dataset_that_is_not_there(tmp_path, capfd):
    path, _ = write_encoder(tmp_path, "resenc-xxs")
    code, _, err = call(capfd, "999", path, "-o", tmp_path / "run", *CPU)
    assert (code, "There is no dataset 999" in err) == (1, True)


def settings_from(values):
    return checked(FinetuneSettings, values)


def test_a_folder_of_something_else(small, tmp_path, capfd):
    path, _ = write_encoder(tmp_path, "resenc-xxs")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    code, _, err = call(capfd, small, path, "-o", tmp_path / "full", *CPU)
    assert code == 1
    assert str(tmp_path / "full") in err.replace("\n", "")


def test_settings_are_kept_as_yaml(tmp_path):
    from viewalign.finetuning.segmentation import settings

    asked = settings_from({"dataset": "4", "encoder": "runs/mae/export", "shots": (5, 10), "patch_size": (32, 32, 32)})
    settings.keep(asked, tmp_path / "run")
    tree = yaml.safe_load((tmp_path / "run" / "finetune.yaml").read_text())
    assert settings_from(tree) == asked
    assert settings.encoder_name("runs/mae/export") == "mae"
    assert settings.encoder_name("runs/mae/export/checkpoint_final.pth") == "mae"
    assert settings.encoder_name("hf:Some.One/My_Model__v2") == "My-Model-v2"
    schedule = settings.schedule_of(asked, "resenc")
    name = settings.plan_name(asked, schedule)
    assert name.startswith("viewalign_mae_")
    assert "__" not in name
    scratch = settings_from(tree | {"from_scratch": True})
    assert "scratch" in settings.plan_name(scratch, settings.schedule_of(scratch, "resenc"))
    assert settings.plan_name(settings_from(tree | {"batch": 3}), schedule) != name


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_cross_validation_with_ensemble_and_postprocessing(tmp_path, capfd, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    write_dataset(tmp_path / "raw" / "Dataset905_Balls")
    path, _ = write_encoder(tmp_path, "primus-xxs")
    out = tmp_path / "run"
    asked = ["905", path, "-o", out, *QUICK, *CPU]
    code, _, err = call(capfd, *asked, "folds=5", "predict=imagesTs", "postprocess=true")
    assert code == 0, err
    results = json.loads((out / "results.json").read_text())
    assert [row["fold"] for row in results["results"]] == [0, 1, 2, 3, 4, None]
    whole = read_evaluation(out / results["results"][-1]["evaluation"])
    assert [case.name for case in whole.cases] == [f"case_{k:02d}" for k in range(6)]  # each case once
    assert (out / "predictions" / "test_00.nii.gz").is_file()
    assert ("Postprocessing is not applied" in err) != (out / "predictions_postprocessed").is_dir()


def test_folds_that_start_together_prepare_the_dataset_one_after_the_other(tmp_path, monkeypatch):
    """A second one took what the first had begun for what an interrupted one had left, and removed it."""
    work = SimpleNamespace(folders=SimpleNamespace(preprocessed=tmp_path), dataset=SimpleNamespace(name="Dataset004_A"))
    told, order, holding, waiting = [], [], threading.Event(), threading.Event()

    def first():
        with locked(tmp_path / ".Dataset004_A.lock"):
            holding.set()
            assert waiting.wait(60)
            order.append("first")

    class Waits(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage())
            waiting.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert holding.wait(60)
    monkeypatch.setattr(finetune, "_log", logging.Logger("test"))
    finetune._log.addHandler(Waits())
    with finetune._dataset_lock(work):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert len(told) == 1
    assert f"process {os.getpid()}, which prepares Dataset004_A" in told[0]
