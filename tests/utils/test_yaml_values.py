import math

import pytest
import yaml

from viewalign.utils.yaml_values import load_yaml


@pytest.mark.parametrize(
    "text",
    [
        "010",
        "-07",
        "0x10",
        "12_3",
        "1.5_0",
        "1:30",
        "190:20:30.15",
        "2020-01-31",
        "no",
        "Yes",
        "on",
        "OFF",
        "1e-3",
        ".",
    ],
)
def test_what_looks_like_a_name_is_text(text):
    assert load_yaml(text) == text
    assert load_yaml(f"classes: [{text}]") == {"classes": [text]}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-3", -3), ("+3", 3), ("100", 100), ("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("1.0e-05", 1e-5),
     ("-.inf", -math.inf), ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("'1'", "1")],
)  # fmt: skip
def test_numbers_truth_values_and_null_are_read(text, value):
    found = load_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "value",
    [
        "010",
        "no",
        "1e3",
        "1.",
        "null",
        "2020-01-31",
        "12_3",
        "1:30",
        "~",
        "",
        1e-5,
        1e300,
        1e22,
        -0.0,
        123456789,
        True,
        None,
    ],
)
def test_what_yaml_writes_is_read_back(value):
    found = load_yaml(yaml.safe_dump({"x": [value]}))["x"][0]
    assert (found, type(found)) == (value, type(value))


def test_no_objects_are_built():
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.getcwd []")
