"""What the docs show works: every command is run in a made-up world, or parsed where it cannot be run here.

A page's commands run in order in a folder of its own, in which the sources and results of `needs` lie under the docs'
names. Nothing of a command is changed but that small settings are appended to it and absolute folders lie in the
world. `NOT_RUN` lists what is parsed alone, each with its reason.
"""

import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from doc_commands import PAGES, ROOT, Command, commands, inline, programs
from doc_world import TINY, make_sources
from typer.main import get_command
from typer.testing import CliRunner

import viewalign
from viewalign.cli.grammar import model_of
from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.recipes.loading import load
from viewalign.utils.settings import setting_names

pytest.importorskip("sklearn")

pytestmark = pytest.mark.slow

ELSEWHERE = {"docs/nnssl.md": "tests/compat/nnssl/test_commands.py::test_every_command_of_the_page_runs"}
"""Pages whose commands another test runs as they stand."""

MADE = {"store", "run", "other-run"}
"""Results of earlier pages, made once."""

NOT_RUN = [
    (r"^make (demo|test)\b", "tests/demo runs the demo; this is the suite"),
    (r"^viewalign demo ~", "tests/demo runs it with images of one's own"),
    (r"^viewalign fetch \S", "needs the internet; tests/data/fetch stands a server in for it"),
    (r"scheduler=tcp", "needs a cluster; tests/volumes runs a local one"),
    (r"^viewalign doctor --gpu", "needs a GPU; tests/training/gpu checks a CPU in the same way"),
    (r"^sh benchmarks/gpu/wheels.sh", "needs an index of packages"),
    (r"^(pip|python3?(\.12)?) (install|-m)", "an installation, done by hand"),
    (r"^(uv|conda|git|cd|sh packaging|make install|\.venv/bin/viewalign|viewalign/bin/python) ?", "the same"),
    (r"^viewalign finetune segmentation", "nnU-Net takes minutes; run in the long suite"),
    (r"^viewalign (compare|predict|export) heart", "what a segmentation left; run in the long suite"),
    (r"^nnUNetv2_", "nnU-Net's own command; tests/finetuning/segmentation runs it"),
    (r"^viewalign export run format=nnunet", "nnU-Net's planning takes a minute; run in the long suite"),
    (r"^viewalign export run format=ssl3d", "takes a ResEnc-L or Primus-M; tests/compat/test_ssl3d.py trains one"),
    (r"^viewalign fomo prepare (finetune_task2|Task_[24])", "tests/finetuning/segmentation/test_fomo.py writes them"),
    (r"^viewalign fomo submission meningioma", "the same test writes one of a segmentation"),
    (r"^viewalign study .*(minutes=|shard=|--only)", "many arms and seeds; tests/study runs small ones"),
    (r"^viewalign gain", "pretraining and many fine-tunings; tests/studies/test_gain.py runs tiny ones"),
    (r"^viewalign compare-methods", "thirteen methods and three seeds; tests/studies/test_methods.py runs two"),
    (r"^(ls|cat|find|export|eval|source|tensorboard) ", "the shell's own"),
]
"""Patterns of commands that are parsed and not run, and why."""

RECORDS = dict.fromkeys(
    [page for page in PAGES if "/results/" in page], "figures were made so on real volumes in hours"
)
RECORDS["docs/benchmarks.md"] = "the same"
"""Pages that record how something was measured: parsed and not run."""

SEGMENTATION = ["README.md", "docs/from-nnunet.md", "docs/segmentation.md"]
"""Pages whose segmentations the long suite runs."""

SHORT = {"README.md", "docs/index.md"}
"""Pages whose commands the short suite runs; the long one runs all. Every command is parsed in both."""

EVERY = [command for page in PAGES for command in commands(page)]


def why_not_run(command: Command) -> str:
    found = [why for pattern, why in NOT_RUN if re.search(pattern, command.text)]
    return RECORDS.get(command.page) or ELSEWHERE.get(command.page) or (found[0] if found else "")


def test_there_is_something_to_run():
    run = [one for one in EVERY if not why_not_run(one)]
    assert len(run) >= 35
    assert {"index", "prepare", "pretrain", "report", "export", "probe", "embed", "estimate", "doctor"} <= {
        one.words[1] for one in run if one.words[0] == "viewalign"
    }
    for pattern, _ in NOT_RUN:
        assert any(re.search(pattern, one.text) for one in EVERY) or "tensorboard" in pattern, f"unused: {pattern}"


def parse(words: list[str]) -> None:
    """Let the command line's own parser read the words; nothing is run."""
    command, path = get_command(app), []
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no command '{' '.join([*path, name])}'"
        command, path = command.commands[name], [*path, name]
    context = command.make_context(f"viewalign {' '.join(path)}", [word for word in words if word != "-h"])
    if path == ["pretrain"]:
        if not str(context.params["recipe"]).endswith(".yaml"):
            load(context.params["recipe"], settings=context.obj)
    elif context.obj and path != ["estimate"] and path != ["study"]:
        known = set(setting_names(model_of(" ".join(path)), groups=True))
        assert set(context.obj) <= known, f"{set(context.obj) - known} are no settings of {path}"


@pytest.mark.parametrize("command", EVERY, ids=lambda one: f"{one.page}: {one.text[:60]}")
def test_a_command_is_one_that_the_program_knows(command):
    words = command.words
    if words[0] == "viewalign":
        parse(words[1 : words.index(">")] if ">" in words else words[1:])
    elif words[:3] == ["python", "-m", "pip"] or words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for named in re.findall(r"\[(.*?)\]", command.text):
            assert set(named.split(",")) <= set(extras)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        if words[1].startswith("benchmarks/"):
            source = (ROOT / words[1]).read_text()
            for option in (word for word in words if word.startswith("--")):
                assert option in source, option
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    else:
        assert why_not_run(command), f"no one knows '{words[0]}'"


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_have_the_options_they_show(page):
    for one in inline(page):
        words = [word for word in one.text.split() if word != "…"]
        if words[0] != "viewalign":
            continue
        command = get_command(app)
        while len(words) > 1 and hasattr(command, "commands") and words[1] in command.commands:
            command = command.commands[words.pop(1)]
        if hasattr(command, "commands") and len(words) > 1:  # a placeholder such as KIND, or an option of all commands
            assert words[1].isupper() or words[1].startswith("--"), f"{page}: {one}"
        options = {name for parameter in command.params for name in parameter.opts}
        for word in words[1:]:
            assert not word.startswith("-") or word in {*options, "--help", "-h"}, f"{page}: {one}: no option {word}"


RUN = [page for page in PAGES if any(not why_not_run(command) for command in commands(page))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sources and the first results, made once; one thread, for at this size threads wait for each other."""
    root, threads = tmp_path_factory.mktemp("world"), torch.get_num_threads()
    torch.set_num_threads(1)
    make_sources(root)
    viewalign.prepare(root / "scans", root / "store", workers=0)
    for name in ("run", "other-run"):
        call(["pretrain", "cva-resenc-xs", str(root / "store"), "-o", str(root / name), *TINY, "network=resenc-xxs"])
    yield root
    torch.set_num_threads(threads)


def call(words, codes=(0,)):
    """Run the command line in this process."""
    told = CliRunner().invoke(app, words)
    if isinstance(told.exception, UserError):
        pytest.fail(f"viewalign {' '.join(words)}: {told.exception}")
    if told.exception is not None and not isinstance(told.exception, SystemExit):
        raise told.exception
    assert told.exit_code in codes, f"viewalign {' '.join(words)}: {told.output}"
    return told.stdout


def made_small(words):
    """Append what makes a command take a second."""
    name, kind = words[0], words[1] if len(words) > 1 else ""
    if name == "pretrain":
        headless = kind.startswith("mae-r") or "heads.projector=none" in words
        small = [one for one in TINY if not (headless and one.startswith("heads."))]
        family = "primus" if "primus" in kind else "resenc"
        small += [f"network={family}-xxs", "masking.block=8"]
        small += ["validate.probe.folds=2"] if "validate.probe.task=task" in words else []
        return [*words, *small]
    appended = {
        "prepare": ["workers=0"],
        "estimate": ["network=resenc-xxs", "views.patch_size=16", "prepare.workers=0"],
        "probe": ["patch_size=16", "draws=100", "repeats=1", "folds=2", "shots=2"],
        "embed": ["patch_size=16"],
    }
    if words[:2] == ["finetune", "segmentation"]:
        few = ["shots=2", "seeds=1", r"patient=(heart_\d+)"] if any(w.startswith("shots=") for w in words) else []
        short = ["epochs=1", "iterations=1", "validation_iterations=1", "patch_size=16"]
        return [*words, *short, *few, "tta=false", "precision=fp32", "device=cpu", "workers=1"]
    if name == "finetune":
        return [
            *words,
            "patch_size=16",
            "epochs=1",
            "batch=4",
            "accumulate=1",
            "folds=2",
            "draws=100",
            "precision=fp32",
        ]
    return [*words, *appended.get(name, [])]


def make_way(words, here):
    """Remove what an earlier command of the page wrote at the same place; its reader would name another one."""
    places = [words[k + 1] for k, word in enumerate(words[:-1]) if word in ("-o", "--out")]
    for place in places:
        path = here / place
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir() and not any(word.startswith("shard=") for word in words):
            shutil.rmtree(path)


def before(command, here):
    """Make what a page takes for granted and no command of it makes."""
    if "tuned-a" in command.text:
        for name in ("tuned-a", "tuned-b"):
            shutil.copytree(here / "tuned-classes", here / name)
    if command.words[1:4] == ["finetune", "regression", "task"]:
        (here / "tuned").rename(here / "tuned-classes")
        spec = yaml.safe_load((here / "task" / "task.yaml").read_text())
        shutil.copytree(here / "task", here / "task-of-classes")
        spec = {**{k: v for k, v in spec.items() if k != "classes"}, "kind": "regression"}
        (here / "task" / "task.yaml").write_text(yaml.safe_dump(spec))
        rows = (here / "task" / "manifest.csv").read_text()
        (here / "task" / "manifest.csv").write_text(rows.replace("control", "1").replace("patient", "2"))


@pytest.mark.parametrize("page", [p if p in SHORT else pytest.param(p, marks=pytest.mark.long) for p in RUN])
def test_the_commands_of_a_page_run(page, world, tmp_path, monkeypatch):
    run_page(page, world, tmp_path, monkeypatch, lambda command: not why_not_run(command))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", SEGMENTATION)
def test_the_segmentations_of_a_page_run(page, world, tmp_path, monkeypatch):
    pytest.importorskip("nnunetv2")
    for folder in ("preprocessed", "results"):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(f"nnUNet_{folder}", str(tmp_path / folder))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    run_page(page, world, tmp_path, monkeypatch, lambda command: "long suite" in why_not_run(command))


def run_page(page, world, tmp_path, monkeypatch, wanted):
    """Run those of a page's commands that are wanted, in a folder of the page's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(world / "home"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("nnssl_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_raw", str(world / "raw"))
    for one in world.iterdir():
        (tmp_path / one.name).symlink_to(one)
    catalogue = tmp_path / "catalogue.json"
    call(["index", str(world / "scans"), "-o", str(catalogue)])
    if page == "docs/data.md":
        (tmp_path / "raw").unlink()
        (tmp_path / "raw" / "Dataset745_OpenMind").mkdir(parents=True)
        shutil.copy(catalogue, tmp_path / "raw" / "Dataset745_OpenMind" / "pretrain_data.json")
    if page == "docs/pretraining.md":
        call(["task", "convert", "bids", "ABIDE", "-o", "task", "target=group", "channels=T1w"])
    for command in commands(page):
        if command.words[0] != "viewalign" or not wanted(command):
            continue
        before(command, tmp_path)
        text = command.text.replace(" /shared/", " shared/").replace(" /data/", " ").replace(" /scratch/runs", " .")
        words = Command(page, os.path.expandvars(text.replace("~/", "$HOME/"))).words[1:]
        into = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if into else words
        make_way(words, tmp_path)
        if words[0] in ("export", "report") and (tmp_path / words[1]).is_symlink():
            (tmp_path / words[1]).unlink()
            shutil.copytree(world / words[1], tmp_path / words[1])
        told = call(made_small(words), codes=(0, 1, 3) if words[0] == "doctor" else (0,))
        if into:
            Path(into).write_text(told)


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page) and page != "docs/geometry.md"])
def test_the_programs_of_a_page_run(page, world, tmp_path, monkeypatch):
    """The geometry page's has a test of its own (tests/test_docs.py), which looks at what it works out."""
    monkeypatch.chdir(tmp_path)
    for one in world.iterdir():
        (tmp_path / one.name).symlink_to(one)
    for code in programs(page):
        if "monai" in code:
            pytest.importorskip("monai")
        scope = {"__name__": "docs"}
        if "network" in code and "network =" not in code:
            from viewalign.networks.registry import build_backbone

            scope["network"] = build_backbone("resenc-xxs", (16, 16, 16)).net
        exec(compile(code, page, "exec"), scope)


def test_pages_that_other_tests_run_are_run_there():
    for page, test in ELSEWHERE.items():
        file, name = test.split("::")
        source = (ROOT / file).read_text()
        assert f"def {name}(" in source
        assert Path(page).name in source
