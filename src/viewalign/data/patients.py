"""Names of DICOM patients that contain no identifier, and which of them are the same person in every source."""

from __future__ import annotations

import hashlib
import re

_NOBODY = re.compile(r"(anon\w*|de-?id\w*|unknown|none|null|removed|patient|0+|x+)?", re.IGNORECASE)
_WORDS = (
    "anon anonym anonymous anonymized anonymised deid de-id deidentified de-identified unknown none null removed "
    "patient"
)


def identifies_nobody(identifier: str) -> bool:
    """Return whether a PatientID, such as `ANONYMOUS`, is one that many people have."""
    return _NOBODY.fullmatch(identifier) is not None


def short_hash(identifier: str) -> str:
    """Return 8 hexadecimal digits, the same wherever an identifier is found."""
    return hashlib.sha256(identifier.encode("utf-8", "replace")).hexdigest()[:8]


def patient_name(identifier: str) -> str:
    """Return the name of the subject with a PatientID."""
    return f"patient-{short_hash(identifier)}"


_SHARED = frozenset(
    patient_name(form)
    for word in ("", *_WORDS.split(), *("0" * n for n in range(1, 17)), *("x" * n for n in range(1, 17)))
    for form in (word, word.upper(), word.capitalize(), word.title())
)
"""Names of the usual identifiers of nobody; a hash does not tell whether it is of another one."""


def patient_of(subject_id: str) -> str | None:
    """Return the patient's name in a `collection__dataset__subject`; None if it is not a patient's or many share it."""
    match = re.search(r"__(patient-[0-9a-f]{8})$", subject_id)
    return match[1] if match and match[1] not in _SHARED else None
