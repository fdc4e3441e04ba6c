import numpy as np
import pytest

from viewalign.data.store import store_from_arrays
from viewalign.recipes.loading import load
from viewalign.training.run import pretrain


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
    recipe = load(f"cva-{request.param}-xs", [f"data={root / 'store'}", f"out={root / 'run'}", *settings])
    return pretrain(recipe).folder.root
