"""What holds of every method: it runs, resumes bit by bit, is exported and reported, in parts and on two processes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import viewalign
from viewalign.data.store import Store
from viewalign.errors import UserError
from viewalign.methods.registry import METHODS, build_method, requirements_of
from viewalign.recipes import loading
from viewalign.recipes.loading import to_yaml
from viewalign.reports.run import write_report
from viewalign.training.accumulate import step_in_parts
from viewalign.training.run import prepare_networks, pretrain, view_sampling_config
from viewalign.views.batch import build_views
from viewalign.views.samples import SampleReader
from viewalign.weights.export import export_run
from viewalign.weights.run_folder import RunFolder, read_log

from .test_resume import assert_same_run, stop_after

RECIPES = [f"{method}-{family}-xs" for method, entry in METHODS.items() for family in entry.networks]

SHORT = {
    *("cva-resenc-xs", "mae-primus-xs", "spark-resenc-xs", "simclr-resenc-xs", "gvsl-resenc-xs", "fusion-resenc-xs"),
    "dino-cva-primus-xs",
}
"""One recipe for each base class and family of networks; the long suite runs all."""

EVERY = [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in RECIPES]

OTHERS = [
    name if name in SHORT else pytest.param(name, marks=pytest.mark.long)
    for name in RECIPES
    if not name.startswith("cva")
]
"""Without CVA, whose own tests ask the same."""


def load_small(tiny_recipe, *settings, recipe, **kinds):
    if recipe.startswith("voco"):
        settings = ("pretext.grid=[1,1,2]", "pretext.targets=2", *settings)
    if recipe.startswith("pcrlv2"):
        settings = ("pretext.locals=2", "pretext.local_size=[16,8,8]", *settings)
    if recipe.startswith("dino"):
        settings = ("pretext.locals=2", "pretext.local_size=[16,8,8]", "pretext.prototypes=64", *settings)
    return tiny_recipe(*settings, recipe=recipe, **kinds)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", EVERY)
def test_it_runs_resumes_exports_and_reports(recipe, tiny_recipe, monkeypatch):
    whole = pretrain(load_small(tiny_recipe, recipe=recipe, out="whole", steps=3)).folder
    with monkeypatch.context() as patched:
        stop_after(patched, 1)
        assert pretrain(load_small(tiny_recipe, recipe=recipe, out="parts", steps=3)).step == 1
    assert_same_run(whole, pretrain(load_small(tiny_recipe, recipe=recipe, out="parts", steps=3), resume="auto").folder)
    rows = read_log(whole.log)
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert all(row["feature_std"] > 0 and row["effective_rank"] > 1 for row in rows if row["kind"] == "health")
    assert not [row for row in rows if row["kind"] == "event"]
    assert "Features as colours" in write_report(whole.root).read_text()
    check_export(export_run(whole.root), whole.recipe())


def small_views(recipe):
    if "primus" not in recipe:
        return []
    return [
        "views.patch_size=[8,8,8]",
        *(["pretext.local_size=[8,4,4]"] if recipe.startswith(("pcrlv2", "dino")) else []),
    ]


def check_export(folder, recipe):
    """The encoder loads strictly here, and into a plain network of the library that nnU-Net builds."""
    encoder = viewalign.load_encoder(folder)
    size = recipe.views.patch_size
    with torch.no_grad():
        assert torch.isfinite(encoder(torch.zeros(1, 1, *size)).pooled).all()
    plan = json.loads((folder / "adaptation_plan.json").read_text())
    state = torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"]
    for prefix in (plan["key_to_encoder"], plan["key_to_stem"]):
        assert [name for name in state if name.startswith(prefix)]
    own = load_file(folder / "encoder.safetensors")
    for name, value in own.items():
        assert torch.equal(state[name], value), name


def batch_of(recipe, store):
    """One batch of a recipe's views."""
    store = Store.open(store)
    subjects = np.arange(len(store))
    reader = SampleReader(
        store,
        subjects,
        subjects,
        view_sampling_config(recipe.views),
        recipe.batch,
        0,
        sampler=requirements_of(recipe).sampler,
    )
    samples = [reader[k] for k in range(recipe.batch)]
    return build_views(samples, recipe.views.patch_size, recipe.views.photometric)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OTHERS)
def test_a_batch_in_parts_is_the_batch(recipe, tiny_recipe, tiny_store):
    settings = load_small(tiny_recipe, *small_views(recipe), recipe=recipe)
    batch = batch_of(settings, tiny_store).double()
    gradients = []
    for parts in (1, 2):
        torch.manual_seed(0)
        method = build_method(settings).double()
        if parts == 1:
            result = method(batch, return_diagnostics=True)
            result.loss.backward()
        else:
            result = step_in_parts(method, batch, 2, _plain, return_diagnostics=True)
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.requires_grad})
        losses = float(result.loss.detach())
    one, two = gradients
    # Parameters without a gradient must be frozen: processes would wait for it.
    assert not [name for name, gradient in one.items() if gradient is None]
    for name, gradient in one.items():
        assert torch.allclose(gradient, two[name], rtol=1e-6, atol=1e-9), name
    assert np.isfinite(losses)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in RECIPES if "primus" in name])
def test_recomputed_activations_give_the_same_gradients_with_stochastic_depth(recipe, tiny_recipe, tiny_store):
    """Of a method that passes several kinds of views through a network, too: each has its own skipped branches."""
    gradients = []
    for recompute in (False, True):
        changes = ["network.drop_path=0.5", f"runtime.recompute={recompute}", "network=primus-xxs"]
        settings = load_small(tiny_recipe, *small_views(recipe), *changes, recipe=recipe)
        torch.manual_seed(0)
        method = build_method(settings)
        prepare_networks(method, settings.runtime)
        method.train()(batch_of(settings, tiny_store)).loss.backward()
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.requires_grad})
    stored, again = gradients
    for name, gradient in stored.items():
        assert torch.allclose(gradient, again[name], rtol=1e-5, atol=1e-8), name


def _plain():
    return torch.autocast("cpu", enabled=False)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OTHERS)
def test_it_learns(recipe, tiny_recipe, tiny_store):
    """On one batch, seen again and again, the loss falls below 0.9 of what it was within 12 steps."""
    network = "-".join(recipe.split("-")[-2:])  # the smallest one learns too slowly
    still = ["pretext.center_momentum=1"] if recipe.startswith("dino") else []  # its mean would change the targets
    settings = load_small(tiny_recipe, *small_views(recipe), *still, f"network={network}", recipe=recipe)
    batch, losses = batch_of(settings, tiny_store), []
    torch.manual_seed(0)
    method = build_method(settings)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    for step in range(12):
        result = method(batch)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        method.after_update(step + 1)
        losses.append(float(result.loss.detach()))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2]), losses


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES)
def test_bf16(recipe, tiny_recipe):
    outcome = pretrain(load_small(tiny_recipe, "runtime.precision=bf16", recipe=recipe, steps=3))
    losses = [row["loss"] for row in read_log(outcome.folder.log) if row["kind"] == "train"]
    assert len(losses) == 3
    assert np.isfinite(losses).all()


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_equal_one(recipe, tiny_recipe, tmp_path):
    curves = []
    for world in (1, 2):
        settings = ["runtime.device=cpu", f"runtime.gpus={world}", "runtime.threads=1", "optim.name=sgd"]
        settings += ["runtime.precision=fp64", "optim.lr=0.0005", "optim.momentum=0.9"]
        made = load_small(tiny_recipe, *settings, recipe=recipe, out=f"w{world}", steps=5)
        file = tmp_path / f"w{world}.yaml"
        file.write_text(to_yaml(made))
        command = [sys.executable, "-m", "viewalign", "pretrain", str(file)]
        out = subprocess.run(command, capture_output=True, text=True, check=False)
        assert out.returncode == 0, out.stderr[-3000:]
        rows = read_log(RunFolder(tmp_path / f"w{world}").log)
        curves.append([row["loss"] for row in rows if row["kind"] == "train"])
    assert len(curves[0]) == 5
    assert curves[1] == pytest.approx(curves[0], rel=1e-8)


def test_every_method_has_a_recipe_for_each_of_its_networks():
    big = {"resenc": "resenc-l", "primus": "primus-m"}
    for method, entry in METHODS.items():
        for family in entry.networks:
            for network in (big[family], f"{family}-xs"):
                recipe = loading.load(f"{method}-{network}")
                assert (recipe.method, recipe.network.name) == (method, network)


def test_a_network_that_a_method_cannot_train_is_rejected(tiny_recipe):
    with pytest.raises(UserError, match=r"SimMIM.*network=resenc-xs"):
        build_method(tiny_recipe("network=resenc-xs", recipe="simmim-primus-xs"))


def test_volumes_seen_together_stay_together(tiny_recipe):
    with pytest.raises(UserError, match=r"fusion.*batch=3"):
        pretrain(tiny_recipe("batch=3", recipe="fusion-resenc-xs"))
    with pytest.raises(UserError, match="multiple of 8"):
        pretrain(tiny_recipe("batch=4", "runtime.accumulate=4", recipe="fusion-resenc-xs"))
