"""The page of recipes agrees with the recipes."""

import runpy
from pathlib import Path

import pytest

from viewalign.compat.nnssl.trainers import NETWORKS
from viewalign.recipes import loading

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
RECIPES = sorted(path.stem for path in Path(loading.__file__).parent.glob("*.yaml"))
EPOCH = 250


def times(size):
    return f"{size[0]}³" if len(set(size)) == 1 else " × ".join(map(str, size))


def row_of_recipe(name):
    """Return a recipe's line: what is published is compared with the code's tables in `test_trainers`."""
    recipe = loading.load(name)
    terms, optim = recipe.objectives, recipe.optim
    epochs = f"{recipe.steps / EPOCH:g}"
    warmup = f", {optim.warmup_steps / EPOCH:g} of warm-up" if optim.warmup_steps else ""
    if recipe.method != "cva":
        clip = "–" if optim.clip is None else f"{optim.clip:g}"
        start = [f"`{name}`", times(recipe.views.patch_size), str(recipe.batch), f"{optim.name} {optim.lr:g}", clip]
        return "| " + " | ".join([*start, epochs + warmup]) + " |"
    kind = {"cosine": "cosine", "nt_xent": "NT-Xent", "gram": "Gram"}[terms.consistency]
    consistency = f"{terms.consistency_weight:g} {kind}" if terms.consistency_weight else "0"
    cells = times(terms.cells) if isinstance(terms.cells, tuple) else f"{terms.cells}³"
    cells = cells if terms.consistency_weight else "–"
    figures = [f"{terms.reconstruction_weight:g}", consistency, f"{terms.contrastive_weight:g}", cells]
    rates = [f"{recipe.masking.ratio:g}", f"{recipe.teacher.momentum:g}"]
    schedule = [times(recipe.views.patch_size), str(recipe.batch), f"{optim.name} {optim.lr:g}", epochs + warmup]
    return "| " + " | ".join([f"`{name}`", *schedule, *rates, *figures]) + " |"


def row_of_trainer(name, trainer):
    changes = ", ".join(f"`{change}`" for change in trainer.overrides) or "–"
    return f"| `{name}` | `{trainer.recipe}` | {changes} |"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_stands_in_the_page_with_its_figures(name):
    assert row_of_recipe(name) in PAGE.read_text().splitlines()


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_every_trainer_s_name_stands_in_the_page(network):
    lines = PAGE.read_text().splitlines()
    heading = {"resenc-l": "### ResEnc-L", "primus-m": "### Primus-M"}[network]
    start = lines.index(heading)
    end = next((k for k in range(start + 1, len(lines)) if lines[k].startswith("#")), len(lines))
    named = [line for line in lines[start:end] if line.startswith("| `")]
    assert named == [row_of_trainer(name, trainer) for name, trainer in NETWORKS[network].items()]


def test_the_page_of_settings_is_made_from_the_models():
    made = runpy.run_path(str(PAGE.parent / "make_settings.py"))["page"]()
    assert (PAGE.parent / "settings.md").read_text() == made, "run: python docs/make_settings.py"
    assert "`optim.warmup_steps`" in made
    assert "`pretext.p_nonlinear`" in made
