"""Benchmarks must run: each is tried at a small size, without a check of its speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "step": ["--networks", "resenc-xs", "--size", "16", "--repeats", "1", "--precisions", "fp32"],
    "views": ["--sizes", "64", "--draws", "2"],
    "scaling": ["--steps", "5"],
    "imports": ["--repeats", "1"],
    "reads": ["--views", "64", "--boxes", "2"],
    "catalogue": ["--images", "200", "--workers", "0"],
}


@pytest.mark.long
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_and_ends_with_its_figures(name):
    command = [sys.executable, str(FOLDER / f"{name}.py"), *TINY[name]]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-2000:]
    told = json.loads(out.stdout.strip().splitlines()[-1])
    assert told["name"] == name
    assert told["ratio"] > 0
    assert told["target"] > 0


@pytest.mark.parametrize(
    "path", [*sorted(FOLDER.glob("[a-z]*.py")), FOLDER / "gpu" / "check.py"], ids=lambda path: path.stem
)
def test_every_benchmark_stands_on_the_page(path):
    name = path.relative_to(FOLDER.parent).as_posix()
    assert name in (FOLDER.parent / "docs" / "benchmarks.md").read_text()
