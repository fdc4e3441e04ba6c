"""Messages about missing packages name a command that works in the running environment."""

import shlex
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from viewalign.utils import extras

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"dev", "docs"}))
def test_an_extra_has_the_packages_of_the_project_file(extra):
    names = {canonicalize_name(Requirement(one).name) for one in EXTRAS[extra]} - {"viewalign"}
    found = {canonicalize_name(Requirement(one).name) for one in extras.requirements_of(extra)}
    assert names <= found
    assert "viewalign" not in found


def test_an_extra_of_extras_is_resolved():
    assert set(extras.requirements_of("tasks")) < set(extras.requirements_of("nnunet"))


def test_the_command_is_of_this_interpreter():
    words = shlex.split(extras.install_command("lora"))
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    assert [word.startswith("peft") for word in words[4:]] == [True]


def test_without_an_installed_package_the_name_of_the_extra_is_left(monkeypatch):
    def requires(_):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(extras.metadata, "requires", requires)
    assert extras.install_command("lora").endswith("'viewalign[lora]'")
