"""The contract with stock nnunetv2: plan, preprocess, train and predict, for both kinds of network."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import environment, plans
from viewalign.finetuning.segmentation import nnunet as running
from viewalign.finetuning.segmentation.nnunet import Machine

from .conftest import tiny, write_encoder

pytest.importorskip("nnunetv2")
pytestmark = pytest.mark.slow
MACHINE = Machine("cpu", 1, 1)


def checkpoint_of(model, fold=0, name="checkpoint_final.pth"):
    return torch.load(model.fold(fold) / name, weights_only=False)


@pytest.mark.parametrize(
    ("network", "channels", "patch"),
    [
        pytest.param("resenc-xxs", 1, (32, 32, 32), marks=pytest.mark.long),
        pytest.param("resenc-xxs", 3, (24, 32, 40), marks=pytest.mark.long),
        pytest.param("primus-xxs", 3, (32, 32, 32), marks=pytest.mark.long),
        pytest.param("primus-xxs", 1, (24, 32, 40), marks=pytest.mark.long),
    ],
)
def test_train_and_predict(network, channels, patch, prepared, plan_for, tmp_path):
    path, _ = write_encoder(tmp_path, network)
    family = network.split("-")[0]
    planned, model = plan_for(path, f"viewalign_{family}_{channels}", tiny(family), channels, patch=patch)
    assert planned.configuration["patch_size"] == list(patch)
    assert planned.configuration["spacing"] == [1.0, 1.0, 1.0]
    path.unlink()  # nothing but what lies beside the plan is needed from here on
    running.train(model, 0, MACHINE)
    report = json.loads((model.fold(0) / "transfer.json").read_text())
    assert report["encoder_share"] == 1.0
    assert report["counts"]["adapted"] == (channels != 1) + (network == "primus-xxs" and patch != (32, 32, 32))
    case = planned.folder / "gt_segmentations" / "case_04.nii.gz"
    validation = sitk.ReadImage(str(model.fold(0) / "validation" / "case_04.nii.gz"))
    assert validation.GetSize() == sitk.ReadImage(str(case)).GetSize()
    stored = planned.folder / planned.plan[plans.BLOCK]["encoder"]["file"]
    stored.rename(tmp_path / "away.pth")  # prediction needs no pretraining file
    out = tmp_path / "out"
    running.predict(model.folder, prepared[channels][2] / "imagesTs", out, [0], MACHINE, mirror=False)
    (tmp_path / "away.pth").rename(stored)
    made = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "test_00.nii.gz")))
    assert made.shape == (32, 32, 32)
    assert set(np.unique(made)) <= {0, 1, 2}


def trainer_of(planned, schedule=None, resume=False):
    """Build the trainer as nnU-Net's command does."""
    from viewalign.finetuning.segmentation.trainer import ViewalignTrainer

    plan = json.loads(json.dumps(planned.plan)) | {"continue_training": resume}
    if schedule is not None:
        plan[plans.BLOCK]["schedule"] = schedule.as_json()
    description = json.loads((planned.folder / "dataset.json").read_text())
    return ViewalignTrainer(plan, plans.CONFIGURATION, 0, description, torch.device("cpu"))


@pytest.fixture
def quick(monkeypatch):
    """No pictures and no loader processes."""
    monkeypatch.setenv(environment.LOADERS, "0")
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", lambda *_: None)


@pytest.mark.parametrize("network", [pytest.param("resenc-xxs", marks=pytest.mark.long), "primus-xxs"])
def test_every_stage_freezes_its_parameters_and_resumes_exactly(network, plan_for, tmp_path, quick):
    path, backbone = write_encoder(tmp_path, network)
    family = network.split("-")[0]
    schedule = tiny(family, epochs=4, frozen=2, warmup_epochs=1, iterations=1)
    planned, model = plan_for(path, f"viewalign_stages_{family}", schedule)
    given = dict(backbone.net.named_parameters())

    def moved(trainer):
        encoder = {id(parameter) for parameter in trainer.encoder_parameters()}
        own = dict(trainer.module.named_parameters())
        own = {name: value for name, value in own.items() if name in given and id(value) in encoder}
        assert len(own) > 15
        return [name for name, value in own.items() if not torch.equal(value, given[name])]

    class KilledError(Exception):
        pass

    def run_until(epoch, resume):
        trainer = trainer_of(planned, resume=resume)
        if resume:
            trainer.load_checkpoint(str(model.fold(0) / "checkpoint_latest.pth"))
        original = trainer.on_epoch_end

        def end():
            original()
            if trainer.current_epoch == epoch:
                raise KilledError

        trainer.on_epoch_end = end
        with pytest.raises(KilledError):
            trainer.run_training()
        return trainer

    decoder = {n: v.clone() for n, v in _fresh(planned, trainer_of(planned)).items()}
    first = run_until(1, resume=False)
    assert moved(first) == []  # truly frozen: not a number of the encoder has changed
    assert any(not torch.equal(dict(first.module.named_parameters())[n], v) for n, v in decoder.items())
    second = run_until(2, resume=True)
    assert moved(second) == []
    assert not any(parameter.requires_grad for parameter in second.encoder_parameters())
    third = run_until(3, resume=True)
    assert moved(third)
    resumed = {name: value.clone() for name, value in third.module.state_dict().items()}
    whole = run_until(3, resume=False)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed[name]), name


def _fresh(planned, trainer):
    """Return the decoder's first weights."""
    trainer.initialize()
    encoder = {id(parameter) for parameter in trainer.encoder_parameters()}
    return {n: p for n, p in trainer.module.named_parameters() if id(p) not in encoder}


def test_from_scratch_has_the_same_plan_and_decoder_and_no_encoder(plan_for, tmp_path, quick):
    path, backbone = write_encoder(tmp_path, "resenc-xxs")
    with_weights, _ = plan_for(path, "viewalign_pretrained", tiny("resenc"))
    scratch, model = plan_for(path, "viewalign_scratch", tiny("resenc"), scratch=True)
    assert scratch.configuration == with_weights.configuration
    assert scratch.plan[plans.BLOCK]["encoder"] is None
    trainers = [trainer_of(planned) for planned in (with_weights, scratch)]
    for trainer in trainers:
        trainer.on_train_start()
    stem = "encoder.stem.convs.0.conv.weight"
    given = dict(backbone.net.named_parameters())[stem]
    assert torch.equal(trainers[0].module.get_parameter(stem), given)
    assert not torch.equal(trainers[1].module.get_parameter(stem), given)
    for name, value in trainers[1].module.decoder.named_parameters():
        if not name.startswith("encoder."):
            assert torch.equal(value, trainers[0].module.decoder.get_parameter(name)), name
    assert not (model.fold(0) / "transfer.json").exists()


def test_the_optimizer_and_clipping_are_the_plan_s(plan_for, tmp_path, quick, monkeypatch):
    path, _ = write_encoder(tmp_path, "primus-xxs")
    planned, _ = plan_for(path, "viewalign_optimizer", tiny("primus", lr=1e-4, mirror=False))
    trainer = trainer_of(planned)
    limits = []
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda _, limit: limits.append(limit))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert limits == [1.0]
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-4, 5e-2, (0.9, 0.98))
    assert trainer.inference_allowed_mirroring_axes is None
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (1, 2)


def test_invalid_plans_are_errors(plan_for, tmp_path, quick):
    path, _ = write_encoder(tmp_path, "resenc-xxs")
    planned, _ = plan_for(path, "viewalign_bad", tiny("resenc"))
    stored = planned.folder / planned.plan[plans.BLOCK]["encoder"]["file"]
    content = stored.read_bytes()
    try:
        stored.unlink()
        with pytest.raises(UserError, match="missing"):
            trainer_of(planned).on_train_start()
        changed = torch.load(path, weights_only=True)
        changed["network_weights"]["encoder.stem.convs.0.conv.weight"] += 1
        torch.save(changed, stored)
        with pytest.raises(UserError, match="weights"):
            trainer_of(planned).on_train_start()
    finally:
        stored.write_bytes(content)
    del planned.plan[plans.BLOCK]
    with pytest.raises(UserError, match="viewalign finetune"):
        trainer_of(planned)
    shallow, _ = plan_for(path, "viewalign_bf16", tiny("resenc", precision="bf16"), patch=(16, 32, 32))
    with pytest.raises(UserError, match="2 cells"):
        trainer_of(shallow)


@pytest.mark.long
def test_nnunet_s_own_commands_after_eval(plan_for, prepared, nnunet_home, tmp_path):
    path, _ = write_encoder(tmp_path, "resenc-xxs")
    _, model = plan_for(path, "viewalign_commands", tiny("resenc"))
    out = tmp_path / "out"
    script = f"""
    set -e
    unset nnUNet_extTrainer
    eval "$({sys.executable} -m viewalign nnunet env)"
    export nnUNet_n_proc_DA=0 OMP_NUM_THREADS=1
    nnUNetv2_train 901 3d_fullres 0 -p viewalign_commands -tr ViewalignTrainer -device cpu
    nnUNetv2_predict -d 901 -i {prepared[1][2] / "imagesTs"} -o {out} -c 3d_fullres -p viewalign_commands \\
        -tr ViewalignTrainer -f 0 -device cpu -npp 1 -nps 1 --disable_tta
    """
    path.unlink()
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": search}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (out / "test_00.nii.gz").is_file()
    assert checkpoint_of(model)["trainer_name"] == "ViewalignTrainer"


def test_the_dataset_s_own_network_takes_what_fits(prepared, nnunet_home, tmp_path):
    from viewalign.weights import loading
    from viewalign.weights.reading import read_source

    one, base, _ = prepared[1]
    path, backbone = write_encoder(tmp_path, "resenc-l", size=(64, 64, 64))
    source = read_source(path)
    plan = plans.make_plan(base, source.plan, plans.Choices("own", own_network=True), "x.pth", one.channels)
    configuration = plan["configurations"]["3d_fullres"]
    own = base["configurations"]["3d_fullres"]
    assert configuration["architecture"] == own["architecture"]
    assert configuration["patch_size"] == own["patch_size"]
    network = plans.build_network(configuration["architecture"], one.channels, 3, configuration["patch_size"])
    fitted = loading.load_encoder_weights(network, source)
    assert len(network.encoder.stages) < 6  # nnU-Net planned a shallower one for images this small
    assert fitted.encoder_share == 1.0
    last = "encoder.stages.2.blocks.1.conv2.conv.weight"
    assert torch.equal(network.get_parameter(last), backbone.net.get_parameter(last))


@pytest.mark.long
@pytest.mark.parametrize("network", ["resenc-xxs", pytest.param("primus-xxs", marks=pytest.mark.long)])
def test_two_processes_stay_together_through_both_stages(network, plan_for, tmp_path, quick):
    """DDP is set up again when the encoder is unfrozen; weights are the same in both, and one of them writes."""
    path, _ = write_encoder(tmp_path, network)
    family = network.split("-")[0]
    schedule = tiny(family, epochs=2, frozen=1, iterations=2, precision="fp32")
    planned, _ = plan_for(path, f"viewalign_two_{family}", schedule, batch=2)
    plan, program = tmp_path / "plan.json", Path(__file__).with_name("rank_of_two.py")
    plan.write_text(json.dumps(planned.plan))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                program,
                plan,
                planned.folder / "dataset.json",
                str(rank),
                str(port),
                tmp_path / f"{rank}.json",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [rank.communicate(timeout=400)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "".join(told)[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["ddp"]
    assert (first["batch"], second["batch"]) == (1, 1)
    assert first["diary"] == second["diary"]
    (encoder, whole), (same_encoder, moved), (_, _), (thawed, _) = first["diary"]
    assert same_encoder == encoder
    assert moved != whole
    assert thawed != encoder
    assert json.loads((Path(first["folder"]) / "transfer.json").read_text())["encoder_share"] == 1.0
