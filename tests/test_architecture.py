"""Imports go one way through the packages, and nothing heavy is loaded before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import viewalign

ROOT = Path(viewalign.__file__).parent

LAYERS = (
    {"errors"},
    {"utils"},
    {"data"},
    {"views", "networks", "losses"},
    {"config"},
    {"methods"},
    {"recipes"},
    {"weights"},
    {"training"},
    {"tasks"},
    {"evaluation"},
    {"finetuning"},
    {"reports"},
    {"studies"},
    {"demo"},
    {"compat"},
    {"api"},
    {"cli"},
)
"""From the bottom up: a package imports from the layers below its own, never from above or beside."""
FORBIDDEN = {
    "networks": {"data"},
    "losses": {"data"},
}
"""Networks and losses know no data."""


def imports_of(path: Path) -> set[str]:
    """Return the packages and top-level modules of viewalign that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "viewalign" and len(parts) > 1:
                found.add(parts[1])
    return {name for name in found if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()}


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_packages_import_from_lower_layers_only(level):
    below = set().union(*LAYERS[:level])
    for name in LAYERS[level]:
        files = sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / f"{name}.py"]
        assert files
        for path in files:
            wrong = imports_of(path) - (below - FORBIDDEN.get(name, set())) - {name}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_every_package_has_a_layer():
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__pycache__", "__init__", "__main__"} == set().union(*LAYERS)


@pytest.mark.parametrize("command", [["-c", "import viewalign"], ["-m", "viewalign", "--help"]])
def test_import_and_help_load_nothing_heavy(command):
    heavy = (
        *("torch", "SimpleITK", "matplotlib", "plotly", "nnunetv2", "monai", "sklearn", "scipy", "nilearn"),
        *("wandb", "mlflow", "onnx", "huggingface_hub", "tensorboard", "dask"),
    )
    probe = (
        "import sys, runpy, atexit\n"
        f"atexit.register(lambda: print('LOADED', [n for n in {heavy!r} if n in sys.modules]))\n"
        + (
            "import viewalign"
            if command[0] == "-c"
            else "sys.argv=['viewalign','--help']\nrunpy.run_module('viewalign', run_name='__main__')"
        )
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert "LOADED []" in out.stdout, out.stdout + out.stderr


@pytest.mark.slow
def test_worker_processes_load_no_torch():
    """It would take seconds and half a gigabyte in each of them."""
    modules = (
        "tasks.cases",
        "tasks.copies",
        "data.worker",
        "data.indexing",
        "compat.nnssl.preprocess",
        "reports.thumbnails",
    )
    probe = "".join(f"import viewalign.{name}\n" for name in modules) + "import sys\nprint('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "False", out.stderr


def test_only_one_file_calls_grid_sample():
    callers = [path for path in ROOT.rglob("*.py") if "F.grid_sample(" in path.read_text()]
    assert [path.name for path in callers] == ["resampling.py"]


def test_nothing_is_unpickled():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        for word in ("weights_only=False", "allow_pickle=True", "pickle.load"):
            assert word not in text, f"{path.name} has {word}"


def test_one_file_writes_pickles_and_none_reads_them():
    uses = {}
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "pickle" in text else ():
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
                uses.setdefault(path.relative_to(ROOT).as_posix(), set()).add(node.attr)
    writers = [path for path, names in uses.items() if names & {"dump", "dumps"}]
    assert writers == ["compat/nnssl/preprocess.py"]
    assert not set().union(*uses.values()) & {"load", "loads", "Unpickler"}


def functions_in(nodes):
    """Yield the functions of a module, also those within classes and functions."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from functions_in(node.body)


def test_no_function_is_longer_than_a_screen():
    long = [
        f"{path.name}:{node.name}"
        for path in ROOT.rglob("*.py")
        for node in functions_in(ast.parse(path.read_text()).body)
        if node.end_lineno - node.lineno >= 60
    ]
    assert long == []
