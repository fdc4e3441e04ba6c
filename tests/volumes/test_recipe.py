from __future__ import annotations

import pytest
from pydantic import ValidationError

from viewalign.volumes.recipe import PrepareSettings


def test_the_fingerprint_follows_what_changes_voxels() -> None:
    base = PrepareSettings().fingerprint()
    assert PrepareSettings(spacing=(1.0, 1.0, 1.0)).fingerprint() == base
    assert PrepareSettings(fill_nonfinite=True).fingerprint() == base
    others = [PrepareSettings(spacing=None), PrepareSettings(normalise="none"), PrepareSettings(dtype="float16")]
    assert len({base, *(other.fingerprint() for other in others)}) == 4


@pytest.mark.parametrize(
    "wrong", [{"spacing": (0, 1, 1)}, {"spacing": (1, float("nan"), 1)}, {"normalise": "z"}, {"space": 1}]
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        PrepareSettings(**wrong)
