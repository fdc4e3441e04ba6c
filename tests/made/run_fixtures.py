import numpy as np
import pytest

from viewalign.data.store import store_from_arrays
from viewalign.recipes.loading import load
from viewalign.training.run import pretrain

TINY = [
    "views.patch_size=[16,16,16]",
    "heads.width=16",
    "heads.predictor_width=8",
    "batch=4",
    "objectives.cells=[3,3,3]",
    "optim.warmup_steps=2",
    "runtime.precision=fp32",
    "runtime.workers=0",
    "log.every=1",
    "log.health_every=4",
    "log.tensorboard=false",
    "validate.every=0",
]


def tiny_network(recipe):
    """Return the setting that gives a recipe the smallest network of its family."""
    return f"network={'primus' if 'primus' in recipe else 'resenc'}-xxs"


def smooth_volumes(count, shape=(20, 22, 24)):
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(count, 4, 4, 4))
    return {
        f"case{k:02d}": np.kron(one, np.ones((5, 6, 6)))[: shape[0], : shape[1], : shape[2]].astype(np.float32)
        for k, one in enumerate(coarse)
    }


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "store"
    store_from_arrays(path, smooth_volumes(8))
    return path


@pytest.fixture
def tiny_recipe(tiny_store, tmp_path):
    def make(*settings, recipe="cva-resenc-xs", out="run", steps=6):
        own = [f"data={tiny_store}", f"out={tmp_path / out}", f"steps={steps}", tiny_network(recipe)]
        return load(recipe, [*own, *settings], common=TINY)

    return make


@pytest.fixture(scope="session", params=["resenc", "primus"])
def tiny_run(request, tmp_path_factory):
    """The folder of a run of two steps, for each kind of network."""
    root = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    arrays = {f"patient_jane_doe_{k}": rng.normal(size=(20, 20, 20)).astype(np.float32) for k in range(6)}
    store_from_arrays(root / "store", arrays)
    settings = [
        "views.patch_size=[16,16,24]",
        "steps=2",
        "batch=2",
        "heads.width=16",
        "runtime.workers=0",
        "validate.every=0",
    ]
    name = f"cva-{request.param}-xs"
    recipe = load(name, [f"data={root / 'store'}", f"out={root / 'run'}", tiny_network(name), *settings])
    return pretrain(recipe).folder.root
