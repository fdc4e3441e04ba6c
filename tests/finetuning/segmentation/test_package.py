"""What nnU-Net takes without viewalign: a start for its own training, a model for its own prediction."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import nnunet as running
from viewalign.finetuning.segmentation import package
from viewalign.finetuning.segmentation import plans as nnunet
from viewalign.finetuning.segmentation.nnunet import Machine
from viewalign.finetuning.segmentation.predict import read_trained
from viewalign.weights import adaptation_plan

from .conftest import tiny, write_encoder

pytest.importorskip("nnunetv2")
pytestmark = pytest.mark.slow
MACHINE = Machine("cpu", 1, 1)


def stock_network(name, plan, description):
    """Build the network as an unmodified trainer of nnU-Net does for training."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(plan)
    configuration = plans.get_configuration(nnunet.CONFIGURATION)
    outputs = plans.get_label_manager(description).num_segmentation_heads
    trainer = recursive_find_trainer_class_by_name(name)
    return trainer.build_network_architecture(plans, configuration, 1, outputs, True)


def primus_s(folder):
    """Write a checkpoint of nnssl of a preset that we do not pretrain ourselves."""
    architecture = nnunet.architecture_of({"architecture_plans": {"arch_class_name": "PrimusS"}}, "x")
    network = nnunet.build_network(architecture, 1, 1, (32, 32, 32))
    plan = adaptation_plan.adaptation_plan("primus-m", 1, (32, 32, 32), (1.0, 1.0, 1.0), False, "viewalign_mae")
    plan["architecture_plans"]["arch_class_name"] = "PrimusS"
    plan["recommended_downstream_patchsize"] = [32, 32, 32]
    path = folder / "primus-s.pth"
    torch.save(adaptation_plan.checkpoint(network.state_dict(), plan, 1), path)
    return path


@pytest.mark.parametrize("kind", ["resenc", "primus"])
def test_stock_nnunet_loads_the_complete_checkpoint(kind, prepared, nnunet_home, tmp_path):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    path = write_encoder(tmp_path, "resenc-xxs")[0] if kind == "resenc" else primus_s(tmp_path)
    start = package.export_start(
        str(path), str(prepared[1][0].id), tmp_path / "out", f"viewalign_start_{kind}", (32, 32, 40)
    )
    plan = json.loads(start.plan.read_text())
    trainer = start.commands[1].split("-tr ")[1].split()[0]
    assert trainer == {"resenc": "nnUNetTrainer_warmup", "primus": "nnUNet_Primus_S_Trainer"}[kind]
    network = stock_network(trainer, plan, prepared[1][0].description)
    load_pretrained_weights(network, str(start.checkpoint))
    given = torch.load(path, weights_only=True)["network_weights"]
    prefix = "encoder." if kind == "resenc" else "eva.blocks."
    taken = {n: v for n, v in network.state_dict().items() if n.startswith(prefix)}
    assert len(taken) > 40
    for name, value in taken.items():
        assert torch.equal(value, given[name]), name
    info = plan["pretrain_info"]
    native = torch.load(info["checkpoint_path"], weights_only=True)
    for key in (info["key_to_encoder"], info["key_to_stem"]):
        part = {n.removeprefix(key + "."): v for n, v in native["network_weights"].items() if n.startswith(key + ".")}
        target = nnunet.build_network(plan["configurations"]["3d_fullres"]["architecture"], 1, 1, (32, 32, 32))
        target.get_submodule(key).load_state_dict(part, strict=True)
    assert {"architecture_plans", "pretrain_plan", "key_to_lpe"} <= set(native["nnssl_adaptation_plan"])


BRIEFLY = """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    begin = nnUNetTrainer.on_train_start
    def briefly(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
        begin(self)
    nnUNetTrainer.on_train_start = briefly
"""
"""Fewer steps, and nothing else, for a trainer that would take days."""


def without_viewalign(command, before=""):
    """Run a function of nnU-Net in a process in which viewalign cannot be imported and no trainer is added."""
    code = (
        "import sys\n"
        "if __name__ == '__main__':\n"
        "    sys.modules['viewalign'] = None\n"
        f"{before}\n"
        f"    sys.argv = {command!r}\n"
        f"    from {command[0].rpartition('.')[0]} import {command[0].rpartition('.')[2]} as main\n"
        "    main()\n"
    )
    script = Path(os.environ["nnUNet_results"]) / "stock.py"  # noqa: SIM112  nnU-Net's spelling
    script.write_text(code)
    clean = {key: value for key, value in os.environ.items() if key not in {"nnUNet_extTrainer", "PYTHONPATH"}}
    done = subprocess.run([sys.executable, str(script)], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["resenc", "primus"])
def test_stock_nnunet_trains_validates_and_predicts_from_it(kind, prepared, nnunet_home, tmp_path):
    path = write_encoder(tmp_path, "resenc-xxs")[0] if kind == "resenc" else primus_s(tmp_path)
    start = package.export_start(
        str(path), str(prepared[1][0].id), tmp_path / "out", f"viewalign_whole_{kind}", (32, 32, 32)
    )
    preprocess, train, predict = (line.split()[1:] for line in start.commands)
    entry = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints.preprocess_entry"
    without_viewalign([entry, *preprocess[:-1], "1"])
    without_viewalign(["nnunetv2.run.run_training.run_training_entry", *train, "-device", "cpu"], BRIEFLY)
    trainer, plans = train[train.index("-tr") + 1], f"viewalign_whole_{kind}"
    results = nnunet_home.results / "Dataset901_Balls" / f"{trainer}__{plans}__3d_fullres" / "fold_0"
    assert (results / "validation" / "summary.json").is_file()
    given = torch.load(path, weights_only=True)["network_weights"]
    trained = torch.load(results / "checkpoint_final.pth", weights_only=False)["network_weights"]
    prefix = "encoder." if kind == "resenc" else "eva.blocks."
    moved = [(trained[name] - given[name]).abs().max() for name in trained if name.startswith(prefix)]
    assert len(moved) > 40
    assert 0 < max(moved) < 0.01  # two steps of a warm-up away from what was pretrained
    flags = ["-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"]
    images = prepared[1][2] / "imagesTs"
    given_words = {"IMAGES": str(images), "OUT": str(tmp_path / "masks")}
    words = [given_words.get(word, word) for word in predict]
    without_viewalign(["nnunetv2.inference.predict_from_raw_data.predict_entry_point", *words, *flags])
    assert (tmp_path / "masks" / "test_00.nii.gz").is_file()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["resenc", "primus"])
def test_a_fine_tuned_model_predicts_without_viewalign(kind, plan_for, prepared, nnunet_home, tmp_path):
    path = write_encoder(tmp_path, "resenc-xxs")[0] if kind == "resenc" else primus_s(tmp_path)
    _, model = plan_for(path, f"viewalign_model_{kind}", tiny(kind))
    running.train(model, 0, MACHINE)
    images = prepared[1][2] / "imagesTs"
    running.predict(model.folder, images, tmp_path / "ours", [0], MACHINE, mirror=False)
    run = tmp_path / "run"
    run.mkdir()
    results = {"model": str(model.folder), "dataset": "Dataset901_Balls", "results": [{"fold": 0}]}
    (run / "results.json").write_text(json.dumps(results))
    (folder,) = package.export_model(run, tmp_path / "model")
    trainer = {"resenc": "nnUNetTrainer", "primus": "nnUNet_Primus_S_Trainer"}[kind]
    assert folder.name == f"{trainer}__viewalign_model_{kind}__3d_fullres"
    root = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert set(root) == {"network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"}
    for file in folder.rglob("*"):
        if file.is_file():
            assert str(nnunet_home.raw.parent).encode() not in file.read_bytes(), file.name
    predict = "nnunetv2.inference.predict_from_raw_data.predict_entry_point_modelfolder"
    flags = ["-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"]
    without_viewalign([predict, "-i", str(images), "-o", str(tmp_path / "stock"), "-m", str(folder), *flags])
    made = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / who / "test_00.nii.gz"))) for who in ("ours", "stock")]
    assert (made[0] == made[1]).all()


def test_a_fold_with_several_results_is_exported_once(tmp_path):
    model, run = tmp_path / "model", tmp_path / "run"
    (model / "fold_0").mkdir(parents=True)
    architecture = {"network_class_name": "ResidualEncoderUNet"}
    plan = {"plans_name": "p", "configurations": {nnunet.CONFIGURATION: {"architecture": architecture}}}
    (model / "plans.json").write_text(json.dumps(plan))
    (model / "dataset.json").write_text("{}")
    weights = {"network_weights": {}, "init_args": {"configuration": nnunet.CONFIGURATION}}
    torch.save(weights, model / "fold_0" / "checkpoint_final.pth")
    run.mkdir()
    results = {"model": str(model), "dataset": "Dataset901_Balls", "results": [{"fold": 0}, {"fold": 0}]}
    (run / "results.json").write_text(json.dumps(results))
    (folder,) = package.export_model(run, tmp_path / "out")
    assert [path.name for path in folder.glob("fold_*")] == ["fold_0"]


def test_a_moved_run_is_exported_and_one_without_its_model_is_reported(tmp_path):
    model, run = tmp_path / "run" / "nnunet" / "model", tmp_path / "run"
    (model / "fold_0").mkdir(parents=True)
    architecture = {"network_class_name": "ResidualEncoderUNet"}
    plan = {"plans_name": "p", "configurations": {nnunet.CONFIGURATION: {"architecture": architecture}}}
    (model / "plans.json").write_text(json.dumps(plan))
    (model / "dataset.json").write_text('{"channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}')
    weights = {"network_weights": {}, "init_args": {"configuration": nnunet.CONFIGURATION}}
    torch.save(weights, model / "fold_0" / "checkpoint_final.pth")
    results = {"model": "nnunet/model", "dataset": "Dataset901_Balls", "results": [{"fold": 0}]}
    (run / "results.json").write_text(json.dumps(results))
    moved = run.rename(tmp_path / "moved")
    (folder,) = package.export_model(moved, tmp_path / "out")
    assert [path.name for path in folder.glob("fold_*")] == ["fold_0"]
    assert read_trained(moved).folder == moved / "nnunet" / "model"
    shutil.rmtree(moved / "nnunet")
    with pytest.raises(UserError, match="no trained segmentation any more"):
        package.export_model(moved, tmp_path / "out")


def test_what_stock_nnunet_cannot_do_is_reported(prepared, nnunet_home, tmp_path, monkeypatch):
    path, _ = write_encoder(tmp_path, "primus-xxs")
    with pytest.raises(UserError, match="Primus S, B, M and L"):
        package.export_start(str(path), "901", tmp_path / "out")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        package.export_model(tmp_path, tmp_path / "out")
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(UserError, match="nnUNet_preprocessed"):
        package.export_start(str(path), "901", tmp_path / "out")
