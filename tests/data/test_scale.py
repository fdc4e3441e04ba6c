"""Any number of workers, parts and interruptions results in the same bytes of the store."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from viewalign.data.catalogue import Record
from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.settings import Limits, PrepareSettings, voxels_that_fit, worker_bytes
from viewalign.data.shards import Shard, leave_part, missing_parts, work_digest
from viewalign.data.store import Store
from viewalign.data.worker_pool import dask_cluster
from viewalign.errors import UserError
from viewalign.utils.locks import lock_folder

pytestmark = pytest.mark.slow

SETTINGS = PrepareSettings(spacing=(0.8, 0.8, 0.8), interpolation="cubic", dtype="int16")


def contents(store: Path) -> dict[str, str]:
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "report.html"  # which the verb adds
    }


@pytest.fixture
def scans(tmp_path: Path, write_image, make_head) -> Path:
    for n in range(7):
        write_image(tmp_path / "scans" / f"scan{n}.nii.gz", make_head(n), direction=np.diag([-1.0, -1.0, 1.0]))
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no image")
    return tmp_path / "scans"


@pytest.fixture
def found(scans: Path):
    return index_sources([str(scans)])


@pytest.fixture
def records(found) -> list[Record]:
    return list(found.collection.records())


@pytest.fixture
def expected(tmp_path: Path, found, records: list[Record]) -> dict[str, str]:
    prepare_records(records, tmp_path / "whole", SETTINGS, 1, found.excluded)
    return contents(tmp_path / "whole")


def test_parts_leave_the_same_store_as_a_whole_run(tmp_path: Path, found, records, expected) -> None:
    for number in (2, 3, 1):
        report = prepare_records(records, tmp_path / "s", SETTINGS, 0, found.excluded, shard=Shard(number, 3))
        assert report.missing_parts == {2: [1, 3], 3: [1], 1: []}[number]
        if report.missing_parts:
            with pytest.raises(UserError, match="finished"):
                Store.open(tmp_path / "s")
    assert (report.prepared, len(report.excluded)) == (7, 1)
    assert contents(tmp_path / "s") == expected


def test_parts_at_the_same_time(tmp_path: Path, found, records, expected) -> None:
    def go(number: int) -> None:
        prepare_records(records, tmp_path / "s", SETTINGS, 0, found.excluded, shard=Shard(number, 4))

    threads = [threading.Thread(target=go, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path / "s") == expected


def test_a_whole_run_completes_parts_that_never_ended(tmp_path: Path, found, records, expected) -> None:
    prepare_records(records, tmp_path / "s", SETTINGS, 0, found.excluded, shard=Shard(2, 3))
    report = prepare_records(records, tmp_path / "s", SETTINGS, 0, found.excluded)
    assert (report.made, report.skipped) == (5, 2)
    assert contents(tmp_path / "s") == expected


def test_a_part_of_another_catalogue_is_not_counted(tmp_path: Path, found, records, expected) -> None:
    prepare_records(records[:3], tmp_path / "s", SETTINGS, 0, found.excluded, shard=Shard(2, 2))
    report = prepare_records(records, tmp_path / "s", SETTINGS, 0, found.excluded, shard=Shard(1, 2))
    assert report.missing_parts == [2]
    report = prepare_records(records, tmp_path / "s", SETTINGS, 0, found.excluded, shard=Shard(2, 2))
    assert (report.missing_parts, report.prepared) == ([], 7)
    assert contents(tmp_path / "s") == expected


@pytest.mark.parametrize("record", ["[]", "{", '{"work": "other", "excluded": []}'])
def test_the_record_of_a_part_of_an_earlier_version_is_not_counted(tmp_path: Path, records, record: str) -> None:
    (tmp_path / "s" / "parts").mkdir(parents=True)
    (tmp_path / "s" / "parts" / "2-of-2.json").write_text(record)
    work = work_digest((each.image_id for each in records), SETTINGS)
    leave_part(tmp_path / "s", Shard(1, 2), work, [])
    assert missing_parts(tmp_path / "s", 2, work) == [2]


def test_two_images_of_one_id_in_different_parts(tmp_path: Path, records) -> None:
    twice = [*records, records[0]]
    whole = prepare_records(twice, tmp_path / "whole", SETTINGS, 0)
    for number in (1, 2):
        report = prepare_records(twice, tmp_path / "s", SETTINGS, 0, shard=Shard(number, 2))
    assert report.excluded == whole.excluded
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.long
def test_a_dask_cluster_makes_the_same_store(tmp_path: Path, found, records, expected) -> None:
    distributed = pytest.importorskip("distributed")
    # Workers are daemons here, as Dask has them by default: they may start no `multiprocessing` children.
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as local,
        dask_cluster(local.scheduler_address, tmp_path / "s") as cluster,
    ):
        assert (cluster.workers, cluster.threads()) == (2, 2)
        report = prepare_records(
            records, tmp_path / "s", SETTINGS, cluster.threads, found.excluded, executor=cluster.executor
        )
    assert (report.made, report.missing_parts) == (7, [])
    assert contents(tmp_path / "s") == expected


def test_no_scheduler_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("viewalign.data.worker_pool._SECONDS_TO_CONNECT", 1)
    with (
        pytest.raises(UserError, match=r"tcp://127\.0\.0\.1:9"),
        dask_cluster("tcp://127.0.0.1:9", tmp_path / "s"),
    ):
        pass


def test_parts_share_a_store_and_a_whole_run_holds_it_alone(tmp_path: Path, records, monkeypatch) -> None:
    monkeypatch.setattr("viewalign.utils.locks._PATIENCE", 0.0)
    prepare_records(records[:1], tmp_path / "s", SETTINGS, 0)
    with lock_folder(tmp_path / "s", "2-of-2"):
        prepare_records(records, tmp_path / "s", SETTINGS, 0, shard=Shard(1, 2))
        for shard in (None, Shard(2, 2)):
            with pytest.raises(UserError, match=rf"process {os.getpid()}\b.*shard="):
                prepare_records(records, tmp_path / "s", SETTINGS, 0, shard=shard)
    with lock_folder(tmp_path / "s"), pytest.raises(UserError, match=f"process {os.getpid()}"):
        prepare_records(records, tmp_path / "s", SETTINGS, 0, shard=Shard(1, 2))


def test_a_huge_image_is_excluded_by_its_header(tmp_path: Path, records) -> None:
    limits = Limits(max_voxels=24 * 28 * 20 - 1)
    report = prepare_records(records, tmp_path / "s", SETTINGS, 0, limits=limits)
    assert report.prepared == 0
    assert {exclusion.reason for exclusion in report.excluded} == {
        "its header claims 24×28×20 = 13,440 voxels; the limit is 13,439"
    }
    report = prepare_records(records, tmp_path / "s", SETTINGS, 0, limits=Limits(max_voxels=13_440))
    assert "after resampling; the limit is 13,440" in report.excluded[0].reason


def test_a_hanging_file_is_excluded_and_named(tmp_path: Path, records, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = tmp_path / "sitecustomize.py"  # makes reading one file hang, in every new process
    hang.write_text(
        "import os, time\nimport builtins\n"
        "real = os.stat\n"
        "def stat(path, *a, **k):\n"
        "    if 'scan3' in str(path) and os.environ.get('HANG') == 'child':\n        time.sleep(1000)\n"
        "    return real(path, *a, **k)\n"
        "os.stat = stat\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("HANG", "child")
    report = prepare_records(records, tmp_path / "s", SETTINGS, 2, limits=Limits(seconds=10.0))
    assert report.prepared == 6
    assert [(Path(each.file).name, each.reason) for each in report.excluded] == [
        ("scan3.nii.gz", "it took longer than the time limit of 10 s")
    ]


def test_the_limit_follows_the_memory() -> None:
    assert voxels_that_fit(1 << 50) == 2**31
    assert worker_bytes(voxels_that_fit(16 << 30)) <= 16 << 30
    assert voxels_that_fit(16 << 30) > 600_000_000
    assert voxels_that_fit(1000) == 1


def command(scans: Path, store: Path, *more: str) -> list[str]:
    options = ["spacing=0.8", "interpolation=cubic", "dtype=int16", "workers=2"]
    return [sys.executable, "-m", "viewalign", "prepare", str(scans), "-o", str(store), *options, *more]


def start(scans: Path, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(scans, store), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_an_image(store: Path, process: subprocess.Popen[str]) -> None:
    """Wait for a complete image; files that are being written have hidden names, which a pattern matches too."""
    while process.poll() is None and not any(p.name[0] != "." for p in store.glob("volumes/*/*/*/*.json")):
        time.sleep(0.01)


def test_sigterm_ends_in_order(tmp_path: Path, scans: Path, expected) -> None:
    process = start(scans, tmp_path / "s")
    wait_for_an_image(tmp_path / "s", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "run the same command again" in output
    done = json.loads((tmp_path / "s" / "report.json").read_text())["prepared"]
    assert 0 < done < 7
    again = subprocess.run(command(scans, tmp_path / "s"), capture_output=True, text=True, check=False)
    assert again.returncode == 3, again.stderr
    assert contents(tmp_path / "s") == expected


@pytest.mark.long
def test_killed_ten_times_at_random_the_next_run_finishes_the_same(tmp_path: Path, scans: Path, expected) -> None:
    rng = random.Random(0)
    for attempt in range(10):
        store = tmp_path / f"s{attempt}"
        kills = 0
        for _ in range(3):
            process = start(scans, store)
            if rng.random() < 0.7:
                wait_for_an_image(store, process)
                time.sleep(rng.uniform(0.0, 0.4))
            else:
                time.sleep(rng.uniform(0.1, 4.0))
            kills += process.poll() is None
            process.kill()
            process.communicate()
        assert kills >= 1
        last = subprocess.run(command(scans, store), capture_output=True, text=True, check=False)
        assert last.returncode == 3, last.stderr
        assert contents(store) == expected


@pytest.mark.long
def test_a_worker_keeps_within_its_memory(tmp_path: Path, write_image) -> None:
    """Peak of a worker ≤ 600 MB + 6 × the bytes of the image as float32, the larger of before and after (design §8)."""
    shape = (220, 256, 256)
    array = np.random.default_rng(0).normal(1000, 100, shape).astype(np.float32)
    path = write_image(tmp_path / "big.nii", array, direction=np.diag([-1.0, -1.0, 1.0]))
    probe = (
        "import sys\nfrom pathlib import Path\nfrom viewalign.data.worker import work, Job\n"
        "from viewalign.data.settings import PrepareSettings\nfrom viewalign.data.catalogue import Record\n"
        f"record = Record('c', 'd', 's', 'e', 'big', Path({str(path)!r}), 'T1w')\n"
        f"settings = PrepareSettings(spacing=(0.8, 0.9, 1.2), interpolation=sys.argv[1], dtype=sys.argv[2])\n"
        f"print(work(Job(Path({str(tmp_path)!r}) / sys.argv[1], record, settings)))\n"
        "print(1024 * int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))\n"  # not its parent's
    )
    for how, dtype in (("linear", "float32"), ("cubic", "int16")):
        out = subprocess.run([sys.executable, "-c", probe, how, dtype], capture_output=True, text=True, check=True)
        outcome, peak = out.stdout.strip().splitlines()
        assert outcome == "ImageOutcome(entries=1, reason=None, kept=0, fatal=None)"
        assert int(peak) < 600e6 + 6 * array.nbytes
