"""DICOM files made by code: classic series, one file a slice, and enhanced multi-frame files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR, ENHANCED_MR, REPORT = (
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.88.11",
)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def base(sop_class: str, seed: str, **tags) -> Dataset:
    """Return a data set with what every file needs; UIDs derive from `seed`, a path, and the series is its folder."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=[seed])
    data.PatientID, data.PatientName, data.Modality = "P1", "Doe^Jane", "MR"
    data.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(Path(seed).parent)])
    data.SeriesNumber, data.SeriesDescription = 3, "t2 tse ax"
    for key, value in tags.items():
        setattr(data, key, value)
    return data


def put_pixels(data: Dataset, pixels: np.ndarray) -> None:
    """Put unsigned 16-bit pixels (H, W) or (frames, H, W) in."""
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()


def write_slice(path: Path, pixels: np.ndarray, position, orientation=AXIAL, pixel_size=(0.8, 0.9), **tags) -> Path:
    """Write one slice; `position` is (x, y, z), `pixel_size` is (between rows, between columns)."""
    data = base(MR, str(path), **tags)
    data.ImagePositionPatient, data.ImageOrientationPatient = [float(x) for x in position], list(orientation)
    data.PixelSpacing = list(pixel_size)
    put_pixels(data, pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, volume: np.ndarray, heights=None, prefix="s", **tags) -> list[Path]:
    """Write an axial series, one file a slice, in an order of names that is not that of the places."""
    heights = 2.5 * np.arange(len(volume)) if heights is None else heights
    names = np.random.default_rng(0).permutation(len(volume))
    return [
        write_slice(folder / f"{prefix}{names[k]:03d}.dcm", plane, (-10.0, -20.0, height), **tags)
        for k, (plane, height) in enumerate(zip(volume, heights, strict=True))
    ]


def write_enhanced(path: Path, volume: np.ndarray, heights=None, frame_tags=None, **tags) -> Path:
    """Write one enhanced multi-frame file; `frame_tags(k)` adds to the functional groups of frame k."""
    heights = 2.5 * np.arange(len(volume)) if heights is None else heights
    data = base(ENHANCED_MR, str(path), **tags)
    data.NumberOfFrames = len(volume)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.9], 2.5
    plane.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k, height in enumerate(heights):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-10.0, -20.0, float(height)]
        frame.PlanePositionSequence = Sequence([position])
        if frame_tags:
            frame_tags(k, frame)
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    put_pixels(data, volume)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_report(path: Path) -> Path:
    """Write a structured report: DICOM without an image."""
    data = base(REPORT, str(path), Modality="SR")
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path
