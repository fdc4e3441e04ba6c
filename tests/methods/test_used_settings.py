"""Methods use exactly the settings that they declare."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from viewalign.methods.registry import METHODS, build_method, methods_using, requirements_of, used_settings_of
from viewalign.methods.requirements import OPTIONAL, PAIRS, setting_names, summary, used_settings
from viewalign.recipes import loading
from viewalign.recipes.unused import unread
from viewalign.training.run import view_sampling_config

RECIPES = [f"{method}-{family}-xs" for method, entry in METHODS.items() for family in entry.networks]


class Recorder:
    """Records the dotted name of every setting that is read."""

    def __init__(self, settings, seen, prefix=""):
        self._settings, self._seen, self._prefix = settings, seen, prefix

    def __getattr__(self, name):
        value, path = getattr(self._settings, name), self._prefix + name
        if isinstance(value, BaseModel):
            return Recorder(value, self._seen, path + ".")
        self._seen.add(path)
        return value


def settings_of_building(recipe):
    seen = set()
    build_method(Recorder(recipe, seen))
    requirements_of(Recorder(recipe, seen))
    return seen


def settings_of_sampling(recipe):
    """Return the settings of `views` that change the sampled views."""
    sampler, config = requirements_of(recipe).sampler, view_sampling_config(recipe.views)

    def sample(**changes):
        shape, spacing = (61, 60, 62), (1.0, 1.0, 1.0)
        made = [sampler(np.random.default_rng(k), shape, replace(config, **changes), spacing) for k in range(4)]
        return np.concatenate([one.to_volume.numpy().ravel() for one in made])

    plain, seen = sample(independent=False), set()
    for name, value in {"overlap": (0.3, 0.35), "independent": True}.items():
        changed = sample(**{"independent": False, name: value})
        if changed.shape != plain.shape or not np.array_equal(changed, plain):
            seen.add(f"views.{name}")
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_declared_settings_are_the_used_ones(recipe):
    made = loading.load(recipe)
    # CVA reads views.independent only to reject it with geometry=latentcampus.
    read = settings_of_building(made) | settings_of_sampling(made)
    assert "views.patch_size" in read, "nothing was recorded"
    assert read & OPTIONAL == used_settings_of(made.method)


def test_the_recorder_finds_a_wrong_declaration(monkeypatch):
    from viewalign.methods import simclr

    monkeypatch.setattr(simclr, "USED_SETTINGS", used_settings("heads.width") | PAIRS)
    made = loading.load("simclr-resenc-xs")
    assert settings_of_building(made) & OPTIONAL > used_settings_of("simclr") - PAIRS


def test_block_size_is_used_by_cnns_only():
    assert "masking.block" in unread(loading.load("mae-primus-xs"))
    assert "masking.block" not in unread(loading.load("mae-resenc-xs"))


def test_every_setting_is_used():
    for setting in OPTIONAL:
        assert "cva" in methods_using(setting), setting
    assert {"optim.lr", "network.name", "validate.probe.every"} <= set(setting_names(loading.Recipe))


def test_names_and_groups():
    assert used_settings("masking") == {"masking.ratio", "masking.block", "masking.whole"}
    assert summary(used_settings("masking", "heads.width") | PAIRS) == [
        "views.overlap",
        "views.independent",
        "masking",
        "heads.width",
    ]
    with pytest.raises(ValueError, match=r"objectives\.temprature"):
        used_settings("objectives.temprature")
    with pytest.raises(ValueError, match="optim"):
        used_settings("optim")


def test_the_table_of_the_docs_page():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]*) \|$", page, re.M))
    for method in METHODS:
        declared = ", ".join(f"`{one}`" for one in summary(used_settings_of(method))) or "none"
        assert rows[method] == declared, f"docs/methods.md should say: | `{method}` | {declared} |"
