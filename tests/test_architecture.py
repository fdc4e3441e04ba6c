"""The house of the design: rooms import forward only, and nothing heavy is loaded before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import viewalign

ROOT = Path(viewalign.__file__).parent

MAY_IMPORT = {
    "volumes": set(),
    "views": {"volumes"},
    "networks": set(),
    "objectives": set(),
    "recipes": {"methods"},
    "methods": {"networks", "objectives", "views"},
    "formats": {"networks", "volumes"},
    "training": {"methods", "networks", "objectives", "views", "volumes", "formats", "recipes"},
    "transfer": {"training", "methods", "networks", "views", "volumes", "formats", "recipes"},
    "report": {"transfer", "training", "views", "volumes", "networks", "recipes"},
    "study": {"report", "transfer", "training", "views", "volumes", "networks", "recipes"},
    "demo": {"report", "transfer", "training", "views", "volumes", "networks", "recipes"},
    "cli": {
        *("api", "demo", "study", "report", "transfer", "training", "methods"),
        *("networks", "views", "volumes", "formats", "recipes"),
    },
}
EVERYBODY = {
    *("arithmetic", "device", "errors", "given", "locks", "memory", "precision", "processes", "randomness", "writing"),
}
"""Small files at the top that any room may use."""
MAY_READ_SETTINGS = {"recipes", "methods", "training", "transfer", "report", "study", "demo", "cli"}
"""Settings stop at the builders; no component below knows of them."""


def imports_of(path: Path) -> set[str]:
    """Return the rooms and top files of viewalign that a file imports, at any depth."""
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


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_forward_only(room):
    allowed = MAY_IMPORT[room] | EVERYBODY | {room}
    if room in MAY_READ_SETTINGS:
        allowed |= {"config"}
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert imports_of(path) <= allowed, f"{path.relative_to(ROOT)} imports {imports_of(path) - allowed}"


def test_every_room_is_ruled():
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(MAY_IMPORT)


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


def test_only_one_file_calls_grid_sample():
    callers = [path for path in ROOT.rglob("*.py") if "F.grid_sample(" in path.read_text()]
    assert [path.name for path in callers] == ["resample.py"]


def test_nothing_is_unpickled():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        for word in ("weights_only=False", "allow_pickle=True", "pickle.load"):
            assert word not in text, f"{path.name} has {word}"


def test_one_file_writes_pickles_and_none_reads_them():
    uses = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
                uses.setdefault(path.relative_to(ROOT).as_posix(), set()).add(node.attr)
    writers = [path for path, names in uses.items() if names & {"dump", "dumps"}]
    assert writers == ["formats/nnssl/entries.py"]
    assert not set().union(*uses.values()) & {"load", "loads", "Unpickler"}
