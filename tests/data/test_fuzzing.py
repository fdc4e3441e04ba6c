"""A thousand damages of good files: each is read or excluded with a reason; none crashes, hangs or exhausts memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from bad_files import array, save, volume
from damage import attempt, damage
from dicom_files import write_enhanced, write_slice

from viewalign.data.worker_pool import run_jobs

CASES = 1000


def good_files(folder: Path) -> list[Path]:
    folder.mkdir()
    for name in ("a.nii.gz", "a.nii", "a.mha", "a.nrrd"):
        save(folder / name, array())
    for name in ("packed.mha", "packed.nrrd"):
        save(folder / name, array(), compress=True)
    write_enhanced(folder / "enhanced.dcm", volume())
    write_slice(folder / "slice.dcm", volume()[0], (0, 0, 0))
    return sorted(folder.iterdir())


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_damage_crashes_hangs_or_eats_memory(tmp_path: Path) -> None:
    check(tmp_path, CASES)


@pytest.mark.slow
def test_a_few_damages(tmp_path: Path) -> None:
    check(tmp_path, 80)


def check(folder: Path, cases: int) -> None:
    good = good_files(folder / "good")
    damaged = []
    for seed in range(cases):
        source = good[seed % len(good)]
        path = folder / f"{seed}" / source.name
        path.parent.mkdir()
        path.write_bytes(damage(source.read_bytes(), seed))
        damaged.append(path)
    results = list(run_jobs(attempt, damaged, workers=1))
    assert not [path for path, result in results if not isinstance(result, tuple)]
    assert len(results) == cases
    said = Counter(result[0].split(":")[0] for _, result in results)
    assert said["excluded"] > cases / 4
    assert max(result[1] for _, result in results) < 600e6 + 6 * array().nbytes
