"""A setting without effect is rejected or reported, never ignored."""

import pytest
import yaml
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.recipes import loading
from viewalign.recipes.files import RECIPES
from viewalign.recipes.unused import idle_sentences, settled, unread

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("recipe", "override", "sentence"),
    [
        ("mae-resenc-xs", "objectives.temperature=0.1", "; cva, simclr, swinunetr do."),
        ("genesis-resenc-xs", "masking.ratio=0.5", "; cva, mae, simmim, spark, dino, dino-cva do."),
        ("simclr-primus-xs", "teacher.momentum=0.9", "; cva, dino, dino-cva do."),
        ("mae-resenc-xs", "views.overlap=[0.5,0.6]", "cva, simclr do."),
        ("voco-resenc-xs", "geometry=latentcampus", "geometry has no effect"),
        ("cva-primus-xs", "masking.block=8", "network=primus-xs"),
        ("cva-resenc-xs", "network.drop_path=0.1", "network=resenc-xs"),
        ("cva-resenc-xs", "optim.momentum=0.9", "; sgd does."),
        ("mae-resenc-l", "optim.betas=[0.9,0.99]", "; adamw does."),
        ("mae-resenc-xs", "objectives={temperature: 0.1}", "objectives.temperature has no effect"),
        ("cva-resenc-xs", "objectives.negatives=batch", "objectives.consistency=cosine"),
        ("cva-resenc-xs", "masking={ratio: 0, whole: 0.5}", "masking.ratio=0"),
        ("cva-resenc-xs", "heads={projector: none, width: 4096}", "heads.projector=none"),
        ("mae-resenc-xs", "objectives={reconstruction: mse, huber_delta: 0.1}", "objectives.reconstruction=mse"),
        ("dino-resenc-xs", "pretext={targets: sinkhorn, center_momentum: 0.5}", "pretext.targets=sinkhorn"),
        ("dino-cva-primus-xs", "pretext.sinkhorn_iterations=5", "pretext.targets=centering"),
    ],
)
def test_an_override_that_changes_nothing_is_rejected(recipe, override, sentence):
    with pytest.raises(UserError) as caught:
        loading.load(recipe, [override])
    assert sentence in str(caught.value)


def test_calls_are_rejected_like_command_lines():
    with pytest.raises(UserError, match=r"heads\.width"):
        loading.load("mae-resenc-xs", settings={"heads": {"width": 8}})
    with pytest.raises(UserError, match=r"heads\.width"):
        loading.change(loading.load("mae-resenc-xs"), {"heads.width": 8})


def test_what_is_read_is_not_rejected():
    assert loading.load("mae-resenc-xs", ["masking={ratio: 0.5}"]).masking.ratio == 0.5
    assert loading.load("mae-resenc-xs", ["optim.name=sgd", "optim.momentum=0.9"]).optim.momentum == 0.9
    assert loading.load("cva-resenc-xs", ["network=primus-xs", "network.drop_path=0.1"]).network.drop_path == 0.1
    assert loading.load("mae-resenc-xs", ["method=simclr", "heads.width=8"]).heads.width == 8
    assert loading.load("mae-ccva-resenc-l", ["objectives.negatives=batch"]).objectives.negatives == "batch"
    sinkhorn = loading.load("dino-resenc-xs", ["pretext.targets=sinkhorn", "pretext.sinkhorn_iterations=5"]).pretext
    assert (sinkhorn["sinkhorn_iterations"], sinkhorn["center_momentum"]) == (5, 0.9)


def test_the_choice_of_another_method_makes_nothing_idle(tmp_path):
    """PCRLv2 has heads whatever heads.projector is, which it does not read."""
    (tmp_path / "mine.yaml").write_text("base: pcrlv2-resenc-xs\nheads: {projector: none, width: 8}\n")
    assert loading.load(str(tmp_path / "mine.yaml")).heads.width == 8


def test_a_setting_of_the_method_without_effect_is_at_its_default(tmp_path, told_of):
    (tmp_path / "mine.yaml").write_text("base: dino-resenc-xs\npretext: {targets: sinkhorn, center_momentum: 0.5}\n")
    (told,) = told_of(tmp_path / "mine.yaml")
    assert "pretext.center_momentum has no effect" in told
    made = loading.load(str(tmp_path / "mine.yaml"))
    assert made.pretext["center_momentum"] == 0.9
    assert made == loading.load("dino-resenc-xs", ["pretext.targets=sinkhorn"])
    assert "center_momentum" not in loading.to_yaml(made)


@pytest.fixture
def told_of(caplog):
    def warnings_of(file, *overrides):
        caplog.clear()
        loading.load(str(file), overrides, warn=True)
        return caplog.messages

    return warnings_of


def test_a_file_of_the_user_is_warned_of_and_runs(tmp_path, told_of):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "base: mae-resenc-xs\nobjectives: {temperature: 0.1, huber_delta: 0.5}\nteacher: {momentum: 0.995}\n"
    )
    (told,) = told_of(file)
    assert told.startswith(f"{file}: objectives.temperature has no effect")
    assert "method=mae" in told
    assert loading.load(str(file)).objectives.temperature == 0.5, "back at its default"
    (tmp_path / "mine_too.yaml").write_text(f"base: {file}\nmethod: genesis\n")
    assert len(told_of(tmp_path / "mine_too.yaml")) == 2, "what stands in a base of one's own counts too"


@pytest.mark.parametrize("recipe", RECIPES.names())
def test_shipped_recipes_and_their_print_have_no_warning(recipe, tmp_path, told_of):
    made = loading.load(recipe)
    printed = yaml.safe_load(loading.to_yaml(made))
    for key in unread(made):
        group, _, name = key.rpartition(".")
        where = printed
        for part in filter(None, group.split(".")):
            where = where.get(part, {})
        assert name not in where, key
    (tmp_path / "copy.yaml").write_text(loading.to_yaml(made))
    assert told_of(tmp_path / "copy.yaml") == []
    assert loading.load(str(tmp_path / "copy.yaml")) == made


@pytest.mark.parametrize("recipe", RECIPES.names())
def test_a_shipped_recipe_states_nothing_that_it_does_not_read(recipe):
    """Its own file; what a base states for others is another matter."""
    tree = yaml.safe_load(RECIPES._text(recipe))
    tree.pop("base", None)
    stated = [key for key, _ in loading._flat(tree, loading._known(loading.load(recipe).method))]
    assert list(idle_sentences(loading._checked(loading._read(recipe)[0], recipe), stated, recipe)) == []


def test_recipes_that_mean_the_same_are_the_same():
    small, plain = loading.load("genesis-resenc-xs"), loading.load("genesis-resenc-xs", common=["masking.block=4"])
    assert small == plain
    assert settled(small) is small


def test_the_command_line_explains_it_in_a_sentence(tmp_path):
    lines = ["nowhere", "-o", str(tmp_path / "run")]
    excluded = CliRunner().invoke(app, ["pretrain", "mae-resenc-xs", *lines, "objectives.temperature=0.5"])
    assert isinstance(excluded.exception, UserError)
    (tmp_path / "mine.yaml").write_text("base: mae-resenc-xs\nheads: {width: 3}\n")
    told = CliRunner().invoke(app, ["pretrain", str(tmp_path / "mine.yaml"), *lines])
    assert "heads.width has no effect" in told.output + told.stderr
