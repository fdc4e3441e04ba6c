"""The wheel as a user gets it: what is in it, what works without any extra, what its metadata promises."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import viewalign
from viewalign.data.readers.itk import sitk

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("nnunetv2", "monai", "matplotlib", "sklearn", "scipy", "torchmetrics", "nilearn", "pooch", "onnx")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel and a source distribution."""
    pytest.importorskip("build", reason="`build` is not installed")
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


MODULES = {"scikit-learn": "sklearn", "dask": "distributed"}
BY_OTHERS = {"onnx": "onnxscript", "pylibjpeg": "pydicom", "pylibjpeg-openjpeg": "pydicom"}
"""What no file of ours imports, and the package, of the same extra or of the dependencies, that does."""


@pytest.mark.parametrize("extra", [name for name in PROJECT["optional-dependencies"] if name not in ("dev", "docs")])
def test_every_package_of_an_extra_is_used(extra):
    """Nobody installs for nothing, and a package that has gone out of use goes out of the extra."""
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    names = [Requirement(text).name for text in PROJECT["optional-dependencies"][extra]]
    for name in set(names) - {"viewalign"}:
        module = MODULES.get(name, name.replace("-", "_"))
        used = re.search(rf"\b(import|from) {module}\b|import_module\(.{module}\b", code)
        assert used or BY_OTHERS.get(name) in (*names, "pydicom"), f"nothing imports {name} of the extra {extra}"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    source = ROOT / "src"
    wanted = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert held == {path.relative_to(source).as_posix() for path in wanted}
    assert {"viewalign/py.typed", "viewalign/recipes/cva-resenc-l.yaml", "viewalign/reports/run.html"} <= held


@pytest.mark.slow
def test_the_source_holds_no_tests_and_no_docs(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"src", "pyproject.toml", "README.md", "LICENSE", "CITATION.cff"} <= tops
    assert not tops & {"tests", "docs", "benchmarks"}


def closure(names):
    """Return the installed distributions that a few need, without any extra."""
    found, todo = {}, list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            one = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = one
        wanted = [Requirement(text) for text in one.requires or []]
        todo += [need.name for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory):
    """An environment that holds the wheel and what it depends on, and no extra: links to what is installed here."""
    root = tmp_path_factory.mktemp("bare")
    venv.create(root / "env", with_pip=False)
    site = next((root / "env" / "lib").glob("python*/site-packages"))
    for one in closure(Requirement(text).name for text in PROJECT["dependencies"]):
        for file in one.files or []:
            top = file.parts[0]
            place = Path(str(one.locate_file(top)))
            if top != ".." and place.exists() and not (site / top).exists():
                (site / top).symlink_to(place)
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return root


def call(bare, *arguments):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    command = [str(bare / "env" / "bin" / "python"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=bare, env=environment)


@pytest.mark.long
def test_the_whole_way_without_extras(bare):
    probe = f"import importlib.util as u; print([n for n in {EXTRAS} if u.find_spec(n)])"
    there = call(bare, "-c", probe).stdout
    assert not {"nnunetv2", "monai", "matplotlib", "sklearn"} & set(re.findall(r"\w+", there)), there
    assert "site-packages" in call(bare, "-c", "import viewalign; print(viewalign.__file__)").stdout
    assert "pretrain" in call(bare, "-m", "viewalign", "--help").stdout
    (bare / "scans").mkdir()
    for k in range(4):
        image = np.random.default_rng(k).normal(size=(20, 20, 20)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(bare / "scans" / f"p{k}.nii.gz"))
    small = [
        "steps=2",
        "batch=2",
        "views.patch_size=[16,16,16]",
        "heads.width=16",
        "runtime.workers=0",
        "validate.every=0",
    ]
    for command in (
        ["index", "scans", "-o", "catalogue.json"],
        ["prepare", "catalogue.json", "-o", "store", "workers=0"],
        ["pretrain", "cva-resenc-xs", "store", "-o", "run", *small],
        ["report", "run"],
        ["export", "run"],
    ):
        done = call(bare, "-m", "viewalign", *command)
        assert done.returncode == 0, (command, done.stdout[-2000:] + done.stderr[-3000:])


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["finetune", "segmentation", "4", "run", "-o", "o"], "nnunetv2"),
        (["finetune", "classification", "task", "run", "-o", "o"], "scikit-learn"),
        (["probe", "task", "run"], "scikit-learn"),
        (["fetch", "weights", "openmind-mae"], "huggingface"),
        (["demo"], "nilearn"),
    ],
)
def test_a_missing_extra_is_named(command, extra, bare):
    done = call(bare, "-m", "viewalign", *command)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "-m pip install" in done.stderr
    assert extra in done.stderr


def test_minimum_versions_are_the_lower_bounds():
    pinned = {}
    for line in (ROOT / "requirements-minimum.txt").read_text().splitlines():
        if "==" in line:
            name, _, version = line.partition("==")
            pinned[name.lower()] = Version(version)
    for text in PROJECT["dependencies"]:
        need = Requirement(text)
        low = next(Version(one.version) for one in need.specifier if one.operator == ">=")
        assert low == pinned[need.name.lower()], need
    assert len(pinned) == len(PROJECT["dependencies"])


def test_the_lock_satisfies_every_dependency():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for need in map(Requirement, PROJECT["dependencies"]):
        assert need.specifier.contains(locked[canonicalize_name(need.name)]), need


def test_timm_stays_below_the_version_that_breaks_primus():
    (need,) = [one for one in map(Requirement, PROJECT["dependencies"]) if one.name == "timm"]
    assert need.specifier.contains("1.0.22")
    assert not need.specifier.contains("1.0.23")


def test_the_citation_file_names_this_version():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert told["version"] == viewalign.__version__ == PROJECT["version"]
    assert told["authors"] == [{"name": "The viewalign authors"}]
