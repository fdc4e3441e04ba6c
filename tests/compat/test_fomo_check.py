"""The checks of a submission, against the faults of the organisers' broken sample builds and some of our own."""

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.compat.fomo_check import check_output, check_submission
from viewalign.compat.fomo_submission import write_submission
from viewalign.errors import UserError

from .test_fomo_submission import model

pytestmark = pytest.mark.slow

PROGRAM = """
import argparse, nibabel, numpy as np
parser = argparse.ArgumentParser()
for word in ("flair", "dwi", "adc", "t2s", "swi", "t1", "t2", "input", "output"):
    parser.add_argument("--" + word)
a = parser.parse_args()
def text(words):
    open(a.output, "w").write(words)
def mask(change, array=np.zeros_like):
    image = nibabel.load(a.t2 or a.flair)
    nibabel.save(nibabel.Nifti1Image(*change(np.zeros(image.shape, np.uint8), image.affine)), a.output)
def vector(array):
    np.save(a.output, array)
"""


@pytest.fixture
def program(tmp_path):
    def write(body):
        (tmp_path / "predict.py").write_text(PROGRAM + body)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("task", "body"),
    [
        (1, "text('0.5')"),
        (2, "mask(lambda m, affine: (m + 1, affine))"),
        (2, "mask(lambda m, affine: (m, affine))"),
        (3, "text('61.25\\n')"),
        (4, "mask(lambda m, affine: (m + 2, affine))"),
        (5, "text('1')"),
        (6, "vector(np.ones(768, np.float16))"),
        (7, "vector(np.ones((1, 40)))"),
    ],
)
def test_valid_outputs_pass(program, task, body):
    cases = check_submission(program(body), task)
    assert len(cases) == 4
    assert [case.problems for case in cases] == [()] * 4


@pytest.mark.parametrize(
    ("task", "body", "problem"),
    [
        (1, "text('5')", "not in [0, 1]"),
        (2, "import torch; torch.zeros(1, device='cuda:7')", "it ended with"),
        (2, "mask(lambda m, affine: (m[:, :, :-10], affine))", "has the shape"),
        (3, "text('[61.2]')", "not a number"),
        (3, "text('nan')", "not finite"),
        (4, "a.t2w", "it ended with AttributeError"),
        (4, "mask(lambda m, affine: (m + 4, affine))", "labels from 4 to 4, not 0 to 2"),
        (5, "text('0.2 0.8')", "2 words"),
        (6, "vector(np.array([1.0, np.inf]))", "not finite"),
        (7, "assert False", "it ended with AssertionError"),
        (7, "vector(np.zeros((3, 768)))", "(3, 768)"),
        (1, "raise SystemExit(2)", "exit code is 2"),
        (1, "pass", "no output"),
        (2, "mask(lambda m, affine: (m, affine + 0.1))", "another affine"),
        (2, "mask(lambda m, affine: (m + np.float32(0.5), affine))", "not integers"),
        (6, "vector(np.ones(3, int))", "not floats"),
        (6, "vector(np.ones(nibabel.load(a.input).shape[0]))", "different lengths"),
        (1, "import socket; text('0.5'); socket.create_server(('127.0.0.1', 0))", "used the network (bind)"),
    ],
)
def test_faults_are_found(program, task, body, problem):
    problems = [line for case in check_submission(program(body), task) for line in case.problems]
    assert any(problem in line for line in problems), problems


def test_a_swallowed_use_of_the_network_is_found(program):
    body = """
import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    text("0.5")
"""
    (problem, *_), *_ = (case.problems for case in check_submission(program(body), 1))
    assert problem == "it used the network (connect)"


def test_a_file_that_is_none_of_the_kind_is_a_problem(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "image.nii.gz")
    for name, task in (("a.npy", 6), ("a.nii.gz", 2), ("a.txt", 1)):
        (tmp_path / name).write_bytes(b"\xff\x00")
        assert check_output(tmp_path / name, task, tmp_path / "image.nii.gz")


@pytest.mark.parametrize("task", [1, 3, 5])
def test_submissions_of_fine_tunings_pass(tmp_path, task):
    folder = write_submission(model(tmp_path / "m", task), tmp_path / "s")
    assert [case.problems for case in check_submission(folder, task)] == [()] * 4


def test_a_submission_of_an_encoder_passes_from_the_command_line(tmp_path):
    made = ["fomo", "submission", "untrained:resenc-xxs", "-o", str(tmp_path / "s"), "patch_size=16"]
    assert CliRunner().invoke(app, made).exit_code == 0
    result = CliRunner().invoke(app, ["fomo", "check", str(tmp_path / "s"), "task=6"])
    assert result.exit_code == 0, result.output
    assert result.output.count("passed") == 4
    assert CliRunner().invoke(app, ["fomo", "check", str(tmp_path / "s"), "task=1"]).exit_code == 1
    with pytest.raises(UserError, match=r"no predict\.py"):
        check_submission(tmp_path, 1)
