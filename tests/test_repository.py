"""Workflows, container recipes and the installation page agree with the project file."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [one.rsplit(" ", 1)[1] for one in PROJECT["classifiers"] if re.fullmatch(r".*Python :: 3\.\d+", one)]

pytestmark = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="not a checkout")


def test_every_supported_python_is_tested_and_found_by_make():
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    assert f"for v in {' '.join(reversed(PYTHONS))};" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_templates_are_yaml(path):
    tree = yaml.safe_load(path.read_text())
    assert isinstance(tree["name"], str)
    if path.parent.name == "workflows":
        assert all(job["steps"] for job in tree["jobs"].values())


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_container_recipes_take_files_that_exist_and_a_supported_python(name):
    text = (ROOT / "packaging" / name).read_text()
    assert re.search(r"python:(3\.\d+)-slim", text)[1] in PYTHONS
    for file in ("requirements.lock", "pyproject.toml", "README.md", "LICENSE", "src"):
        assert file in text
        assert (ROOT / file).exists()


def test_the_wheelhouse_script_is_a_script():
    subprocess.run(["sh", "-n", str(ROOT / "packaging" / "wheelhouse.sh")], check=True)


def test_the_installation_page_has_every_extra():
    text = (ROOT / "docs" / "installation.md").read_text()
    users = set(PROJECT["optional-dependencies"]) - {"dev", "docs", "nnssl"}
    assert {name for name in users if f".[{name}]" not in text} == set()


def test_make_names_what_to_install_without_a_python():
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-n", "-W", "pyproject.toml", "PYTHON=", "install"]  # -W: as if the environment were out of date
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "apt install python3" in done.stdout


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md"])
def test_links_lead_to_files_that_exist(name):
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text())
    on_github = "../../actions/"  # from a repository's page
    files = [target for target in targets if "://" not in target and not target.startswith(on_github)]
    assert [target for target in files if not (ROOT / target).exists()] == []
