"""The online probe: its schedule, log and page, and no effect on the run."""

import random

import numpy as np
import pytest
import torch
from run_fixtures import tiny_network
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.data.readers.itk import sitk
from viewalign.data.store import Store, store_from_arrays
from viewalign.errors import UserError
from viewalign.evaluation.online_probe import make_probe, preserved_state
from viewalign.networks.registry import build_backbone
from viewalign.recipes.loading import load
from viewalign.reports.run import write_report
from viewalign.tasks.manifest import TaskCase, write_manifest
from viewalign.tasks.spec import TaskSpec, write_spec
from viewalign.training.run import pretrain
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import read_log

TIMES = {"samples_per_second", "data_wait"}


@pytest.fixture
def task(tmp_path):
    spec = TaskSpec.model_validate(
        {"name": "halves", "kind": "binary", "classes": ["no", "yes"], "channels": [{"name": "t1"}]}
    )
    rng, cases = np.random.default_rng(0), []
    for k in range(16):
        array = 100 + 10 * rng.normal(size=(20, 20, 24)).astype(np.float32)
        array[:, :, 12:] *= 1 + k % 2
        path = tmp_path / "task" / f"c{k}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
        cases.append(TaskCase(f"c{k:02d}", f"s{k}", {"t1": path}, target=k % 2))
    write_spec(spec, tmp_path / "task")
    write_manifest(cases, spec, tmp_path / "task")
    return tmp_path / "task"


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    store_from_arrays(tmp_path / "store", {f"p{k}": rng.normal(size=(20, 20, 24)).astype(np.float32) for k in range(6)})
    return tmp_path / "store"


def settings(store, out, *more):
    return [f"data={store}", f"out={out}", "views.patch_size=[16,16,16]", "steps=5", "batch=2", "heads.width=16",
            "heads.predictor_width=8", "runtime.workers=0", "validate.every=0", "log.every=1", *more]  # fmt: skip


def curve(folder):
    rows = [row for row in read_log(folder / "log.jsonl") if row["kind"] in ("train", "health")]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resenc", pytest.param("primus", marks=pytest.mark.long)])
def test_a_run_is_identical_with_and_without_a_probe(tmp_path, task, store, network):
    more = [f"validate.probe.task={task}", "validate.probe.every=2", "validate.probe.folds=2"]
    shared = ["runtime.precision=fp32"]  # `auto` is measured, and may come out otherwise for the second run
    shared += ["network.drop_path=0.2"] if network == "primus" else []
    name = f"cva-{network}-xs"
    shared += [tiny_network(name)] if network == "resenc" else []  # a smaller Primus does not see the brightness
    plain = load(name, settings(store, tmp_path / "plain", *shared))
    probed = load(name, settings(store, tmp_path / "probed", *shared, *more))
    pretrain(plain)
    pretrain(probed, probe=make_probe(probed))
    assert curve(tmp_path / "plain") == curve(tmp_path / "probed")
    states = [checkpoints.load_newest(tmp_path / run / "checkpoints") for run in ("plain", "probed")]
    for key, value in states[0]["method"].items():
        assert torch.equal(value, states[1]["method"][key]), key
    assert str(task) not in str(states[1]["recipe"])
    rows = [row for row in read_log(tmp_path / "probed" / "log.jsonl") if row["kind"] == "probe"]
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert all(row["auroc_low"] <= row["auroc"] <= row["auroc_high"] for row in rows)
    assert rows[-1]["auroc"] > 0.9  # brightness of a half is seen by any features
    page = write_report(tmp_path / "probed").read_text()
    assert "Probe: auroc" in page
    assert "Step 0 is the untrained network" in page


def test_modes_and_generators_are_restored():
    backbone = build_backbone("primus-xxs", (16, 16, 16), 1)
    backbone.train()
    backbone.feature_decoder.eval()
    states = [torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    with preserved_state(backbone):
        assert not backbone.training
        torch.randn(3), np.random.rand(3), random.random()
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    assert backbone.training
    assert not backbone.feature_decoder.training


def test_cases_are_prepared_as_the_images_of_an_open_store(tmp_path, task, store):
    """A store that is given in memory, and not by its path."""
    open_store = Store.open(store)
    open_store.recipe = {**open_store.recipe, "normalise": "percentile"}
    recipe = load("cva-resenc-xs", [f"validate.probe.task={task}", f"out={tmp_path / 'run'}"])
    assert make_probe(recipe, open_store).preprocessor.settings.normalise == "percentile"


@pytest.mark.slow
def test_invalid_tasks_are_rejected_before_any_step(tmp_path, task, store):
    def make(*more):
        return load("cva-resenc-xs", settings(store, tmp_path / "run", f"validate.probe.task={task}", *more))

    with pytest.raises(UserError, match="viewalign pretrain"):
        pretrain(make())
    with pytest.raises(UserError, match="channel"):
        make_probe(make("network.channels=2"))
    with pytest.raises(UserError, match="/nowhere"):
        make_probe(make("validate.probe.task=/nowhere"))
    (task / "c3.nii.gz").write_bytes(b"x")
    _, _, *words = settings(store, tmp_path / "run", f"validate.probe.task={task}")
    told = CliRunner().invoke(app, ["pretrain", "cva-resenc-xs", str(store), "-o", str(tmp_path / "run"), *words])
    assert isinstance(told.exception, UserError)
    assert "validate.probe: case c03 cannot be used" in str(told.exception)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
