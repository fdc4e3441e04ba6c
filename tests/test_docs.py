"""The docs: the site builds without a warning, and the Python it shows runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_site_builds_and_its_links_hold(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    out = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "site" / "index.html").is_file()


def test_the_geometry_page_s_program_proves_what_it_says():
    code = re.search(r"```python\n(.*?)```", (DOCS / "geometry.md").read_text(), re.S).group(1)
    assert len(code.strip().splitlines()) <= 12
    scope = {}
    exec(compile(code, "geometry.md", "exec"), scope)
    assert 0 < scope["worst"] < 1e-3


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_commands_on_a_page_exist(page):
    from typer.main import get_command

    from viewalign.cli.main import app

    known = set(get_command(app).commands)
    for command in re.findall(r"^\$ viewalign (\w+)", (DOCS / page).read_text(), re.M):
        assert command in known, f"{page}: viewalign {command}"


def test_readme_shows_the_two_commands():
    text = (DOCS.parent / "README.md").read_text()
    for command in ("make demo", "make test", "viewalign pretrain", "viewalign export"):
        assert command in text
