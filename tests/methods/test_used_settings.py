"""What a method says it reads of a recipe is what it reads."""

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
    """Stands in for settings and writes down the dotted name of each that is asked for."""

    def __init__(self, settings, seen, prefix=""):
        self._settings, self._seen, self._prefix = settings, seen, prefix

    def __getattr__(self, name):
        value, path = getattr(self._settings, name), self._prefix + name
        if isinstance(value, BaseModel):
            return Recorder(value, self._seen, path + ".")
        self._seen.add(path)
        return value


def what_building_reads(recipe):
    seen = set()
    build_method(Recorder(recipe, seen))
    requirements_of(Recorder(recipe, seen))
    return seen


def what_drawing_reads(recipe):
    """Settings of `views` that change what is drawn."""
    draw, drawing = requirements_of(recipe).sampler, view_sampling_config(recipe.views)

    def drawn(**changes):
        shape, spacing = (61, 60, 62), (1.0, 1.0, 1.0)
        made = [draw(np.random.default_rng(k), shape, replace(drawing, **changes), spacing) for k in range(4)]
        return np.concatenate([one.to_volume.numpy().ravel() for one in made])

    plain, seen = drawn(independent=False), set()
    for name, value in {"overlap": (0.3, 0.35), "independent": True}.items():
        changed = drawn(**{"independent": False, name: value})
        if changed.shape != plain.shape or not np.array_equal(changed, plain):
            seen.add(f"views.{name}")
    return seen


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_method_says_what_it_reads(recipe):
    made = loading.load(recipe)
    # geometry=latentcampus has no independent views, so CVA asks for them there alone.
    read = what_building_reads(made) | what_drawing_reads(made)
    assert "views.size" in read, "the recorder sees nothing"
    assert read & OPTIONAL == used_settings_of(made.method)


def test_the_recorder_would_find_a_wrong_declaration(monkeypatch):
    from viewalign.methods import simclr

    monkeypatch.setattr(simclr, "USED_SETTINGS", used_settings("heads.width") | PAIRS)
    made = loading.load("simclr-resenc-xs")
    assert what_building_reads(made) & OPTIONAL > used_settings_of("simclr") - PAIRS


def test_blocks_are_read_by_cnns_alone():
    assert "masking.block" in unread(loading.load("mae-primus-xs"))
    assert "masking.block" not in unread(loading.load("mae-resenc-xs"))


def test_every_setting_is_read_by_someone():
    for setting in OPTIONAL:
        assert "cva" in methods_using(setting), setting
    assert {"optim.lr", "network.name", "validate.probe.every"} <= set(setting_names(loading.Recipe))


def test_names_and_their_short_form():
    assert used_settings("masking") == {"masking.ratio", "masking.block"}
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


def test_the_page_s_table_is_what_methods_declare():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| reads (.*?) \|$", page, re.M))
    for method in METHODS:
        told = ", ".join(f"`{one}`" for one in summary(used_settings_of(method))) or "nothing else"
        assert rows[method] == told, f"docs/methods.md should say: | `{method}` | reads {told} |"
