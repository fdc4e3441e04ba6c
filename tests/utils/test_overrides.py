"""Overrides are read as intended, and invalid ones are reported by key, once."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from viewalign.errors import UserError
from viewalign.utils.overrides import (
    closest,
    diff_settings,
    format_validation_error,
    iter_nested,
    read_override,
    set_nested,
    similar,
)
from viewalign.utils.settings import Millimetres, Settings


class Small(Settings):
    """A kind."""

    kind: Literal["small"] = "small"
    width: int = 1


class Large(Settings):
    """Another."""

    kind: Literal["large"] = "large"
    height: int = 1


class Example(BaseModel):
    """One setting of each sort."""

    model_config = {"extra": "forbid"}
    rate: float = 1.0
    spacing: Literal["own"] | Millimetres = "own"
    parts: dict[str, Annotated[Small | Large, Field(discriminator="kind")]] = {}
    name: str


def told(**values):
    with pytest.raises(ValidationError) as exclusion:
        Example.model_validate(values)
    return format_validation_error(
        exclusion.value, lambda key: closest(key, Example.model_fields), tags={"small", "large"}
    )


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lr=1e-3", "lr", 1e-3),
        ("size=[1,2]", "size", [1, 2]),
        ("a.b=null", "a.b", None),
        ("on=true", "on", True),
        ("name=x=y", "name", "x=y"),
        (r"name=[a-z]+(?P<subject>\d+)", "name", r"[a-z]+(?P<subject>\d+)"),
        ("name={x}{y}", "name", "{x}{y}"),
        ("lr=.5e-3", "lr", 5e-4),
        ("name='1e-3 '", "name", "1e-3 "),
        ("name=010", "name", "010"),
        ("name=12_3", "name", "12_3"),
        ("name=nan", "name", "nan"),
        ("name=[no,2020-01-31]", "name", ["no", "2020-01-31"]),
        ("name=/data/run #2", "name", "/data/run #2"),
        ("name=/data/a: b/run", "name", "/data/a: b/run"),
        ("name={a: 1}", "name", {"a": 1}),
    ],
)
def test_an_override_is_read(text, key, value):
    assert read_override(text) == (key, value)


@pytest.mark.parametrize("text", ["lr", "=1", "lr=", "lr= "])
def test_what_is_no_override_is_a_sentence_with_an_example(text):
    with pytest.raises(UserError, match=r"lr=0\.5|lr=VALUE"):
        read_override(text, "lr=0.5")


def test_a_dotted_key_makes_its_groups_and_keeps_what_lies_beside():
    tree = {"a": {"b": 1}, "c": 5}
    set_nested(tree, "a.d.e", 2)
    set_nested(tree, "c.f", 3)
    assert tree == {"a": {"b": 1, "d": {"e": 2}}, "c": {"f": 3}}


def test_the_nearest_is_by_the_last_part_first():
    known = ["optim.lr", "views.patch_size", "steps"]
    assert closest("lr", known) == " (did you mean 'optim.lr'?)"
    assert closest("view.sise", known) == " (did you mean 'views.patch_size'?)"
    assert closest("judges.tuned.stepps", ["steps", "rate"]) == " (did you mean 'steps'?)"
    assert closest("quite another thing", known) == ""
    assert closest("pretext.foo", ["pretext", "steps"]) == "", "a group is no spelling of its settings"


def test_each_key_is_reported_once_with_its_value():
    assert told(name="x", rate="fast") == "rate = 'fast': must be a number"
    assert told(name="x", ratte=1) == "there is no setting 'ratte' (did you mean 'rate'?)"
    assert told() == "'name' is required"
    assert told(name="x", spacing=-1) == "spacing = -1: must be 'own', or must be greater than 0"
    both = told(name="x", spacing=[1, 2], rate=[])
    assert both.startswith("rate = []: ")
    assert both.endswith(
        "; spacing = [1, 2]: must be 'own', or needs one number or three in the order (D, H, W), not [1, 2]"
    )


def test_kinds_that_distinguish_models_are_no_part_of_a_key():
    assert told(name="x", parts={"small": {"kind": "small", "height": 1}}) == "there is no setting 'parts.small.height'"
    assert told(name="x", parts={"p": {"kind": "large", "height": "h"}}).startswith("parts.p.height = 'h': ")


def test_a_long_value_is_cut():
    assert len(told(name="x", rate=list(range(1000)))) < 200


def test_a_name_with_dots_is_likened_whole():
    assert similar("site.b.scan1", ["other.scan1", "site.a.scan1"]) == " (did you mean 'site.a.scan1'?)"
    assert closest("site.b.scan1", ["other.scan1", "site.a.scan1"]) == " (did you mean 'other.scan1'?)"


def test_settings_in_groups_have_dotted_names_and_some_groups_are_values():
    tree = {"a": 1, "b": {"c": [2], "d": {"e": None}, "none": {}}}
    assert dict(iter_nested(tree)) == {"a": 1, "b.c": [2], "b.d.e": None}
    together = dict(iter_nested(tree, lambda key: key in {"b.d", "b.none"}))
    assert together == {"a": 1, "b.c": [2], "b.d": {"e": None}, "b.none": {}}


def test_changes_are_reported_with_both_values():
    before, now = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "e": 5}}
    assert list(diff_settings(before, now)) == [("b.c", 2, 4), ("b.d", 3, None), ("b.e", None, 5)]
    assert list(diff_settings(now, now)) == []
