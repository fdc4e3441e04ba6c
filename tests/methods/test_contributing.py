"""The example of CONTRIBUTING is complete: its file, registry line and recipe run."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from viewalign import methods
from viewalign.data.store import store_from_arrays
from viewalign.methods import registry
from viewalign.recipes.loading import load
from viewalign.training.run import pretrain
from viewalign.weights.run_folder import read_log

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


def block(language):
    return re.search(rf"```{language}\n(.*?)```", TEXT, re.S).group(1)


@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch):
    code = block("python")
    assert len(code.strip().splitlines()) <= 45
    (tmp_path / "denoise.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    entry = eval("{" + block("text") + "}", vars(registry).copy())
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, **entry})
    (tmp_path / "mine.yaml").write_text(block("yaml"))
    volumes = {f"case{k}": np.random.default_rng(k).normal(size=(20, 20, 20)).astype(np.float32) for k in range(3)}
    store_from_arrays(tmp_path / "store", volumes)
    settings = [
        "views.patch_size=16",
        "batch=2",
        "steps=2",
        "log.every=1",
        "runtime.workers=0",
        "runtime.precision=fp32",
    ]
    paths = [f"data={tmp_path / 'store'}", f"out={tmp_path / 'run'}"]
    recipe = load(str(tmp_path / "mine.yaml"), [*settings, *paths])
    assert recipe.pretext == {"deviation": 0.3}
    rows = read_log(pretrain(recipe).folder.log)
    assert len([row for row in rows if row["kind"] == "train" and row["loss"] > 0]) == 2
    sys.modules.pop("viewalign.methods.denoise", None)
