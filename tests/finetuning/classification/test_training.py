"""Fine-tuning: starts at chance, resumes to the bit, and prediction uses the same tensors as evaluation."""

import csv
import json
import logging
import math
import os

import numpy as np
import pytest
import SimpleITK
import torch
import yaml
from safetensors.torch import load_file, save_file
from task_fixtures import interrupted_after, trained_by
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.evaluation.encoders import build_encoder, read_pretrained
from viewalign.finetuning.classification.finetune import finetune, make_preprocessor
from viewalign.finetuning.classification.models import Predictor, read_model
from viewalign.finetuning.classification.network import (
    GlobalNetwork,
    case_losses,
    class_weights,
    initial_bias,
    predictions_from_outputs,
)
from viewalign.finetuning.classification.training import (
    FoldTraining,
    augment,
    learning_rate,
    parameter_groups,
    target_scale,
)
from viewalign.recipes.files import TASK_RECIPES
from viewalign.reports.task import write_page
from viewalign.tasks.manifest import TaskCase, read_manifest
from viewalign.tasks.preprocessing import Sample
from viewalign.tasks.spec import TaskSpec, read_spec
from viewalign.utils.locks import LOCK, lock_folder
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.sampling import ViewSamplingConfig, sample_affine

pytestmark = pytest.mark.slow

SIZE = (16, 16, 16)
CLASSES = {"binary": ["n", "y"], "multiclass": ["a", "b", "c"], "multilabel": ["p", "q"], "regression": []}


def spec_of(kind):
    return TaskSpec.model_validate({"name": "x", "kind": kind, "channels": [{"name": "a"}], "classes": CLASSES[kind]})


def some(kind, count=6):
    rng = np.random.default_rng(0)
    targets = {
        "regression": [40.0 + 5 * k for k in range(count)],
        "multilabel": [(k % 2, 1 - k % 2) for k in range(count)],
    }.get(kind, [k % max(1, len(CLASSES[kind])) for k in range(count)])
    cases = [TaskCase(f"c{k}", f"c{k}", {}, target=t) for k, t in enumerate(targets)]
    whole = np.ones((1, *SIZE), dtype=bool)
    samples = {c.case: Sample(rng.normal(size=(1, *SIZE)).astype(np.float32), whole, np.array([True])) for c in cases}
    return spec_of(kind), cases, samples


def network_of(spec, bias=None, name="resenc-xxs", dropout=0.0):
    backbone, _ = build_encoder(read_pretrained(f"untrained:{name}"), SIZE, 1)
    return GlobalNetwork(backbone, spec.outputs, "multistage", dropout, bias or [0.0] * spec.outputs)


def training_of(kind, folder, count=6, **settings):
    spec, cases, samples = some(kind, count)
    given = [
        f"{key}={json.dumps(value)}" for key, value in {"epochs": 2, "batch": 4, "dropout": 0.0, **settings}.items()
    ]
    return FoldTraining(network_of(spec), cases, samples, spec, trained_by(None, given), 0, folder)


def test_the_head_sees_training_features_of_mean_0_and_spread_1_and_takes_that_over():
    network = network_of(spec_of("multiclass")).eval()
    torch.nn.init.normal_(network.head.weight)
    vectors = 5 + torch.randn(40, network.pooling.width) * torch.linspace(0.5, 1.5, network.pooling.width)
    vectors[:, 0] = 7.0  # does not vary, and must not be blown up
    network.standardise(vectors)
    seen = (vectors - network.centre) / network.spread
    torch.testing.assert_close(seen.mean(0), torch.zeros(len(seen[0])), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0)[1:], torch.ones(len(seen[0]) - 1))
    assert float(network.spread[0]) == pytest.approx(0.1 * float(vectors.std(0, correction=0).mean()))
    images, valid = torch.randn(2, 1, *SIZE), torch.ones(2, 1, *SIZE, dtype=torch.bool)
    with torch.no_grad():
        before = network(images, valid)
        network.fold_standardisation()
        torch.testing.assert_close(network(images, valid), before, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.head(network.vectors(images, valid)), before, rtol=1e-4, atol=1e-4)


def test_equal_cases_are_not_blown_up():
    network = network_of(spec_of("binary"))
    network.standardise(torch.full((3, network.pooling.width), 2.0))
    assert torch.equal(network.spread, torch.ones_like(network.spread))


def test_features_are_measured_on_the_cases_of_the_fold_alone(tmp_path):
    training = training_of("binary", tmp_path, epochs=1)
    images = torch.stack([torch.from_numpy(training.samples[c.case].image) for c in training.cases[:4]])
    training.cases, training.steps_per_epoch = training.cases[:4], 1  # as if two were held out
    with torch.no_grad():
        told = training.network.eval().vectors(images, torch.ones_like(images, dtype=torch.bool)).mean(0)
    measured = []
    training.network.standardise = lambda vectors: measured.append(vectors)
    training.run()
    assert measured[0].shape[0] == 4
    torch.testing.assert_close(measured[0].mean(0), told, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resenc-xxs", "primus-xxs"])
@pytest.mark.parametrize(
    ("kind", "chance"), [("binary", math.log(2)), ("multiclass", math.log(3)), ("regression", 1.0)]
)
def test_the_first_loss_is_that_of_chance(kind, chance, name):
    spec, cases, samples = some(kind)
    network = network_of(spec, name=name).eval()
    images = torch.stack([torch.from_numpy(samples[c.case].image) for c in cases])
    out = network(images, torch.ones_like(images[:, :1], dtype=torch.bool))
    centre, spread = target_scale(cases, spec)
    raw = np.array([c.target for c in cases])
    targets = torch.from_numpy((raw - centre) / spread).float() if kind == "regression" else torch.from_numpy(raw)
    assert float(case_losses(out, targets, spec, 0.0).mean()) == pytest.approx(chance, rel=1e-5)
    if kind == "regression":
        np.testing.assert_allclose(predictions_from_outputs(out.detach().double(), spec, centre, spread), raw.mean())


def test_a_bias_is_the_share_of_classes():
    spec = spec_of("binary")
    p = predictions_from_outputs(torch.tensor([initial_bias([0, 0, 0, 1] * 100, spec, balanced=False)]), spec)
    np.testing.assert_allclose(p, [[0.75, 0.25]], atol=2e-3)
    assert initial_bias([0, 0, 0, 1], spec, balanced=True) == [0.0, 0.0]
    weights = class_weights([0, 0, 0, 1], spec)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0]))
    many = predictions_from_outputs(
        torch.tensor([initial_bias([(1, 0), (1, 1), (1, 0)], spec_of("multilabel"), balanced=False)]),
        spec_of("multilabel"),
    )
    np.testing.assert_allclose(many, [[3.5 / 4, 1.5 / 4]])


@pytest.mark.parametrize("kind", list(CLASSES))
def test_every_kind_trains_and_the_parts_of_a_batch_are_the_batch(tmp_path, kind):
    whole, parts = training_of(kind, tmp_path / "a"), training_of(kind, tmp_path / "b", accumulate=3)
    whole.run()
    parts.run()
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert all(math.isfinite(loss) for loss in whole.losses)


def test_class_weights_are_of_the_whole_batch(tmp_path):
    losses = []
    for parts in (1, 4):
        training = training_of(
            "multiclass", tmp_path / str(parts), count=7, accumulate=parts, class_weights=True, batch=7
        )
        training.run()
        losses.append(training.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_resumed_fold_is_the_same_to_the_last_bit(tmp_path):
    straight = training_of("binary", tmp_path / "a", epochs=3, dropout=0.3)
    straight.run()

    with interrupted_after(2):
        training_of("binary", tmp_path / "b", epochs=3, dropout=0.3).run()
    resumed = training_of("binary", tmp_path / "b", epochs=3, dropout=0.3)
    resumed.run()
    assert resumed.losses == straight.losses
    for a, b in zip(straight.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UserError, match=r"lr=0\.0001.* 0\.5.*dropout=0\.3.* 0\.0"):
        training_of("binary", tmp_path / "b", epochs=3, lr=0.5).run()


def test_two_fine_tunings_in_one_folder_are_rejected(tmp_path, striped_task, monkeypatch):
    monkeypatch.setattr("viewalign.utils.locks._PATIENCE", 0.3)
    striped_task(tmp_path / "task", "binary", 8, ("no", "yes"))
    with lock_folder(tmp_path / "out"), pytest.raises(UserError, match=f"process {os.getpid()}"):
        finetune(tmp_path / "task", "untrained:resenc-xxs", tmp_path / "out", trained_by(None))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def test_what_is_frozen_stays(tmp_path):
    for mode, more, stays in (
        ("frozen", {}, True),
        ("head_first", {"head_epochs": 2}, True),
        ("head_first", {"head_epochs": 1}, False),
    ):
        training = training_of("binary", tmp_path / f"{mode}{stays}", mode=mode, lr=0.01, **more)
        before = [p.detach().clone() for p in training.network.backbone.parameters()]
        training.run()
        same = all(torch.equal(a, b) for a, b in zip(before, training.network.backbone.parameters(), strict=True))
        assert same is stays
        assert float(training.network.head.weight.detach().abs().max()) > 0


@pytest.mark.parametrize("name", ["resenc-xxs", "primus-xxs"])
def test_rates_shrink_towards_the_input_and_positions_do_not_decay(name):
    network = network_of(spec_of("binary"), name=name)
    groups = parameter_groups(network, trained_by(None, ["mode=layerwise", "layer_decay=0.5"]))
    where = {id(p): group for group in groups for p in group["params"]}
    blocks = [where[id(next(block.parameters()))]["scale"] for block in network.backbone.blocks()]
    assert blocks == sorted(blocks)
    assert blocks[0] < blocks[-1] < where[id(network.head.weight)]["scale"] == 1.0
    if name.startswith("primus"):  # the last norm is beside the head; features do not pass the feature decoder
        encoder = network.backbone.net.eva
        last = next(encoder.blocks[-1].parameters())
        assert where[id(encoder.norm.weight)]["scale"] == where[id(last)]["scale"] == 0.5
        assert where[id(encoder.pos_embed)]["scale"] == 0.5 ** (len(encoder.blocks) + 1)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    for key, parameter in network.named_parameters():
        if parameter.ndim == 1 or key.endswith("pos_embed"):
            assert where[id(parameter)]["weight_decay"] == 0.0


def test_the_schedule_rises_then_falls_to_nothing():
    settings = trained_by(None, ["lr=1", "warmup_epochs=10"])
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1.0
    assert rates[-1] < 1e-3


def test_balanced_draws_are_balanced(tmp_path):
    training = training_of("binary", tmp_path, count=6, balanced=True, batch=4)
    training.cases = [*training.cases, *[c for c in training.cases if c.target == 0] * 5]
    drawn = [case.target for step in range(20) for case in training._sample_cases(0, step)]
    assert drawn.count(0) == drawn.count(1)


def test_rotations_turn_both_ways_and_not_always():
    drawing = ViewSamplingConfig(size=SIZE, mirror=False, p_rotation=0.5, p_scale=0.0)
    turns = [float(sample_affine(np.random.default_rng(k), SIZE, drawing)[0, 1]) for k in range(100)]
    assert sum(turn > 0 for turn in turns) > 10
    assert sum(turn < 0 for turn in turns) > 10
    assert sum(turn == 0 for turn in turns) > 20


def test_channels_are_dropped_but_never_all():
    image, valid = torch.ones(3, *SIZE), torch.ones(1, *SIZE, dtype=torch.bool)
    plain = ViewSamplingConfig(size=SIZE, mirror=False, p_rotation=0.0, p_scale=0.0)
    nothing = IntensityConfig(
        p_brightness=0, p_contrast=0, p_gamma=0, p_gamma_inverted=0, p_low_resolution=0, p_blur=0, p_noise=0
    )
    present = np.array([True, False, True])
    left = []
    for k in range(40):
        out, _ = augment(image, valid, present, np.random.default_rng(k), plain, nothing, 0.9)
        left.append(out.flatten(1).any(1).tolist())
    assert all(any(one) and not one[1] for one in left)
    assert [True, False, False] in left
    assert [False, False, True] in left


def test_targets_are_standardised_by_the_training_cases_alone():
    spec, cases, _ = some("regression")
    centre, spread = target_scale(cases[:3], spec)
    assert (centre, spread) == (45.0, pytest.approx(np.std([40.0, 45.0, 50.0])))


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_a_fine_tuning_is_evaluated_predicted_and_reported(tmp_path, striped_task, kind):
    classes = ("a", "b", "c")
    striped_task(tmp_path / "task", kind, 12, classes)
    settings = trained_by(None, ["epochs=1", "batch=4", "folds=3", "draws=100", "patch_size=16", "spacing=none"])
    result, excluded = finetune(tmp_path / "task", "untrained:resenc-xxs", tmp_path / "out", settings)
    assert not excluded
    assert len(result.cases) == 12
    with (tmp_path / "out" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["fold"] for row in rows} == {"0", "1", "2"}
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())["held_out"]
    assert told["values"] == pytest.approx(result.values, nan_ok=True)
    # what a fold was judged on is what its model predicts from the file
    spec = read_model(tmp_path / "out" / "fold_0").spec
    case = next(
        c for c in read_manifest(tmp_path / "task", spec) if c.case == next(r["case"] for r in rows if r["fold"] == "0")
    )
    again = Predictor(tmp_path / "out" / "fold_0").predict(case)
    row = next(r for r in rows if r["case"] == case.case)
    columns = ["value"] if kind == "regression" else [f"p_{name}" for name in classes]
    np.testing.assert_allclose([float(row[name]) for name in columns], again, rtol=1e-6)
    if kind == "regression":
        assert float(row["value"]) != int(float(row["value"]))
    else:
        assert again.sum() == pytest.approx(1.0)
    folds = [Predictor(tmp_path / "out" / f"fold_{k}").predict(case) for k in range(3)]
    np.testing.assert_allclose(Predictor(tmp_path / "out").predict(case), np.mean(folds, axis=0))
    with pytest.raises(UserError, match=r"lr=.* 1\.0"):
        finetune(tmp_path / "task", "untrained:resenc-xxs", tmp_path / "out", settings.model_copy(update={"lr": 1.0}))


def test_a_fine_tuning_of_something_else_is_not_resumed(tmp_path, striped_task):
    """Nothing would be trained, and the old predictions would be those of another encoder, task or image."""
    task, out = tmp_path / "task", tmp_path / "out"
    striped_task(task, "binary", 8, ("no", "yes"))
    words = ["epochs=1", "batch=4", "folds=2", "draws=100", "patch_size=16", "spacing=none"]
    finetune(task, "untrained:resenc-xxs", out, trained_by(None, words))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    manifest, spec = (task / "manifest.csv"), (task / "task.yaml")
    rows, definition = manifest.read_text(), spec.read_text()
    (image,) = read_manifest(task, read_spec(task))[0].images.values()
    again = trained_by(None, words)

    def refused(what, encoder="untrained:resenc-xxs"):
        with pytest.raises(UserError, match=what):
            finetune(task, encoder, out, again)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    refused("weights of the encoder", "untrained:primus-xxs")
    manifest.write_text(rows.replace(",yes,", ",?,").replace(",no,", ",yes,").replace(",?,", ",no,"))
    assert manifest.read_text() != rows
    refused("targets")
    manifest.write_text(rows)
    tree = yaml.safe_load(definition)
    spec.write_text(yaml.safe_dump({**tree, "classes": tree["classes"][::-1]}))
    refused("classes")
    spec.write_text(definition)
    content = image.read_bytes()
    array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(image)))
    array[9, 9, 9] += 500  # not moved or scaled, which preparation undoes
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(image))
    refused("images")
    image.write_bytes(content)
    finetune(task, "untrained:resenc-xxs", out, again)
    (out / "basis.json").unlink()  # of an earlier version
    finetune(task, "untrained:resenc-xxs", out, again)


def test_one_fold_trains_on_all_and_is_evaluated_on_the_test_cases(tmp_path, striped_task, mark_as_test, caplog):
    """Training on all training cases with test cases: one model, its page and metrics over the test cases."""
    striped_task(tmp_path / "task", "regression", 12)
    judged = mark_as_test(tmp_path / "task", 4)
    out = tmp_path / "out"
    caplog.set_level(logging.INFO, "viewalign")
    settings = trained_by(None, ["epochs=1", "batch=4", "folds=1", "draws=100", "patch_size=16", "spacing=none"])
    result, _ = finetune(tmp_path / "task", "untrained:resenc-xxs", out, settings)
    assert sorted(result.cases) == sorted(judged)
    told = json.loads((out / "metrics.json").read_text())
    assert "held_out" not in told
    assert told["test"]["cases"] == 4
    assert len(json.loads((out / "folds.json").read_text())["folds"][0]["train"]) == 8
    assert sorted(file.name for file in out.glob("fold_*")) == ["fold_0"]
    assert any("4 test cases" in line for line in caplog.messages)
    page = write_page(out).read_text()
    assert "over 4 test cases of 4 subjects" in page
    assert "Each fold" not in page


def test_commands_list_what_failed_and_predict_new_cases(tmp_path, striped_task):
    striped_task(tmp_path / "task")
    (tmp_path / "task" / "images" / "c03_t1.nii.gz").write_bytes(b"broken")
    run, out = CliRunner().invoke, tmp_path / "out"
    settings = ["epochs=1", "batch=4", "folds=2", "draws=100", "patch_size=16", "spacing=none"]
    arguments = [str(tmp_path / "task"), *settings, "untrained:resenc-xxs", "-o", str(out)]
    told = run(app, ["finetune", "classification", *arguments])
    assert told.exit_code == 3, told.output
    assert json.loads((out / "refused.json").read_text())[0][0] == "c03"
    wrong = run(app, ["finetune", "regression", *arguments])
    assert isinstance(wrong.exception, UserError)
    told = run(
        app, ["predict", str(out), str(tmp_path / "task" / "manifest.csv"), "-o", str(tmp_path / "p.csv"), "tta=true"]
    )
    assert told.exit_code == 3, told.output
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 12
    state = load_file(out / "fold_0" / "model.safetensors")
    state.pop(next(iter(state)))
    save_file(state, out / "fold_0" / "model.safetensors")
    with pytest.raises(UserError, match="fold_0"):
        Predictor(out)


def test_a_deviation_from_pretraining_is_reported(tiny_run, caplog):
    start = read_pretrained(tiny_run)
    with caplog.at_level(logging.INFO, "viewalign"):
        same = make_preprocessor(start, spec_of("binary"), trained_by(None))
        assert not caplog.messages
        make_preprocessor(start, spec_of("binary"), trained_by(None, ["normalise=none"]))
    assert same.size == start.size
    assert "those of pretraining were" in caplog.text


def test_recipes_are_read_and_wrong_keys_answered():
    assert TASK_RECIPES.names() == ["fomo-brain-age", "fomo-infarct", "fomo-polymicrogyria", "ssl3d-abide"]
    for name in TASK_RECIPES.names():
        trained_by(name)
    cube = trained_by(None, ["patch_size=96", "spacing=4"])
    assert (cube.patch_size, cube.spacing) == ((96, 96, 96), (4.0, 4.0, 4.0))
    abide = trained_by("ssl3d-abide", ["epochs=3", "lr=1e-3"])
    assert (abide.patch_size, abide.smoothing, abide.epochs, abide.lr) == ((160, 160, 160), 0.2, 3, 1e-3)
    with pytest.raises(UserError, match="'smoothing'"):
        trained_by(None, ["smoothin=0.1"])
    with pytest.raises(UserError, match=r"'augment\.scale'"):
        trained_by(None, ["augment.scal=[1,2]"])
