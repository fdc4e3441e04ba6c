"""Findings on hypothetical machines and on this one."""

from dataclasses import replace
from pathlib import Path

import pytest

from viewalign.errors import UserError
from viewalign.training.doctor import (
    FolderInfo,
    Gpu,
    MachineInfo,
    diagnose,
    file_system,
    inspect_folder,
    inspect_machine,
    require_gpu,
)

HEALTHY = MachineInfo(
    torch="2.14.1+cu130",
    cudnn=91600,
    cuda="13.0",
    gpus=(Gpu("H100", 80 * 10**9, (9, 0)),),
    gpu_devices=True,
    visible=None,
    cores=16,
    quota=None,
    threads=16,
    memory=128 * 10**9,
    load=1.0,
    cpu_units=("AMX-BF16",),
    shm=64 * 10**9,
    open_files=65536,
    folders=(FolderInfo(Path("/data"), "ext4", 10**12, True),),
)


def findings(**changes):
    return [f for f in diagnose(replace(HEALTHY, **changes)) if f.level != "good"]


def test_a_healthy_machine_has_only_good_findings():
    assert findings() == []
    assert [f.what for f in diagnose(HEALTHY)][:4] == ["torch", "cuDNN", "GPU 0", "CPU precision"]


@pytest.mark.parametrize(
    ("changes", "level", "text", "remedy"),
    [
        ({"torch": "2.9.1"}, "bad", "3D convolutions under autocast", "torch>=2.10"),
        ({"torch": "2.4.0"}, "bad", "too old", "torch>=2.10"),
        ({"cudnn": 91002}, "watch", "slow and faulty", "nvidia-cudnn-cu12>=9.15"),
        ({"gpus": (), "visible": ""}, "bad", "CUDA_VISIBLE_DEVICES hides it", "unset"),
        ({"gpus": (), "cuda": None}, "bad", "CPU build", "pytorch.org"),
        ({"gpus": ()}, "bad", "no driver", "CUDA 13.0"),
        ({"gpus": (), "gpu_devices": False}, "watch", "none", "viewalign estimate"),
        ({"quota": 4.0}, "watch", "16 threads on 4 cores", "runtime.threads=4"),
        ({"load": 40.0}, "watch", "40.0 processes", "Other programs"),
        ({"memory": 4 * 10**9}, "watch", "4 GB is little", "workers=2"),
        ({"shm": 64 * 2**20}, "bad", "bus error", "--shm-size=16g"),
        ({"shm": 10**9}, "watch", "1.0 GB free", "--shm-size=16g"),
        ({"open_files": 1024}, "watch", "may open 1024", "ulimit -n"),
        ({"folders": (FolderInfo(Path("/n"), "nfs4", 10**12, True),)}, "watch", "network", "rsync"),
        ({"folders": (FolderInfo(Path("/f"), "ext4", 10**9, True),)}, "watch", "1 GB free", "Free some space"),
        ({"folders": (FolderInfo(Path("/r"), "ext4", 10**12, False),)}, "bad", "cannot be written", "another folder"),
    ],
)
def test_each_problem_has_a_remedy(changes, level, text, remedy):
    (finding,) = findings(**changes)
    assert finding.level == level
    assert text in finding.found
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("name", "least"), [("memory", 8 * 10**9), ("shm", 2 * 10**9), ("open_files", 4096), ("free", 20 * 10**9)]
)
def test_what_is_least_suffices_and_one_less_does_not(name, least):
    def having(value):
        given = (FolderInfo(Path("/f"), "ext4", value, True),) if name == "free" else value
        return findings(**{"folders" if name == "free" else name: given})

    assert having(least) == []
    assert [finding.level for finding in having(least - 1)] == ["watch"]


@pytest.mark.parametrize(
    ("capability", "text"),
    [((7, 0), "fp16 with a gradient scaler"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_precision_of_a_gpu(capability, text):
    found = diagnose(replace(HEALTHY, gpus=(Gpu("Some GPU", 16 * 10**9, capability),)))
    assert f"computes in {text}" in next(f.found for f in found if f.what == "GPU 0")


@pytest.mark.parametrize(("units", "text"), [((), "fp32"), (("AMX-BF16",), "bf16"), (("AVX512-BF16",), "bf16")])
def test_precision_of_a_cpu(units, text):
    found = next(f.found for f in diagnose(replace(HEALTHY, cpu_units=units)) if f.what == "CPU precision")
    assert found.startswith(f"{text} without a GPU")


def test_unlimited_files_and_a_cpu_build_are_good():
    assert findings(open_files=-1) == []
    assert [f.what for f in findings(gpus=(), gpu_devices=False, cuda=None, cudnn=None)] == ["GPU"]


def test_the_gpu_check_needs_a_gpu():
    require_gpu(HEALTHY)
    with pytest.raises(UserError, match="NVIDIA"):
        require_gpu(replace(HEALTHY, gpus=(), gpu_devices=False))
    with pytest.raises(UserError, match="CPU build"):
        require_gpu(replace(HEALTHY, gpus=(), cuda=None))


def test_facts_about_this_machine(tmp_path):
    facts = inspect_machine((tmp_path,))
    assert facts.cores >= 1
    assert facts.memory > 10**8
    assert facts.folders[0].writable
    assert diagnose(facts)


def test_a_missing_folder_has_the_facts_of_its_parent(tmp_path):
    place = inspect_folder(tmp_path / "not" / "yet")
    assert place.free > 0
    assert place.kind == inspect_folder(tmp_path).kind


def test_a_folder_that_does_not_exist_is_something_to_watch(tmp_path):
    (finding,) = findings(folders=(inspect_folder(tmp_path / "misspelt"),))
    assert (finding.level, finding.remedy.split(".")[0]) == ("watch", "Check the name")
    assert "does not exist" in finding.found


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "catalogue.json").touch()
    (finding,) = findings(folders=(inspect_folder(tmp_path / "catalogue.json"),))
    assert (finding.level, finding.found) == ("watch", "is a file")


def test_file_system_of_the_deepest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"root / ext4 rw 0 0\nserver:/x {tmp_path}/with\\040blank nfs4 rw 0 0\nother {tmp_path}/w xfs rw 0 0\n"
    )
    (tmp_path / "with blank" / "store").mkdir(parents=True)
    assert file_system(tmp_path / "with blank" / "store", mounts) == "nfs4"
    assert file_system(tmp_path, mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "none") == ""
