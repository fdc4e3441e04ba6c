"""Tiny folders with the names of public datasets, and what `index` makes of each file.

A line is `PATH: SUBJECT SESSION MODALITY` for an image, where `-` is the default session, `own` a subject of the file's
name and `@ID` a DICOM patient. Otherwise it is `PATH: label` for a label map, `.SUFFIX`, `counted` or `dicom` for what
is counted, `PATH: excluded WORDS` with words of the reason, and `PATH: outside` for what a layout ignores.
`DIR/*.dcm CT` is a series of slices of that modality, `PATH 4D` an image of two frames.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from dicom_files import MR, base, put_pixels, write_series

LAYOUTS = {
    "AMOS": """
        dataset.json {"modality": {"0": "CT"}}
        imagesTr/amos_0001.nii.gz: amos_0001 - CT
        imagesTr/amos_0507.nii.gz: amos_0507 - CT
        labelsTr/amos_0001.nii.gz: outside
        imagesVa/amos_0008.nii.gz: outside
    """,
    "Decathlon, multi-channel": """
        dataset.json {"modality": {"0": "FLAIR", "1": "T1w"}}
        imagesTr/BRATS_001.nii.gz 4D: excluded frames=true
        imagesTr/._BRATS_001.nii.gz: outside
        labelsTr/BRATS_001.nii.gz: outside
    """,
    "nnU-Net without dataset.json": """
        imagesTs/BRATS_001_0000.nii.gz: BRATS_001 - unknown
        imagesTs/BRATS_001_0001.nii.gz: BRATS_001 - unknown
        imagesTs/BRATS_002_0000.nii.gz: BRATS_002 - unknown
        imagesTs/BRATS_002_0001.nii.gz: BRATS_002 - unknown
    """,
    "NSCLC-Radiomics": """
        LUNG1-001/09-18-2008-StudyID-NA-69331/0.000000-NA-82046/*.dcm CT: @LUNG1-001 dicom CT
        LUNG1-001/09-18-2008-StudyID-NA-69331/3.000000-NA-78236/1-1.dcm RTSTRUCT: dicom
        LUNG1-001/09-18-2008-StudyID-NA-69331/300.000000-Segmentation-9.554/1-1.dcm SEG: dicom
        LUNG1-001/09-18-2008-StudyID-NA-69331/400.000000-Nodule-4.1/1-1.dcm SR: dicom
        NSCLC Radiomics Lung1.clinical.csv: .csv
    """,
    "PI-CAI": """
        images/10000/10000_1000000_t2w.mha: 10000 - T2w
        images/10000/10000_1000000_adc.mha: 10000 - ADC
        images/10000/10000_1000000_hbv.mha: 10000 - DWI
        images/10000/10000_1000000_sag.mha: 10000 - unknown
        images/10001/10001_1000001_t2w.mha: 10001 - T2w
        images/10001/10001_1000001_cor.mha: 10001 - unknown
        picai_labels/csPCa_lesion_delineations/human_expert/original/10000_1000000.nii.gz: label
        picai_labels/anatomical_delineations/whole_gland/AI/Bosma22b/10000_1000000.nii.gz: label
    """,
    "CC359": """
        Original/CC0001_philips_15_55_M.nii.gz: CC0001_philips_15_55_M - unknown
        Original/CC0002_philips_15_56_M.nii.gz: CC0002_philips_15_56_M - unknown
        Silver-standard-STAPLE/CC0001_philips_15_55_M_staple.nii.gz: label
        Silver-standard/CC0001_philips_15_55_M_ss.nii.gz: label
    """,
    "RSNA abdominal trauma": """
        train_images/10004/21057/*.dcm CT: @10004 dicom CT
        train_images/10005/18667/*.dcm CT: @10005 dicom CT
        segmentations/21057.nii: label
        train.csv: .csv
        train_dicom_tags.parquet: .parquet
    """,
    "UK Biobank": """
        1000001_20252_2_0/T1/T1.nii.gz: 1000001 2_0 T1w
        1000001_20252_2_0/T1/T1_unbiased.nii.gz: 1000001 2_0 T1w
        1000001_20252_2_0/T1/T1_brain_mask.nii.gz: label
        1000001_20252_2_0/T1/T1_fast/T1_brain_pve_0.nii.gz: label
        1000001_20252_3_0/T1/T1.nii.gz: 1000001 3_0 T1w
        1000002_20253_2_0.zip: .zip
    """,
    "ABCD": """
        dataset_description.json {"Name": "ABCD", "BIDSVersion": "1.8.0"}
        sub-NDARINV01/ses-baselineYear1Arm1/anat/sub-NDARINV01_ses-baselineYear1Arm1_run-01_T1w.nii.gz: \
            sub-NDARINV01 ses-baselineYear1Arm1 T1w
        sub-NDARINV01/ses-baselineYear1Arm1/anat/sub-NDARINV01_ses-baselineYear1Arm1_run-01_T1w.json: .json
        derivatives/x/sub-NDARINV01/anat/sub-NDARINV01_T1w.nii.gz: outside
    """,
    "OASIS-3": """
        OAS30001_MR_d0129/anat2/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz: sub-OAS30001 ses-d0129 T1w
        OAS30001_MR_d0757/anat1/sub-OAS30001_ses-d0757_T2w.nii.gz: sub-OAS30001 ses-d0757 T2w
    """,
    "OASIS-1": """
        disc1/OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr: OAS1_0001 MR1 unknown
        disc1/OAS1_0001_MR1/FSL_SEG/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc_fseg.hdr: label
        disc1/OAS1_0001_MR2/RAW/OAS1_0001_MR2_mpr-1_anon.hdr: OAS1_0001 MR2 unknown
    """,
    "FreeSurfer": """
        bert/mri/orig.mgz: bert - MR
        bert/mri/T1.mgz: bert - T1w
        bert/mri/orig/001.mgz: bert - MR
        bert/mri/aparc.a2009s+aseg.mgz: label
        bert/mri/wm.mgz: label
        ernie/mri/orig.mgz: ernie - MR
        ernie/mri/T1.mgz: ernie - T1w
        ernie/surf/lh.white: counted
    """,
    "CHAOS": """
        Train_Sets/CT/1/DICOM_anon/*.dcm CT: @1 dicom CT
        Train_Sets/CT/1/Ground/liver_GT_000.png: .png
        Train_Sets/MR/2/T1DUAL/DICOM_anon/InPhase/*.dcm MR: @2 dicom MR
        Train_Sets/MR/2/T1DUAL/DICOM_anon/OutPhase/*.dcm MR: @2 dicom MR
        Train_Sets/MR/2/T1DUAL/Ground/IMG-0004-00002.png: .png
    """,
    "3D-IRCADb": """
        3Dircadb1.1/PATIENT_DICOM/*.dcm CT: @liver_1^patient dicom CT
        3Dircadb1.1/MASKS_DICOM/liver/*.dcm CT: label
        3Dircadb1.1/LABELLED_DICOM/*.dcm CT: label
    """,
    "LUNA16": """
        subset0/1.3.6.1.4.1.14519.5.2.1.6279.6001.105756658031515062000744821260.mhd: own - unknown
        subset1/1.3.6.1.4.1.14519.5.2.1.6279.6001.108197895896446896160048741492.mhd: own - unknown
        seg-lungs-LUNA16/1.3.6.1.4.1.14519.5.2.1.6279.6001.105756658031515062000744821260.mhd: label
    """,
    "EMPIRE10": """
        scans/01_Fixed.mhd: scans_01_Fixed - unknown
        scans/02_Fixed.mhd: scans_02_Fixed - unknown
        lungMasks/01_Fixed.mhd: label
    """,
    "AutoPET": """
        PETCT_0011f3deaf/03-23-2003-NA-PET-CT Ganzkoerper-12345/CT.nii.gz: PETCT_0011f3deaf 03-23-2003 CT
        PETCT_0011f3deaf/03-23-2003-NA-PET-CT Ganzkoerper-12345/CTres.nii.gz: PETCT_0011f3deaf 03-23-2003 CT
        PETCT_0011f3deaf/03-23-2003-NA-PET-CT Ganzkoerper-12345/SUV.nii.gz: PETCT_0011f3deaf 03-23-2003 PET
        PETCT_0011f3deaf/03-23-2003-NA-PET-CT Ganzkoerper-12345/SEG.nii.gz: label
        PETCT_0011f3deaf/07-01-2003-NA-PET-CT Ganzkoerper-999/SUV.nii.gz: PETCT_0011f3deaf 07-01-2003 PET
        PETCT_01140d52d8/08-13-2005-NA-PET-CT-56839/SUV.nii.gz: PETCT_01140d52d8 08-13-2005 PET
    """,
    "HECKTOR": """
        imagesTr/CHUM-001__CT.nii.gz: CHUM-001 - CT
        imagesTr/CHUM-001__PT.nii.gz: CHUM-001 - PET
        labelsTr/CHUM-001.nii.gz: label
    """,
    "MRNet and fastMRI": """
        train/axial/0000.npy: .npy
        multicoil_train/file_brain_AXT2_200_2000080.h5: .h5
    """,
    "COVID-19-CT-Seg": """
        COVID-19-CT-Seg_20cases/coronacases_001.nii.gz: own - CT
        COVID-19-CT-Seg_20cases/coronacases_002.nii.gz: own - CT
        Lung_Mask/coronacases_001.nii.gz: label
        Infection_Mask/coronacases_001.nii.gz: label
    """,
    "WMH challenge": """
        Utrecht/0/orig/FLAIR.nii.gz: Utrecht_0 - FLAIR
        Utrecht/0/orig/3DT1.nii.gz: Utrecht_0 - unknown
        Utrecht/0/pre/FLAIR.nii.gz: Utrecht_0 - FLAIR
        Utrecht/0/wmh.nii.gz: label
        Utrecht/1/orig/FLAIR.nii.gz: Utrecht_1 - FLAIR
        Utrecht/1/orig/3DT1.nii.gz: Utrecht_1 - unknown
    """,
    "ISBI MS lesions": """
        training/training01/orig/training01_01_flair.nii.gz: training_training01 - FLAIR
        training/training01/preprocessed/training01_01_flair_pp.nii: training_training01 - FLAIR
        training/training01/masks/training01_01_mask1.nii: label
        training/training02/orig/training02_01_flair.nii.gz: training_training02 - FLAIR
    """,
    "BraTS 2021": """
        BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz: BraTS2021_00000 - T1post
        BraTS2021_00000/BraTS2021_00000_flair.nii.gz: BraTS2021_00000 - FLAIR
        BraTS2021_00000/BraTS2021_00000_seg.nii.gz: label
        BraTS2021_00002/BraTS2021_00002_t1ce.nii.gz: BraTS2021_00002 - T1post
    """,
    "MAMA-MIA": """
        images/DUKE_001/duke_001_0000.nii.gz: DUKE_001 - unknown
        images/DUKE_001/duke_001_0001.nii.gz: DUKE_001 - unknown
        images/DUKE_002/duke_002_0000.nii.gz: DUKE_002 - unknown
        images/DUKE_002/duke_002_0001.nii.gz: DUKE_002 - unknown
        segmentations/expert/duke_001.nii.gz: label
    """,
    "SPIDER": """
        images/1_t1.mha: 1 - T1w
        images/1_t2_SPACE.mha: 1 - T2w
        images/2_t2.mha: 2 - T2w
        masks/1_t1.mha: label
    """,
    "PPMI from LONI": """
        PPMI/3001/MPRAGE_GRAPPA/2011-02-01_14_43_03.0/I222411/PPMI_3001_MR_Br_S98_I222411.nii: 3001 2011-02-01 T1w
        PPMI/3001/MPRAGE_GRAPPA/2012-03-01_10_00_00.0/I222412/PPMI_3001_MR_Br_S99_I222412.nii: 3001 2012-03-01 T1w
    """,
    "datasets side by side": """
        study1/study1_001.nii.gz: own - unknown
        study1/study1_002.nii.gz: own - unknown
        study1/study1_003.nii.gz: own - unknown
        study2/study2_001.nii.gz: own - unknown
        study2/study2_002.nii.gz: own - unknown
        study2/study2_003.nii.gz: own - unknown
    """,
}


def expectations(name: str) -> dict[str, str]:
    """Return what is expected of each file or series of a layout."""
    pairs = (line.split(": ", 1) for line in _lines(name) if " {" not in line)
    return {path: " ".join(value.split()) for path, value in pairs}


def write_layout(root: Path, name: str) -> None:
    """Write the files of a layout."""
    for line in _lines(name):
        path, brace, content = line.partition(" {")
        if brace:
            _write(root / path, ("{" + content).encode())
        else:
            path, _, expected = line.partition(": ")
            _write_file(root, path, expected)


def _lines(name: str) -> list[str]:
    return [line.strip() for line in LAYOUTS[name].splitlines() if line.strip()]


def _write_file(root: Path, path: str, expected: str) -> None:
    name, _, extra = path.partition(".dcm ")
    if extra:
        patient = expected.split()[0].removeprefix("@")
        _write_dicom(root, name + ".dcm", extra, patient)
        return
    name = path.removesuffix(" 4D")
    frames = path != name
    if name.endswith((".nii.gz", ".nii")):
        content = _nifti(frames)
        _write(root / name, gzip.compress(content, 1) if name.endswith(".gz") else content)
    elif name.endswith((".mgz", ".hdr")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = nib.MGHImage if name.endswith(".mgz") else nib.Spm2AnalyzeImage
        nib.save(kind(_voxels().T, np.eye(4)), root / name)
    elif name.endswith((".mha", ".mhd")):
        _write_meta(root / name)
    else:
        _write(root / name, b"something")


def _write_dicom(root: Path, name: str, modality: str, patient: str) -> None:
    if name.endswith("*.dcm"):
        volume = np.random.default_rng(len(name)).integers(0, 999, (4, 6, 6))
        tags = {"PatientID": patient, "Modality": modality, "SeriesDescription": "x"}
        write_series((root / name).parent, volume, **tags)
        return
    data = base(MR, name, Modality=modality, PatientID="other")
    if modality == "SEG":
        data.NumberOfFrames = 4
        put_pixels(data, np.ones((4, 6, 6)))
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    data.save_as(root / name, enforce_file_format=True)


def _write_meta(path: Path) -> None:
    data = "LOCAL" if path.suffix == ".mha" else f"{path.stem}.raw"
    header = f"ObjectType = Image\nNDims = 3\nDimSize = 6 6 6\nElementType = MET_SHORT\nElementDataFile = {data}\n"
    voxels = _voxels().tobytes()
    _write(path, header.encode() + (voxels if path.suffix == ".mha" else b""))
    if path.suffix == ".mhd":
        _write(path.with_suffix(".raw"), voxels)


@cache
def _nifti(frames: bool) -> bytes:
    voxels = np.stack([_voxels()] * 2) if frames else _voxels()
    image = nib.Nifti1Image(voxels.T, np.eye(4))
    return bytes(image.to_bytes())


def _voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 999, (6, 6, 6)).astype(np.int16)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
