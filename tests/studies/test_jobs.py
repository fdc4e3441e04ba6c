"""Shards of a study are complete chains, and the SLURM script is valid."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest
from typer.testing import CliRunner

import viewalign
from viewalign.api.studies import StudyPlan
from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.studies.cells import chains, only, share, slurm_script

from .conftest import write_data


def test_shards_cover_every_cell_once_with_its_dependencies(make):
    grid = make(seeds=3)
    assert len(chains(grid.study)) == 6  # cva starts from mae
    for count in (1, 2, 4, 6, 9):
        parts = [share(grid.study, grid.cells, f"{k}/{count}") for k in range(1, count + 1)]
        assert sorted(cell.name for part in parts for cell in part) == sorted(cell.name for cell in grid.cells)
        for part in parts:
            assert all(cell.needs is None or cell.needs in part for cell in part)


@pytest.mark.parametrize("once", ["mae", "cva"])
def test_shards_of_an_arm_that_is_pretrained_once(make, once):
    arms = {"mae": {"recipe": "mae-resenc-xs"}, "cva": {"recipe": "cva-resenc-xs", "start": "mae"}}
    arms[once]["once"] = True
    grid = make(seeds=3, arms=arms)
    pretrained = [cell.name for cell in grid.cells if cell.name.startswith("pretrain/cva")]
    assert pretrained == [f"pretrain/cva/{seed}" for seed in ([0, 1, 2] if once == "mae" else [0])]
    parts = [share(grid.study, grid.cells, f"{k}/2") for k in (1, 2)]
    assert sorted(cell.name for part in parts for cell in part) == sorted(cell.name for cell in grid.cells)
    for part in parts:
        assert all(cell.needs is None or cell.needs in part for cell in part)


@pytest.mark.parametrize("job", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_invalid_shards(make, job):
    grid = make()
    with pytest.raises(UserError, match="shard="):
        share(grid.study, grid.cells, job)


def test_a_pattern_selects_dependencies(make):
    grid = make()
    found = [cell.name for cell in only(grid.cells, "evaluate/places/cva/*")]
    assert found == ["pretrain/mae/0", "pretrain/cva/0", "evaluate/places/cva/0"]
    with pytest.raises(UserError, match="seg"):
        only(grid.cells, "seg")


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_script(make, device):
    text = slurm_script(make(seeds=2, device=device).study, ["a b/python", "it's"], "logs/%a.log")
    told = subprocess.run([shutil.which("bash"), "-n"], input=text, text=True, capture_output=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    assert "#SBATCH --array=1-4\n" in text
    assert ("#SBATCH --gres=gpu:1\n" in text) == (device == "auto")
    assert """'a b/python' 'it'"'"'s' "shard=${SLURM_ARRAY_TASK_ID}/4" &""" in text


def test_a_task_near_its_time_limit_requeues_itself(make, tmp_path):
    """What SLURM does, done by hand: USR1 to the script, which stops its work and calls scontrol."""
    work = tmp_path / "work.sh"
    work.write_text("trap 'echo stopped; exit 143' TERM\necho begun $1\nwhile :; do sleep 0.05; done\n")
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho scontrol $*\n")
    (tmp_path / "scontrol").chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(slurm_script(make().study, ["bash", str(work)], "x"))
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    command = ["bash", str(script)]
    job = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert job.stdout.readline() == "begun shard=2/2\n"
        job.send_signal(signal.SIGUSR1)
        assert job.communicate(timeout=30)[0] == "stopped\nscontrol requeue 7_2\n"
        assert job.returncode == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The file of a study of one arm, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    own = {"store": "store", "labelled": {"images": "images", "labels": "labels", "learn": ["c0"], "test": ["c1"]}}
    tree = {"data": own, "arms": {"mae": {"recipe": "mae-resenc-xs"}}, "evaluations": {"places": {"kind": "retrieval"}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(tree))
    return tmp_path / "mine.yaml"


def test_the_command_writes_it(mine):
    told = CliRunner().invoke(app, ["study", "mine.yaml", ".", "-o", "out", "--slurm", "job.sh", "seeds=4"])
    assert told.exit_code == 0, told.output
    folder = mine.parent
    text = (folder / "job.sh").read_text()
    assert f"""study {mine} 'data.root="{folder}"' seeds=4 -o {folder / "out"} "shard=""" in text
    assert "--array=1-4" in text
    assert [path.name for path in (folder / "out").iterdir()] == ["slurm"]


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [("somewhere", {}, "somewhere"), (".", {"arms.mae.settings.optim.lrr": 1}, "lrr")],
)
@pytest.mark.usefixtures("mine")
def test_a_study_that_cannot_run_has_no_script(tmp_path, data, settings, said):
    with pytest.raises(UserError, match=said):
        viewalign.study("mine.yaml", data, "out", **settings).write_slurm("job.sh")
    assert not (tmp_path / "job.sh").exists()
    assert not (tmp_path / "out").exists()


def test_a_part_without_cells_is_complete(make, tmp_path, caplog):
    caplog.set_level("INFO", logger="viewalign")
    assert StudyPlan(make().study, tmp_path / "out", shard="2/2").run("evaluate/places/mae/*") == 0
    assert "shard=2/2" in caplog.text


@pytest.mark.usefixtures("mine")
def test_a_script_keeps_the_limit_of_time_and_is_of_studies_alone(tmp_path):
    viewalign.study("mine.yaml", None, "out", minutes=60).write_slurm("job.sh")
    assert " minutes=60 -o " in (tmp_path / "job.sh").read_text()
    other = viewalign.compare_methods("store", "images", "labels", "cm", methods=["mae"], learn="a", test="b")
    with pytest.raises(UserError, match="Only a plan of `study`"):
        other.write_slurm("other.sh")
    assert not (tmp_path / "other.sh").exists()


def test_a_job_runs_the_cells_that_were_chosen(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = make().study
    (tmp_path / "mine.yaml").write_text(json.dumps(study.model_dump(mode="json", exclude_unset=True)))
    line = ["study", "mine.yaml", "-o", "sp ace", "--slurm", "my job.sh"]
    told = CliRunner().invoke(app, [*line, "--only", "evaluate/*/mae/*"])
    assert told.exit_code == 0, told.output
    assert "sbatch 'my job.sh'" in told.output
    text = (tmp_path / "my job.sh").read_text()
    command = next(line for line in text.splitlines() if "-m viewalign" in line)
    assert shlex.split(command)[-4:-2] == ["--only", "evaluate/*/mae/*"]
    directive = next(line for line in text.splitlines() if "--output" in line)
    assert shlex.split(directive) == ["#SBATCH", f"--output={tmp_path}/sp ace/slurm/%A_%a.log"]
    for wrong, words in (("--dry-run", "--dry-run"), ("shard=1/2", "shard=1/2")):
        refused = CliRunner().invoke(app, [*line, wrong])
        assert isinstance(refused.exception, UserError)
        assert words in str(refused.exception)
    parts = [StudyPlan(study, tmp_path / "out", shard=f"{k}/2").cells("evaluate/places/mae/*") for k in (1, 2)]
    assert parts == [{"pretrain/mae/0": "to do", "evaluate/places/mae/0": "to do"}, {}], "the other job has none"


@pytest.mark.usefixtures("mine")
def test_the_command_of_a_job_is_accepted(tmp_path):
    changes = ["seeds=2", 'data.labelled.test=["c2"]', "arms.mae.settings.batch=3"]
    told = CliRunner().invoke(app, ["study", "mine.yaml", ".", "-o", "out", "--slurm", "job.sh", *changes])
    assert told.exit_code == 0, told.output
    line = next(line for line in (tmp_path / "job.sh").read_text().splitlines() if "-m viewalign" in line)
    words = shlex.split(re.sub(r"\$\{\w+\}", "1", line).rstrip("&"))
    job = CliRunner().invoke(app, [*words[words.index("viewalign") + 1 :], "--dry-run"])
    assert job.exit_code == 0, job.exception
    assert sorted(job.output.split()[2::3]) == ["evaluate/places/mae/0", "pretrain/mae/0"]
