"""Settings are read, checked and described in one way for every command."""

import re
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field
from typer.testing import CliRunner

from viewalign.cli.grammar import MODELS, model_of
from viewalign.cli.main import app
from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.recipes.loading import load
from viewalign.utils.settings import (
    Counts,
    FilePath,
    FilePaths,
    Fraction,
    Millimetres,
    Names,
    PathOrName,
    Settings,
    Triple,
    absolute_paths,
    checked,
    merged,
    nested,
    read_words,
    setting_names,
    suggest,
)
from viewalign.utils.settings_description import commented_yaml, describe


class Inner(Settings):
    """Inner settings. More on them."""

    rate: Annotated[float, Field(gt=0)] = Field(0.1, description="Rate.")


class Outer(Settings):
    """Outer settings."""

    patch_size: Triple | None = Field(None, description="Size.")
    spacing: Literal["own"] | Millimetres = Field("own", description="Spacing.")
    names: Names = Field((), description="Names.")
    counts: Counts = Field((), description="Counts.")
    share: Fraction = Field(0.5, description="Share.")
    title: str = Field("", description="Title.")
    required: int = Field(description="Needed.")
    inner: Inner = Inner()


class Place(Settings):
    """A group."""

    folder: FilePath = Field("", description="Folder.")
    other: FilePath | None = Field(None, description="Folder.")


class Places(Settings):
    """Settings with paths."""

    inner: Place = Place()
    places: FilePaths = Field((), description="Files.")
    what: PathOrName | None = Field(None, description="A file or a name.")
    title: str = Field("", description="Title.")


def read(*words):
    return checked(Outer, read_words(["required=1", *words]))


@pytest.mark.parametrize("text", ["96", "96,96,96", "[96,96,96]", "[96, 96, 96]"])
def test_three_numbers_have_three_forms(text):
    assert read(f"patch_size={text}").patch_size == (96, 96, 96)


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("spacing=1,1,2.5", "spacing", (1.0, 1.0, 2.5)),
        ("spacing=own", "spacing", "own"),
        ("names=a,b", "names", ("a", "b")),
        ("names=sub_*", "names", ("sub_*",)),
        ("names=008,010", "names", ("008", "010")),
        ("names=010", "names", ("010",)),
        ("names=1:30", "names", ("1:30",)),
        ("names=*a*,*b*", "names", ("*a*", "*b*")),
        ("counts=5", "counts", (5,)),
        ("counts=5,10", "counts", (5, 10)),
        ("counts=[5,10]", "counts", (5, 10)),
        ("title=4", "title", "4"),
        ("title=a=1,b=2", "title", "a=1,b=2"),
        ("share=1e-3", "share", 1e-3),
        ("inner.rate=2", "inner", Inner(rate=2)),
    ],
)
def test_values(word, name, value):
    assert getattr(read(word), name) == value


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("patchsize=3", "'patchsize'.*'patch_size'"),
        ("size=3", "'patch_size'"),
        ("rate=3", r"'inner\.rate'"),
        ("inner.rat=3", r"'inner\.rat'.*'inner\.rate'"),
        ("patch_size=1,2", r"patch_size = '1,2'.*\(D, H, W\)"),
        ("share=2", "share = 2.*1"),
        ("counts=0", "counts"),
        ("word", "key=value"),
        ("names=[a", r"names.*\[32,32,32\]"),
    ],
)
def test_errors_name_key_and_remedy(word, sentence):
    with pytest.raises(UserError, match=sentence):
        read(word)


def test_a_required_setting_is_named():
    with pytest.raises(UserError, match=r"file.*'required'"):
        checked(Outer, {}, "file")


def test_a_file_lies_below_the_words(tmp_path):
    (tmp_path / "mine.yaml").write_text("share: 0.25\ninner: {rate: 3}\ninner.rate: 4\ntitle: a\n")
    found = read(f"config={tmp_path / 'mine.yaml'}", "title=b")
    assert (found.share, found.inner.rate, found.title) == (0.25, 4, "b")
    with pytest.raises(UserError, match=r"none\.yaml"):
        read(f"config={tmp_path / 'none.yaml'}")


def test_paths_in_a_file_are_relative_to_it_and_those_in_words_are_not(tmp_path):
    (tmp_path / "list.txt").touch()
    (tmp_path / "mine.yaml").write_text("inner: {folder: data}\nplaces: [a, /b, list.txt]\nwhat: list.txt\ntitle: a\n")
    tree = read_words([f"config={tmp_path / 'mine.yaml'}", "inner.other=c"], Places)
    assert tree == {
        "inner": {"folder": f"{tmp_path}/data", "other": "c"},
        "places": [f"{tmp_path}/a", "/b", f"{tmp_path}/list.txt"],
        "what": f"{tmp_path}/list.txt",
        "title": "a",
    }
    (tmp_path / "list.txt").unlink()
    assert read_words([f"config={tmp_path / 'mine.yaml'}"], Places)["what"] == "list.txt"


def test_a_text_in_a_file_that_is_too_long_for_a_path_is_none(tmp_path):
    tree = {"what": ",".join(f"liver_{number:03d}" for number in range(40))}
    assert absolute_paths(tree, Places, tmp_path) == tree


def test_every_setting_that_names_a_file_is_a_path(tmp_path):
    """Of studies only recipes are: other paths in a study are relative to its `data.root`."""
    (tmp_path / "x").touch()
    about = re.compile(r"folder|\bfiles?\b|table|A run,|Recipe of|finished run", re.IGNORECASE)
    no_path = {"index subject_pattern", "prepare channels", "estimate prepare.channels", "probe names", "fetch pattern"}
    no_path |= {"compare-methods network", "compare-methods shard", "export format"}
    for command in MODELS.keys() - {"study"}:
        for one in describe(model_of(command)):
            if "text" in one.values and about.search(one.meaning) and f"{command} {one.name}" not in no_path:
                tree = nested({one.name: ["x"] if "list" in one.values else "x"})
                assert str(tmp_path / "x") in str(absolute_paths(tree, model_of(command), tmp_path)), (
                    command,
                    one.name,
                )


def test_groups_are_merged():
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}) == {"a": {"b": 1, "c": 3}, "d": 4}


@pytest.mark.parametrize(
    "words", [["network=primus-xs", "network.channels=4"], ["network.channels=4", "network=primus-xs"]]
)
def test_a_group_with_a_name_keeps_name_and_settings_in_any_order(words):
    """One of the two was dropped without a word."""
    recipe = load("cva-resenc-xs", settings=read_words(words))
    assert (recipe.network.name, recipe.network.channels) == ("primus-xs", 4)
    tree = read_words([*words, "network.drop_path=0.2"])
    assert load("cva-resenc-xs", settings=tree).network.drop_path == 0.2


@pytest.mark.parametrize("last", [False, True])
def test_a_group_with_a_name_in_a_file_keeps_it_in_any_order(tmp_path, last):
    (tmp_path / "mine.yaml").write_text("network: primus-xs\n")
    words = ["network.channels=4", f"config={tmp_path / 'mine.yaml'}"]
    recipe = load("cva-resenc-xs", settings=read_words(words if last else words[::-1]))
    assert (recipe.network.name, recipe.network.channels) == ("primus-xs", 4)


def test_description_of_a_model():
    found = {one.name: one for one in describe(Outer)}
    assert list(found) == list(setting_names(Outer))
    assert (found["share"].values, found["share"].default, found["share"].meaning) == (
        "number from 0 to 1",
        "0.5",
        "Share.",
    )
    assert found["patch_size"].values == "one or three × whole number ≥ 1 | null"
    assert found["spacing"].values == "own | one or three × number > 0"
    assert found["names"].values == "list of: text"
    assert found["required"].default == ""
    assert (found["inner.rate"].group, found["inner.rate"].values) == ("Inner settings", "number > 0")


def test_comments_do_not_change_the_yaml():
    tree = Recipe().model_dump(mode="json", by_alias=True)
    text = commented_yaml(tree, {"": Recipe})
    assert yaml.safe_load(text) == tree
    assert "# Learning rate after the warm-up. [number > 0]\n  lr: 0.01" in text


@pytest.mark.parametrize("command", MODELS)
def test_the_printed_settings_are_the_defaults_and_change_nothing_until_uncommented(command, tmp_path):
    """With values of a recipe below them, the defaults of the whole file would replace those of the recipe."""
    printed = CliRunner().invoke(app, ["settings", *command.split()]).stdout
    model = model_of(command)
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    (tmp_path / "printed.yaml").write_text(printed)
    values = read_words([f"config={tmp_path / 'printed.yaml'}"])
    assert set(values) <= required
    assert set(values.values()) <= {"REQUIRED"}
    stated = "|".join(re.escape(one.name) for one in describe(model) if not one.absent)
    (tmp_path / "all.yaml").write_text(re.sub(rf"(?m)^#(?=({stated}):)", "", printed))
    values = read_words([f"config={tmp_path / 'all.yaml'}"])
    if not required:
        assert checked(model, values) == model()


@pytest.mark.parametrize("command", MODELS)
def test_every_setting_of_every_command_is_described(command):
    settings = list(describe(model_of(command)))
    assert settings
    for one in settings:
        if not one.name.endswith(".kind"):
            assert len(one.meaning) > 6, one.name
            assert one.meaning[-1] in ".…", one.name
        assert one.group
        assert one.values != "value", one.name


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("ema", ["optim.momentum", "teacher.momentum"], "teacher.momentum"),
        ("devices", ["runtime.device", "runtime.gpus"], "runtime.gpus"),
        ("batch_size", ["batch"], "batch"),
        ("warmup", ["optim.warmup_steps"], "optim.warmup_steps"),
    ],
)
def test_habits_of_other_programs_are_understood(word, known, found):
    assert suggest(word, known) == f" (did you mean '{found}'?)"
