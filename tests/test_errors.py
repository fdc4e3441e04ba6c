"""Files that cannot be used are a sentence; other errors stay what they are."""

import errno
import os

import pytest

from viewalign.errors import UserError, report_os_errors, usual_reason


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EACCES, errno.ENOTDIR])
def test_what_a_user_can_correct_is_a_sentence(number):
    with pytest.raises(UserError, match=r"disk is full|scan\.nii"), report_os_errors():
        raise OSError(number, os.strerror(number), "scan.nii")


def test_a_name_that_is_too_long_for_a_file(tmp_path):
    with pytest.raises(UserError, match="File name too long"), report_os_errors():
        (tmp_path / ("x" * 300)).is_file()


@pytest.mark.parametrize("problem", [OSError(errno.EINVAL, "odd"), BrokenPipeError(errno.EPIPE, "pipe"), ValueError()])
def test_other_errors_are_not_changed(problem):
    with pytest.raises(type(problem)), report_os_errors():
        raise problem


def test_the_most_frequent_reason_is_named_with_an_example():
    reasons = [("a", "no file"), ("b", "2,288 of 13,728 voxels are NaN"), ("c", "17 of 20 voxels are NaN")]
    assert usual_reason(reasons) == ("The most frequent reason (2 of 3), as for b: 2,288 of 13,728 voxels are NaN.")
    assert usual_reason([]) == ""
