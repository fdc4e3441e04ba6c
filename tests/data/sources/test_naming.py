from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

import pytest

from viewalign.data.sources.label_names import is_label
from viewalign.data.sources.naming import fewer_subjects, modality_of, names_of, stated_names


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
        ("100307/unprocessed/3T/T1w_MPR1/100307_3T_T1w_MPR1.nii.gz", ("100307", "3T", "T1w")),
        ("002_S_0295/MPRAGE/2006-04-18_08_20_30.0/I45108/ADNI_x.nii", ("002_S_0295", "2006-04-18", "T1w")),
        (
            "ADNI_002_S_0295_MR_MPRAGE_br_raw_20060418_S13408_I13722.nii.gz",
            ("002_S_0295", "ses-DEFAULT", "T1w"),
        ),
        ("data/ADNI_002_S_0295_MR_T2_br_raw_S13409_I13723.nii.gz", ("002_S_0295", "ses-DEFAULT", "T2w")),
        ("PPMI_3102_MR_SAG_T1_br_raw_20110629_S113312_I242389.nii.gz", ("3102", "ses-DEFAULT", "T1w")),
        ("IXI-T2/IXI012-HH-1211-T2.nii.gz", ("IXI012", "ses-DEFAULT", "T2w")),
        ("1000001_20252_2_0/T1/T1.nii.gz", ("1000001", "2_0", "T1w")),
        ("train_7/train_7_a/train_7_a_2.nii.gz", ("train_7", "a", "unknown")),
        ("sub-CAM-001_T1w.nii.gz", ("sub-CAM-001", "ses-DEFAULT", "T1w")),
        ("sub_CAM_001_0000.nii.gz", ("sub-CAM_001", "ses-DEFAULT", "unknown")),
        ("sub-Müller/T1.nii.gz", ("sub-Müller", "ses-DEFAULT", "T1w")),
        ("sub-01-T1.nii.gz", ("sub-01", "ses-DEFAULT", "T1w")),
        ("sub_anna_0000.nii.gz", ("sub-anna", "ses-DEFAULT", "unknown")),
        ("site/P001/20190131/T1.nii.gz", ("site_P001", "20190131", "T1w")),
        ("site/P001/2019_01_31/FLAIR.nii.gz", ("site_P001", "2019_01_31", "FLAIR")),
        ("P001/V2/T1.nii.gz", ("P001", "V2", "T1w")),
        ("healthy/V02/T1.nii.gz", ("healthy_V02", "ses-DEFAULT", "T1w")),
        ("site/20190131/T1.nii.gz", ("site_20190131", "ses-DEFAULT", "T1w")),
        ("P001/20191399/T1.nii.gz", ("P001_20191399", "ses-DEFAULT", "T1w")),
        ("BraTS-GLI-00005-001/BraTS-GLI-00005-001-t1n.nii.gz", ("BraTS-GLI-00005", "001", "T1w")),
        ("BraTS-GLI-00005-001_0000.nii.gz", ("BraTS-GLI-00005", "001", "unknown")),
        ("train_7_a_2_0000.nii.gz", ("train_7", "a", "unknown")),
        ("PPMI_3102_MR_SAG_T1_br_raw_20110629_S113312_I242389_0000.nii.gz", ("3102", "ses-DEFAULT", "T1w")),
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
    "path",
    [
        "labels/a.nii.gz",
        "labelsTr/a.nii.gz",
        "brain1_label.nrrd",
        "x_seg.nii",
        "p7_LESION.nii",
        "s0001/segmentations/liver.nii.gz",
        "case_00001/segmentation.nii.gz",
        "segmentation-12.nii.gz",
        "labels-3.nii.gz",
        "label/label0001.nii.gz",
        "sub-1_seg-vert_msk.nii.gz",
        "patient001_frame01_gt.nii.gz",
        "Case00_segmentation.nii.gz",
        "mri/aseg.nii.gz",
        "mri/aparc+aseg.nii.gz",
        "mri/aparc.a2009s+aseg.nii.gz",
        "mri/ribbon.nii.gz",
        "mri/wmparc.nii.gz",
        "sub-1_T1w_defacemask.nii.gz",
        "lesionmask.nii.gz",
    ],
)
def test_label_maps_are_recognised(path: str) -> None:
    relative = PurePosixPath(path)
    assert is_label(relative, relative.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".nrrd"))


@pytest.mark.parametrize(
    "path", ["images/segment_01_T1.nii", "volume-3.nii", "img/img0001.nii", "imaging.nii", "patient1_frame01.nii"]
)
def test_images_are_no_label_maps(path: str) -> None:
    assert not is_label(PurePosixPath(path), PurePosixPath(path).stem)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["p1_a", "p1_b", "p2_a", "p2_b"], 2),
        (["case_001", "case_002", "case_003"], 0),
        (["anna", "bert"], 0),
    ],
)
def test_names_that_may_belong_to_fewer_subjects(names: list[str], count: int) -> None:
    assert fewer_subjects(names) == count


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("stem", "subject"), [("café_T1", "café"), ("張三_T1", "張三"), ("Анна_T2", "Анна"), ("a(_T1", "a"), ("T1", "T1")]
)
def test_names_of_other_alphabets(stem: str, subject: str, form) -> None:
    """A subject keeps its last letter, its images belong together, and both forms of an accent are one name."""
    name = unicodedata.normalize(form, stem)
    assert names_of(PurePosixPath(f"{name}.nii.gz"), name).subject == subject


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_stated_names_of_other_alphabets(form) -> None:
    path = PurePosixPath(unicodedata.normalize(form, "sub-René1/ses-é2/x.dcm"))
    assert stated_names(path)["subject"] == "sub-René1"
    pattern = re.compile("(?P<subject>Ren.1)")
    assert stated_names(path, pattern)["subject"] == "René1"
