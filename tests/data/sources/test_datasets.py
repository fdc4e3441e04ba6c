"""Datasets of known form: BIDS, nnU-Net and the Decathlon, OpenMind, FOMO60K."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from viewalign.data.indexing import Index, index_sources
from viewalign.errors import UserError


def ids(index: Index) -> list[str]:
    return [record.image_id.removeprefix("viewalign__") for record in index.collection.records()]


@pytest.fixture
def put(write_image, make_head):
    def put(root: Path, *names: str) -> None:
        for name in names:
            write_image(root / name, make_head())

    return put


def test_bids(tmp_path: Path, put) -> None:
    root = tmp_path / "study"
    put(
        root,
        "sub-01/ses-a/anat/sub-01_ses-a_acq-iso_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_acq-low_T1w.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii.gz",
        "sub-02/anat/sub-02_label-lesion_mask.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz",
    )
    (root / "dataset_description.json").write_text('{"Name": "A study", "License": "CC0", "BIDSVersion": "1.8.0"}')
    (root / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t31\tF\nsub-02\tn/a\tM\n")
    index = index_sources([str(root)])
    assert ids(index) == [
        "study__sub-01__ses-a__sub-01_ses-a_acq-iso_T1w",
        "study__sub-01__ses-a__sub-01_ses-a_acq-low_T1w",
        "study__sub-02__ses-DEFAULT__sub-02_FLAIR",
    ]
    assert dict(index.modalities) == {"T1w": 2, "FLAIR": 1}
    dataset = index.collection.datasets["study"]
    assert dataset.dataset_info == {"Name": "A study", "License": "CC0", "BIDSVersion": "1.8.0"}
    assert dataset.subjects["sub-01"].subject_info == {"age": "31", "sex": "F"}
    assert dataset.subjects["sub-02"].subject_info == {"sex": "M"}
    assert [Path(file).name for file in index.label_files] == ["sub-02_label-lesion_mask.nii.gz"]
    assert "1 image ignored under derivatives/" in index.notes[0]


@pytest.mark.parametrize("names", [("ABIDE", "OASIS"), ("ds000114", "ds000201")])
def test_several_bids_datasets_in_one_folder(tmp_path: Path, put, names) -> None:
    for name in names:
        put(tmp_path / name, "sub-01/anat/sub-01_T1w.nii.gz", "sourcedata/sub-01/anat/sub-01_T1w.nii.gz")
        put(tmp_path / name, "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz")
    put(tmp_path, "plain/anna_T1.nii.gz")
    index = index_sources([str(tmp_path)])
    assert ids(index) == [
        *(f"{name}__sub-01__ses-DEFAULT__sub-01_T1w" for name in names),
        f"{tmp_path.name}__plain_anna__ses-DEFAULT__anna_T1",
    ]
    assert [note for note in index.notes if "derivatives" in note]


def test_sub_folders_of_two_sites_are_two_people_and_of_two_modalities_one(tmp_path: Path, put) -> None:
    put(tmp_path, "siteA/sub-01/x.nii.gz", "siteB/sub-01/x.nii.gz", "T1/sub-02/x.nii.gz", "T2/sub-02/x.nii.gz")
    index = index_sources([str(tmp_path)])
    assert index.subjects() == 3
    assert set(index.collection.datasets) == {"siteA", "siteB", tmp_path.name}


@pytest.mark.parametrize("stem", ["sub-01_T1w", "patient01_T1"])
def test_files_of_two_sites_are_two_people_and_of_two_visits_one(tmp_path: Path, put, stem) -> None:
    put(tmp_path, f"siteA/{stem}.nii.gz", f"siteB/images/{stem}.nii.gz", f"baseline/{stem}.nii.gz")
    put(tmp_path, f"siteA/20190131/{stem}.nii.gz", f"siteB/V2/{stem}.nii.gz")
    put(tmp_path, f"patient07/{stem.replace('01', '07')}.nii.gz", f"T1/{stem.replace('01', '02')}.nii.gz")
    index = index_sources([str(tmp_path)])
    assert set(index.collection.datasets) == {"siteA", "siteB", tmp_path.name}
    assert index.subjects() == 5


def test_labels_of_bids_with_hyphens_are_whole(tmp_path: Path, put) -> None:
    names = [f"sub-CAM-00{k}/ses-2019-0{day}-01/anat/sub-CAM-00{k}_T1w.nii.gz" for k in (1, 2) for day in (3, 4)]
    put(tmp_path, *names)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-CAM-001\t31\nsub-CAM-002\t32\n")
    subjects = index_sources([str(tmp_path)]).collection.datasets[tmp_path.name].subjects
    assert {name: subject.subject_info["age"] for name, subject in subjects.items()} == {
        "sub-CAM-001": "31",
        "sub-CAM-002": "32",
    }
    assert set(subjects["sub-CAM-001"].sessions) == {"ses-2019-03-01", "ses-2019-04-01"}


def test_derivatives_of_a_plain_folder_are_left_out_unless_indexed_themselves(tmp_path: Path, put) -> None:
    put(tmp_path, "rawdata/sub-v1/sub-v1_ct.nii.gz", "derivatives/sub-v1/sub-v1_smooth.nii.gz")
    index = index_sources([str(tmp_path)])
    assert index.images == 1
    assert "Ignored: 1 folder called derivatives" in index.notes[0]
    assert index_sources([str(tmp_path / "derivatives")]).images == 1


@pytest.mark.parametrize(
    ("table", "note"),
    [
        ("participant_id\tage\tcomment\nsub-01\t33\tétude\n".encode("latin-1"), ["Latin-1"]),
        (b"participant_id\tage\nsub-01\t33\t\n", ["dropped in 1 row"]),
        (b"participant_id\tage\nsub-01\t33\tx\n", ["dropped in 1 row"]),
        (b"", []),
        (b"name\tage\nx\t1\n", ["no column `participant_id`"]),
    ],
)
def test_a_damaged_table_of_participants_ends_nothing(tmp_path: Path, put, table, note) -> None:
    put(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_bytes(table)
    index = index_sources([str(tmp_path)])
    assert index.images == 1
    assert len(index.notes) == len(note)
    assert all(words in sentence for words, sentence in zip(note, index.notes, strict=True))
    subject = index.collection.datasets[tmp_path.name].subjects["sub-01"]
    assert (subject.subject_info or {}).get("age") == ("33" if b"participant_id" in table else None)


def nnunet(root: Path, **described: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(described))


def test_nnunet_raw(tmp_path: Path, put) -> None:
    root = tmp_path / "Dataset042_Brain"
    put(root, "imagesTr/case_7_0000.nii.gz", "imagesTr/case_7_0001.nii.gz", "labelsTr/case_7.nii.gz")
    put(root, "imagesTs/case_8_0000.nii.gz")
    nnunet(root, channel_names={"0": "T1", "1": "noNorm"}, labels={"background": 0}, file_ending=".nii.gz")
    index = index_sources([str(root)])
    assert ids(index) == [f"Dataset042_Brain__case_7__ses-DEFAULT__case_7_000{k}" for k in (0, 1)]
    assert dict(index.modalities) == {"T1w": 1, "noNorm": 1}
    assert "imagesTs is a test set" in index.notes[0]


def test_a_task_of_the_decathlon(tmp_path: Path, put) -> None:
    root = tmp_path / "Task04_Hippocampus"
    put(root, "imagesTr/hippocampus_001.nii.gz", "labelsTr/hippocampus_001.nii.gz")
    put(root, "imagesTr/._hippocampus_001.nii.gz")
    nnunet(root, name="Hippocampus", modality={"0": "MRI"})
    index = index_sources([str(root)])
    assert ids(index) == ["Task04_Hippocampus__hippocampus_001__ses-DEFAULT__hippocampus_001"]
    assert dict(index.modalities) == {"MR": 1}


def test_cases_of_nnunet_that_show_one_person_are_one_subject(tmp_path: Path, put) -> None:
    root = tmp_path / "Dataset027_ACDC"
    put(root, *(f"imagesTr/patient00{p}_frame{f}_000{c}.nii.gz" for p in (1, 2) for f in ("01", "12") for c in (0, 1)))
    put(root, *(f"imagesTr/BraTS-GLI-00000-00{k}_0000.nii.gz" for k in (0, 1)), "imagesTr/a_0001_0000.nii.gz")
    nnunet(root, channel_names={"0": "MR", "1": "CT"}, file_ending=".nii.gz")
    index = index_sources([str(root)])
    subjects = index.collection.datasets[root.name].subjects
    assert set(subjects) == {"patient001", "patient002", "BraTS-GLI-00000", "a_0001"}
    assert set(subjects["BraTS-GLI-00000"].sessions) == {"000", "001"}
    assert index.notes == []


def test_cases_of_nnunet_that_may_show_one_person_are_noted(tmp_path: Path, put) -> None:
    put(tmp_path / "d", *(f"imagesTr/P0{p}_{when}_0000.nii.gz" for p in (1, 2) for when in ("pre", "post")))
    nnunet(tmp_path / "d", channel_names={"0": "MR"}, file_ending=".nii.gz")
    index = index_sources([str(tmp_path / "d")])
    assert index.subjects() == 4
    assert "4 subjects in d look like 2" in index.notes[0]


def test_other_images_of_nnunet_are_rejected(tmp_path: Path, put) -> None:
    put(tmp_path / "d", "imagesTr/a_0000.nii.gz")
    nnunet(tmp_path / "d", channel_names={"0": "R"}, file_ending=".png")
    with pytest.raises(UserError, match=r"\.png"):
        index_sources([str(tmp_path / "d")])
    (tmp_path / "d" / "dataset.json").write_text("[")
    with pytest.raises(UserError, match=r"dataset\.json"):
        index_sources([str(tmp_path / "d")])


def test_a_damaged_dataset_among_others_is_excluded_with_its_reason(tmp_path: Path, put) -> None:
    put(tmp_path, "Dataset001_A/imagesTr/a_0000.nii.gz", "Dataset002_B/imagesTr/b_0000.nii.gz")
    nnunet(tmp_path / "Dataset001_A", channel_names={"0": "MR"}, file_ending=".nii.gz")
    (tmp_path / "Dataset002_B" / "dataset.json").write_text("[")
    index = index_sources([str(tmp_path)])
    assert ids(index) == ["Dataset001_A__a__ses-DEFAULT__a_0000"]
    assert [(exclusion.file, "dataset.json" in exclusion.reason) for exclusion in index.excluded] == [
        (str(tmp_path / "Dataset002_B"), True)
    ]


TABLE = """image_path,modality,anon_mask_path,anat_mask_path,age,sex,manufacturer,derived_from,image_quality_score
ds000001/sub-01/anat/sub-01_T1w.nii.gz,T1w,ds000001/sub-01/anat/anon.nii.gz,nan,31.0,F,Siemens,,2.5
ds000002/sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz,T2w,,,,,,,1.5
ds000003/sub-09/anat/sub-09_T1w.nii.gz,T1w,,,,,,,4.0
"""


def openmind(root: Path, put) -> None:
    put(root / "OpenMind", "ds000001/sub-01/anat/sub-01_T1w.nii.gz", "ds000001/sub-01/anat/anon.nii.gz")
    put(root / "OpenMind", "ds000002/sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz")


def test_openmind_with_its_table(tmp_path: Path, put) -> None:
    openmind(tmp_path, put)
    (tmp_path / "openneuro_metadata.csv").write_text(TABLE)
    index = index_sources([str(tmp_path)])
    assert ids(index) == [
        "ds000001__sub-01__ses-DEFAULT__sub-01_T1w",
        "ds000002__sub-01__ses-1__sub-01_ses-1_T2w",
    ]
    assert index.subjects() == 2
    record = index.collection.records()[0]
    assert record.anonymisation_mask == tmp_path / "OpenMind/ds000001/sub-01/anat/anon.nii.gz"
    assert record.anatomy_mask is None
    dataset = index.collection.datasets["ds000001"]
    assert dataset.dataset_info == {
        "image_quality_score": [{"modality": "T1w", "derived_from": None, "image_quality_score": 2.5}]
    }
    assert dataset.subjects["sub-01"].subject_info == {"age": 31.0, "sex": "F"}
    info = dataset.subjects["sub-01"].sessions["ses-DEFAULT"].images[0].image_info
    assert info is not None
    assert (info["manufacturer"], info["image_quality_score"]) == ("Siemens", 2.5)
    assert index.notes == ["1 of 3 images of openneuro_metadata.csv are not here (a subset was downloaded)"]


def test_openmind_without_its_table(tmp_path: Path, put) -> None:
    openmind(tmp_path, put)
    for root in (tmp_path, tmp_path / "OpenMind"):
        index = index_sources([str(root)])
        assert index.subjects() == 2
        assert "masks, quality scores" in index.notes[0]


def test_fomo60k(tmp_path: Path, put) -> None:
    root = tmp_path / "fomo-60k"
    put(root, "sub_1/ses_1/t1.nii.gz", "sub_1/ses_2/flair.nii.gz", "sub_12/ses_1/scan_3.nii.gz", "stray.nii.gz")
    (root / "participants.tsv").write_text("participant_id\tage\nsub_1\t40\n")
    index = index_sources([str(root)])
    assert ids(index) == [
        "fomo-60k__sub_1__ses_1__t1",
        "fomo-60k__sub_1__ses_2__flair",
        "fomo-60k__sub_12__ses_1__scan_3",
    ]
    assert dict(index.modalities) == {"T1w": 1, "FLAIR": 1, "unknown": 1}
    assert index.collection.datasets["fomo-60k"].subjects["sub_1"].subject_info == {"age": "40"}
    assert "stray.nii.gz" in index.notes[0]


SCANS = """dataset\tparticipant_id\tsession_id\tfilename\tMagneticFieldStrength\tSliceThickness\tEchoTime
PT001_Cleveland\tsub-01\tses-01\tsub-01/ses-01/anat/sub-01_ses-01_T1c.nii.gz\t3\t6.0\tn/a
PT030_OpenNeuro/ds000002\tsub-01\tses-01\tsub-01/ses-01/anat/sub-01_ses-01_run-2_T2w.nii.gz\t1.5\t\t80
"""
PEOPLE = """dataset\tparticipant_id\tsession_id\tsex\tage\tgroup
PT001_Cleveland\tsub-01\tses-01\tF\t034Y\tpatient
PT001_Cleveland\tsub-01\tses-02\tF\t35\tpatient
"""


def fomo300k(root: Path, put) -> None:
    """Write a tree in which sub-01 is three persons."""
    put(
        root,
        "PT001_Cleveland/sub-01/ses-01/anat/sub-01_ses-01_T1c.nii.gz",
        "PT001_Cleveland/sub-01/ses-02/anat/sub-01_ses-02_scan.nii.gz",
        "PT001_Cleveland/sub-01/ses-02/dwi/sub-01_ses-02_dwi_bval0.nii.gz",
        "PT001_Cleveland/sub-01/ses-02/dwi/sub-01_ses-02_run-1_dwi_bval995.nii.gz",
        "PT001_Cleveland/sub-01/ses-02/dwi/sub-01_ses-02_dwi_bval1000_trace.nii.gz",
        "PT030_OpenNeuro/ds000001/sub-01/ses-01/anat/sub-01_ses-01_T1w.nii.gz",
        "PT030_OpenNeuro/ds000002/sub-01/ses-01/ses-01/anat/sub-01_ses-01_run-2_T2w.nii.gz",
    )
    (root / "mri_info.tsv").write_text(SCANS)
    (root / "participants.tsv").write_text(PEOPLE)


def test_fomo300k(tmp_path: Path, put) -> None:
    fomo300k(tmp_path / "fomo", put)
    index = index_sources([str(tmp_path / "fomo")])
    assert index.subjects() == 3
    assert set(index.collection.datasets) == {
        "PT001_Cleveland",
        "PT030_OpenNeuro_ds000001",
        "PT030_OpenNeuro_ds000002",
    }
    modalities = {"T1c": 1, "unknown": 1, "dwi_b0": 1, "dwi": 1, "dwi_trace": 1, "T1w": 1, "T2w": 1}
    assert dict(index.modalities) == modalities
    sessions = index.collection.datasets["PT001_Cleveland"].subjects["sub-01"].sessions
    assert sessions["ses-01"].session_info == {"sex": "F", "age": "034Y"}
    info = sessions["ses-01"].images[0].image_info
    assert info is not None
    assert (info["MagneticFieldStrength"], info["SliceThickness"]) == ("3", "6.0")
    assert "EchoTime" not in info
    values = {image.modality: (image.image_info or {}).get("b_value") for image in sessions["ses-02"].images}
    assert values == {"unknown": None, "dwi_b0": 0, "dwi": 995, "dwi_trace": 1000}
    scan = index.collection.datasets["PT030_OpenNeuro_ds000002"].subjects["sub-01"].sessions["ses-01"].images[0]
    assert (scan.image_info or {})["EchoTime"] == "80"
    assert not index.notes


def test_one_source_of_fomo300k_and_archives_that_are_not_unpacked(tmp_path: Path, put) -> None:
    root = tmp_path / "fomo"
    fomo300k(root, put)
    (root / "PT030_OpenNeuro/ds000001/sub-02").mkdir()
    (root / "PT030_OpenNeuro/ds000001/sub-02/ses-01.zip").write_bytes(b"PK")
    put(root, "PT030_OpenNeuro/ds000001/code/example.nii.gz")
    index = index_sources([str(root / "PT030_OpenNeuro")])
    assert set(index.collection.datasets) == {"PT030_OpenNeuro_ds000001", "PT030_OpenNeuro_ds000002"}
    stray, archives = index.notes
    assert "Excluded, in no subject of a source (PT…): 1 image" in stray
    assert "Ignored, because not unpacked: 1 archive;" in archives


def test_a_damaged_table_of_fomo300k_is_a_note(tmp_path: Path, put) -> None:
    fomo300k(tmp_path, put)
    (tmp_path / "mri_info.tsv").write_bytes(b"dataset\tage\n\xff\xfe\t1\n")
    index = index_sources([str(tmp_path)])
    assert index.images == 7
    assert "Its information is ignored" in index.notes[0]


def test_folders_of_patients_that_are_named_like_a_source_are_not_fomo300k(tmp_path: Path, put) -> None:
    put(tmp_path, "PT001_first/T1.nii.gz", "PT002_second/T1.nii.gz")
    assert index_sources([str(tmp_path)]).images == 2


def test_several_kinds_in_one_catalogue(tmp_path: Path, put) -> None:
    put(tmp_path / "fomo", "sub_1/ses_1/t1.nii.gz")
    put(tmp_path / "plain", "anna_T1.nii.gz")
    openmind(tmp_path / "om", put)
    index = index_sources([str(tmp_path / name) for name in ("fomo", "plain", "om")])
    assert set(index.collection.datasets) == {"fomo", "plain", "ds000001", "ds000002"}


def test_images_of_a_bids_dataset_outside_its_subjects_are_reported(tmp_path: Path, put) -> None:
    put(tmp_path / "study", "sub-01/anat/sub-01_T1w.nii.gz", "Sub-02/anat/Sub-02_T1w.nii.gz", "phantom_T1w.nii.gz")
    index = index_sources([str(tmp_path / "study")])
    assert index.images == 1
    assert (
        "2 images ignored outside the folders sub-… of study, such as Sub-02/anat/Sub-02_T1w.nii.gz" in index.notes[0]
    )
