"""Standardised uptake values (SUV, body weight) of PET, as far as DICOM headers allow it.

SUV = activity concentration (Bq/ml) · body weight (g) / injected dose (Bq). The dose is that of the time to which the
image is decay-corrected: the start of the series (DecayCorrection START) or the injection (ADMIN). See the profile of
FDG-PET/CT of the Quantitative Imaging Biomarkers Alliance.
"""

from __future__ import annotations

import math
import warnings
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom

from viewalign.data.file_types import suffix_of
from viewalign.errors import ExcludedImageError

_TAGS = [
    *("Units", "DecayCorrection", "CorrectedImage", "PatientWeight", "RadiopharmaceuticalInformationSequence"),
    *("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime"),
]
_LONGEST = timedelta(hours=24)


def suv_factor(path: Path, units: str = "") -> float:
    """Return what the voxels of a PET image are multiplied by.

    Args:
        path: a file of the image.
        units: as the catalogue states them.

    Raises:
        ExcludedImageError: the header does not state what is needed.
    """
    if units == "SUV":
        return 1.0
    if suffix_of(path.name) is not None:
        raise ExcludedImageError("suv=true needs the dose and the weight, which only DICOM headers state")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
    if str(header.get("Units", "")) != "BQML":
        raise ExcludedImageError(f"suv=true needs voxels in Bq/ml; its units are {header.get('Units') or 'not stated'}")
    weight = _positive(header, "PatientWeight")
    treatment = (list(header.get("RadiopharmaceuticalInformationSequence") or []) or [pydicom.Dataset()])[0]
    dose = _positive(treatment, "RadionuclideTotalDose")
    correction = str(header.get("DecayCorrection", ""))
    if correction == "START":
        dose *= math.exp2(-_seconds_since_injection(header, treatment) / _positive(treatment, "RadionuclideHalfLife"))
    elif correction != "ADMIN":
        raise ExcludedImageError(f"suv=true needs DecayCorrection START or ADMIN, not {correction or 'none'}")
    return 1000 * weight / dose


def _positive(header: Any, key: str) -> float:
    try:
        value = float(header.get(key) or 0)
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < math.inf:
        raise ExcludedImageError(f"suv=true needs {key}, which its header does not state")
    return value


def _seconds_since_injection(header: Any, treatment: Any) -> float:
    start = _time(header, "Series")
    if start > _time(header, "Acquisition"):
        raise ExcludedImageError("suv=true needs the start of the scan, but its SeriesTime is after its acquisition")
    full = str(treatment.get("RadiopharmaceuticalStartDateTime") or "")
    clock = str(treatment.get("RadiopharmaceuticalStartTime") or "")
    if full:
        injected = _parsed(full[:8], full[8:].partition("+")[0].partition("-")[0], "RadiopharmaceuticalStartDateTime")
    else:
        injected = _parsed(start.strftime("%Y%m%d"), clock, "RadiopharmaceuticalStartTime")
        injected -= timedelta(days=int(injected > start))  # injected before midnight
    if not timedelta(0) <= start - injected < _LONGEST:
        raise ExcludedImageError("suv=true needs the time of injection, which its header puts outside the day before")
    return (start - injected).total_seconds()


def _time(header: Any, event: str) -> datetime:
    date, clock = (str(header.get(f"{event}{part}") or "") for part in ("Date", "Time"))
    return _parsed(date, clock, f"{event}Date and {event}Time")


def _parsed(date: str, clock: str, name: str) -> datetime:
    try:
        return datetime.strptime(date + clock[:6], "%Y%m%d%H%M%S") + timedelta(seconds=float("0" + clock[6:]))
    except ValueError:
        raise ExcludedImageError(f"suv=true needs {name}, which its header does not state") from None
