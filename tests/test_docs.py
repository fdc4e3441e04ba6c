"""The docs: the site builds without a warning, and the Python it shows runs."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_the_site_builds_and_its_links_hold(tmp_path):
    pytest.importorskip("zensical")
    shutil.copy(DOCS.parent / "mkdocs.yml", tmp_path)  # the site is written beside it; links would be followed
    shutil.copytree(DOCS, tmp_path / "docs")
    (tmp_path / "src").symlink_to(DOCS.parent / "src")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stdout + out.stderr
    assert (tmp_path / "site" / "tutorials" / "pretrain" / "index.html").is_file()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", (DOCS.parent / "mkdocs.yml").read_text()))
    assert listed == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_the_page_of_commands_is_that_of_the_command_line():
    made = runpy.run_path(str(DOCS / "make_commands.py"))["page"]()
    assert (DOCS / "commands.md").read_text() == made, "run: python docs/make_commands.py"


TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))


def notebook_of(page):
    return DOCS.parent / "examples" / "notebooks" / f"{page.stem}.ipynb"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_notebook_of_a_tutorial_is_its_page(page):
    made = runpy.run_path(str(DOCS / "make_notebooks.py"))["notebook"](page)
    assert notebook_of(page).read_text() == made, "run: python docs/make_notebooks.py"
    tree = json.loads(made)
    assert (tree["nbformat"], {cell["cell_type"] for cell in tree["cells"]}) == (4, {"code", "markdown"})
    assert len({cell["id"] for cell in tree["cells"]}) == len(tree["cells"])
    assert not re.search(r"\]\([^)]*\.md", made), "links to pages do not work in a notebook"


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_notebook_runs(page, tmp_path, monkeypatch):
    """Its cells are plain Python, so that they run without Jupyter too."""
    pytest.importorskip("nnunetv2")
    monkeypatch.chdir(tmp_path)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}", raising=False)
    scope = {"__name__": "notebook"}
    for cell in json.loads(notebook_of(page).read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), page.name, "exec"), scope)


@pytest.mark.slow
def test_the_geometry_page_s_program_proves_its_claim():
    code = re.search(r"```python\n(.*?)```", (DOCS / "geometry.md").read_text(), re.S).group(1)
    assert len(code.strip().splitlines()) <= 12
    scope = {}
    exec(compile(code, "geometry.md", "exec"), scope)
    assert 0 < scope["worst"] < 1e-3


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.stem)
def test_tests_that_a_page_names_exist(page):
    named = set() if page.stem == "decisions" else set(re.findall(r"`(tests/[\w/]+(?:\.py)?)", page.read_text()))
    assert [name for name in sorted(named) if not (DOCS.parent / name).exists()] == []


def test_readme_shows_the_two_commands():
    text = (DOCS.parent / "README.md").read_text()
    for command in ("make demo", "make test", "viewalign pretrain", "viewalign export"):
        assert command in text


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_every_row_belongs_to_a_table(page):
    """A row after an empty line is shown as text, unless it begins a table."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    first = re.findall(r"(?:^|\n\n)\|[^\n]*\n(.*)", text)
    assert [line for line in first if not line.startswith("|---")] == []
