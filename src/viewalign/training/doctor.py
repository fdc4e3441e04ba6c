"""Facts about this machine, and common problems among them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from viewalign.data.worker_pool import default_workers
from viewalign.errors import UserError
from viewalign.utils.memory import group_values, memory_bytes
from viewalign.utils.precision import BF16_CAPABILITY, choose_for_cpu, cpu_units


@dataclass(frozen=True)
class Gpu:
    """One GPU that torch sees."""

    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class FolderInfo:
    """A folder: type of its file system, free bytes, whether it can be written, and whether it exists."""

    path: Path
    kind: str
    free: int
    writable: bool
    exists: bool = True


@dataclass(frozen=True)
class MachineInfo:
    """Facts about a machine.

    Attributes:
        torch, cudnn, cuda: versions; cuDNN as a number such as 91002 or None, `cuda` None for a CPU build.
        gpus: that torch detects.
        gpu_devices: whether the operating system has an NVIDIA device.
        visible: CUDA_VISIBLE_DEVICES, None if not set.
        cores: that this process may use.
        quota: cores of the control group, None without a limit.
        threads: of torch in one process.
        memory: bytes that this process may use.
        load: mean number of running processes over the last minute.
        cpu_units: the CPU's units for bfloat16, see `utils.precision.cpu_units`.
        shm: free bytes in /dev/shm, None if there is none.
        open_files: limit of open files per process, None if unknown.
        folders: the requested ones.
    """

    torch: str
    cudnn: int | None
    cuda: str | None
    gpus: tuple[Gpu, ...]
    gpu_devices: bool
    visible: str | None
    cores: int
    quota: float | None
    threads: int
    memory: int
    load: float
    cpu_units: tuple[str, ...]
    shm: int | None
    open_files: int | None
    folders: tuple[FolderInfo, ...]


def inspect_machine(folders: tuple[Path, ...] = ()) -> MachineInfo:
    """Return the facts about this machine and some folders."""
    numbers = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    properties = [torch.cuda.get_device_properties(k) for k in numbers]
    return MachineInfo(
        torch=torch.__version__,
        cudnn=torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        cuda=torch.version.cuda,
        gpus=tuple(Gpu(p.name, p.total_memory, (p.major, p.minor)) for p in properties),
        gpu_devices=any(Path("/dev").glob("nvidia[0-9]*")),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        cores=default_workers(),
        quota=_cpu_quota(),
        threads=torch.get_num_threads(),
        memory=memory_bytes(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        cpu_units=cpu_units(),
        shm=_free(Path("/dev/shm")),
        open_files=_open_files(),
        folders=tuple(inspect_folder(path) for path in folders),
    )


def inspect_folder(path: Path) -> FolderInfo:
    """Return the facts about a folder, or about its nearest parent that exists."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return FolderInfo(path, file_system(folder), _free(folder) or 0, os.access(folder, os.W_OK), path.exists())


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Return the type of a folder's file system, such as ext4 or nfs4; "" if unknown."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    real = folder.resolve()
    best, kind = -1, ""
    for line in lines:
        _, at, type_, *_ = line.split()
        point = Path(at.encode().decode("unicode_escape"))
        if real.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), type_
    return kind


def _free(folder: Path) -> int | None:
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _cpu_quota() -> float | None:
    pairs = [text.split() for text in group_values("cpu.max")]
    return min((int(pair[0]) / int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0].isdecimal()), default=None)


Level = Literal["good", "watch", "bad"]
_GIGABYTE = 1e9
_NETWORK_FILE_SYSTEMS = {
    *("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "fuse.sshfs", "9p", "ceph", "glusterfs"),
}
_MIN_SHM, _MIN_FILES, _MIN_DISK, _MIN_MEMORY = 2e9, 4096, 20e9, 8e9


@dataclass(frozen=True)
class Finding:
    """A fact about the machine, its level, and what to do if it is not good."""

    level: Level
    what: str
    found: str
    remedy: str = ""


def diagnose(facts: MachineInfo) -> list[Finding]:
    """Return all findings, in a fixed order."""
    findings = [_torch(facts), _cudnn(facts), *_gpus(facts), _cpu_precision(facts), _threads(facts), _load(facts)]
    findings += [_memory(facts), _shm(facts), _open_file_limit(facts), *map(_folder, facts.folders)]
    return [finding for finding in findings if finding is not None]


def _torch(facts: MachineInfo) -> Finding:
    parts = facts.torch.split("+")[0].split(".")
    version = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)
    upgrade = "pip install 'torch>=2.10'"
    if version[:2] == (2, 9):
        text = (
            f"{facts.torch}: its 3D convolutions under autocast are up to four times slower, take three times the "
            "memory and can be wrong in bf16 (pytorch #166122, #163539, #166643)"
        )
        return Finding("bad", "torch", text, upgrade)
    if version < (2, 6):
        return Finding("bad", "torch", f"{facts.torch} is too old", upgrade)
    return Finding("good", "torch", facts.torch)


def _cudnn(facts: MachineInfo) -> Finding | None:
    if facts.cudnn is None or not facts.gpus:
        return None
    if 91000 <= facts.cudnn < 91500:
        text = f"{facts.cudnn}: 9.10 to 9.14 have slow and faulty 3D convolutions in 16 bits"
        return Finding("watch", "cuDNN", text, "pip install 'nvidia-cudnn-cu12>=9.15', or a newer torch")
    return Finding("good", "cuDNN", str(facts.cudnn))


def _gpus(facts: MachineInfo) -> list[Finding]:
    if facts.gpus:
        findings = []
        for number, gpu in enumerate(facts.gpus):
            half = "bf16" if gpu.capability >= BF16_CAPABILITY else "fp16 with a gradient scaler (it has no bf16)"
            text = f"{gpu.name}, {gpu.memory / _GIGABYTE:.0f} GB: pretraining computes in {half}"
            findings.append(Finding("good", f"GPU {number}", text))
        return findings
    if facts.gpu_devices:
        why, remedy = _why_undetected(facts)
        return [Finding("bad", "GPU", f"torch does not detect it: {why}", remedy)]
    text = "none: only the xs networks can be trained on a CPU"
    return [Finding("watch", "GPU", text, "See `viewalign estimate`.")]


def require_gpu(facts: MachineInfo) -> None:
    """Check that torch can use a GPU.

    Raises:
        UserError: it cannot, with the reason.
    """
    if facts.gpus:
        return
    if not facts.gpu_devices:
        raise UserError("--gpu: this machine has no NVIDIA GPU. Leave --gpu out, or run it on the machine that trains.")
    why, remedy = _why_undetected(facts)
    raise UserError(f"--gpu: torch does not detect this machine's GPU: {why}. {remedy}")


def _why_undetected(facts: MachineInfo) -> tuple[str, str]:
    """Return why torch does not detect an existing GPU, and the remedy."""
    if facts.visible is not None and facts.visible.strip() in {"", "-1"}:
        return "CUDA_VISIBLE_DEVICES hides it", "unset CUDA_VISIBLE_DEVICES"
    if facts.cuda is None:
        return "torch is a CPU build", "Install torch for CUDA: https://pytorch.org/get-started/locally"
    return "no driver", f"Update the NVIDIA driver; torch was built for CUDA {facts.cuda}. `nvidia-smi` must list it."


def _cpu_precision(facts: MachineInfo) -> Finding:
    choice = choose_for_cpu(facts.cpu_units)
    return Finding("good", "CPU precision", f"{choice.precision} without a GPU ({choice.reason})")


def _usable_cores(facts: MachineInfo) -> float:
    return min(facts.cores, facts.quota) if facts.quota else facts.cores


def _threads(facts: MachineInfo) -> Finding:
    cores = _usable_cores(facts)
    if facts.threads <= cores:
        return Finding("good", "Threads", f"{facts.threads} of {cores:g} cores")
    threads = max(int(cores), 1)
    text = f"torch uses {facts.threads} threads on {cores:g} cores"
    return Finding("watch", "Threads", text, f"runtime.threads={threads}, or OMP_NUM_THREADS={threads}")


def _load(facts: MachineInfo) -> Finding | None:
    cores = _usable_cores(facts)
    if facts.load <= 1.5 * cores:
        return None
    text = f"{facts.load:.1f} processes run on {cores:g} cores"
    return Finding("watch", "Load", text, "Other programs are running; training will take longer.")


def _memory(facts: MachineInfo) -> Finding:
    text = f"{facts.memory / _GIGABYTE:.0f} GB"
    if facts.memory >= _MIN_MEMORY:
        return Finding("good", "Memory", text)
    return Finding("watch", "Memory", f"{text} is little", "prepare with workers=2, train with runtime.workers=1")


def _shm(facts: MachineInfo) -> Finding | None:
    if facts.shm is None:
        return None
    text = f"{facts.shm / _GIGABYTE:.1f} GB free"
    if facts.shm >= _MIN_SHM:
        return Finding("good", "/dev/shm", text)
    return Finding(
        "bad" if facts.shm < 100e6 else "watch",
        "/dev/shm",
        f"{text}: workers pass their samples through it and die with a bus error when it is full",
        "docker run --shm-size=16g (or --ipc=host); without a container: mount -o remount,size=16G /dev/shm; else "
        "runtime.workers=0",
    )


def _open_file_limit(facts: MachineInfo) -> Finding | None:
    limit = facts.open_files
    if limit is None:
        return None
    if limit < 0 or limit >= _MIN_FILES:
        return Finding("good", "Open files", "unlimited" if limit < 0 else f"{limit:,}")
    text = f"a process may open {limit}; many workers need more"
    return Finding("watch", "Open files", text, "ulimit -n 65536 (permanently: /etc/security/limits.conf)")


def _folder(folder: FolderInfo) -> Finding:
    text = f"{folder.kind or 'unknown file system'}, {folder.free / _GIGABYTE:.0f} GB free"
    level: Level = "watch"
    if not folder.writable:
        level, text, remedy = "bad", f"{text}, cannot be written", "Choose another folder, or change its permissions."
    elif folder.path.is_file():
        text, remedy = "is a file", "Name the folder of a store or of runs."
    elif not folder.exists:
        text = f"does not exist; it would be on {text}"
        remedy = "Check the name. A run or a store to be written need not exist yet."
    elif folder.free < _MIN_DISK:
        remedy = "Free some space; `viewalign estimate` reports how much a store needs."
    elif folder.kind in _NETWORK_FILE_SYSTEMS:
        text = f"{text}: every read of a store goes through the network"
        remedy = "Copy the store to a local disk before training: rsync -a STORE /local/disk/"
    else:
        level, remedy = "good", ""
    return Finding(level, str(folder.path), text, remedy)
