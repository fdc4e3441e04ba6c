from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from viewalign.data.sources.naming import is_label, modality_of, names_of


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sub-01/ses-02/anat/sub-01_ses-02_T1w.nii.gz", ("sub-01", "ses-02", "T1w")),
        ("sub_7/ses_1/flair.nii.gz", ("sub-7", "ses-1", "FLAIR")),
        ("sub-9_T2w.nii.gz", ("sub-9", "ses-DEFAULT", "T2w")),
        ("patient01_study1_T1W.nii.gz", ("patient01", "study1", "T1w")),
        ("patient07_T1POST.nii.gz", ("patient07", "ses-DEFAULT", "T1post")),
        ("anna/T1.nii.gz", ("anna", "ses-DEFAULT", "T1w")),
        ("anna/visit2/T1.nii.gz", ("anna", "visit2", "T1w")),
        ("anna_T1.nii.gz", ("anna", "ses-DEFAULT", "T1w")),
        ("anna_T2.nii.gz", ("anna", "ses-DEFAULT", "T2w")),
        ("images/hippocampus_001.nii.gz", ("hippocampus_001", "ses-DEFAULT", "unknown")),
        ("site1/001.nii.gz", ("site1_001", "ses-DEFAULT", "unknown")),
        ("cranium_ct.nii.gz", ("cranium", "ses-DEFAULT", "CT")),
    ],
)
def test_guesses(path: str, expected: tuple[str, str, str]) -> None:
    relative = PurePosixPath(path)
    assert names_of(relative, relative.name.removesuffix(".nii.gz")) == expected


def test_a_pattern_rules_over_the_guess() -> None:
    pattern = re.compile(r"(?P<subject>P\d+)/v(?P<session>\d)")
    relative = PurePosixPath("P12/v3/sub-99_T1w.nii")
    assert names_of(relative, "sub-99_T1w", pattern) == ("P12", "3", "T1w")


def test_words_inside_other_words_are_no_modality() -> None:
    assert modality_of("district_impact") == "unknown"


@pytest.mark.parametrize(
    "path", ["labels/a.nii.gz", "labelsTr/a.nii.gz", "brain1_label.nrrd", "x_seg.nii", "p7_LESION.nii"]
)
def test_label_maps_are_told(path: str) -> None:
    relative = PurePosixPath(path)
    assert is_label(relative, relative.name.split(".")[0])


def test_images_are_no_label_maps() -> None:
    assert not is_label(PurePosixPath("images/segment_01_T1.nii"), "segment_01_T1")
