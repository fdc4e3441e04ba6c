from __future__ import annotations

import pytest
from pydantic import ValidationError

from viewalign.data.settings import PrepareSettings, diff_preparation


def test_the_fingerprint_follows_what_changes_voxels() -> None:
    base = PrepareSettings().fingerprint()
    assert PrepareSettings(spacing=(1.0, 1.0, 1.0)).fingerprint() == base
    assert PrepareSettings(fill_nonfinite=True).fingerprint() == base
    others = [PrepareSettings(spacing=None), PrepareSettings(normalise="none"), PrepareSettings(dtype="float16")]
    assert len({base, *(other.fingerprint() for other in others)}) == 4


@pytest.mark.parametrize(
    "wrong", [{"spacing": (0, 1, 1)}, {"spacing": (1, float("nan"), 1)}, {"normalise": "z"}, {"space": 1}]
)
def test_wrong_settings_are_rejected(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        PrepareSettings(**wrong)


def test_what_is_not_in_use_changes_no_fingerprint() -> None:
    assert PrepareSettings(percentiles=(1, 99)).fingerprint() == PrepareSettings().fingerprint()
    some = PrepareSettings(normalise="percentile")
    assert PrepareSettings(normalise="percentile", percentiles=(1, 99)).fingerprint() != some.fingerprint()


def test_differences_are_reported_by_name() -> None:
    told = diff_preparation(PrepareSettings(), PrepareSettings(dtype="int16", spacing=None))
    assert told == 'spacing [1.0, 1.0, 1.0] there, null requested; dtype "float32" there, "int16" requested'


def test_every_setting_that_counts_is_described() -> None:
    words = PrepareSettings(
        interpolation="cubic", normalise="window", window=(-1000, 400), dtype="int16", patch_size=(160, 160, 160)
    ).describe()
    assert words == "1×1×1 mm cubic, normalise window -1000 to 400, int16, blocks for views of 160×160×160"
