"""Facts about this machine, and common problems among them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from viewalign.data.worker_pool import default_workers
from viewalign.errors import UserError
from viewalign.utils.memory import memory_bytes
from viewalign.utils.precision import BF16_CAPABILITY, choose_for_cpu, cpu_units


@dataclass(frozen=True)
class Gpu:
    """One GPU that torch sees."""

    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class FolderInfo:
    """A folder: type of its file system, free bytes, and whether it can be written."""

    path: Path
    kind: str
    free: int
    writable: bool


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
        folders: that were asked for.
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
    return FolderInfo(path, file_system(folder), _free(folder) or 0, os.access(folder, os.W_OK))


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
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


Level = Literal["good", "watch", "bad"]
_GIGABYTE = 1e9
_SHARED = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "fuse.sshfs", "9p", "ceph", "glusterfs"}
_MIN_SHM, _MIN_FILES, _MIN_DISK = 2e9, 4096, 20e9


@dataclass(frozen=True)
class Finding:
    """A fact about the machine, its level, and what to do if it is not good."""

    level: Level
    what: str
    found: str
    remedy: str = ""


def diagnose(facts: MachineInfo) -> list[Finding]:
    """Return all findings, in a fixed order."""
    return [finding for check in _CHECKS for finding in check(facts)]


def _torch(facts: MachineInfo) -> Iterator[Finding]:
    version = _numbers(facts.torch)
    if version[:2] == (2, 9):
        yield Finding(
            "bad",
            "torch",
            f"{facts.torch}: its 3D convolutions under autocast are up to four times slower, take three times the "
            "memory and can be wrong in bf16 (pytorch #166122, #163539, #166643)",
            "pip install 'torch>=2.10'",
        )
    elif version < (2, 6):
        yield Finding("bad", "torch", f"{facts.torch} is too old", "pip install 'torch>=2.10'")
    else:
        yield Finding("good", "torch", facts.torch)


def _cudnn(facts: MachineInfo) -> Iterator[Finding]:
    if facts.cudnn is None or not facts.gpus:
        return
    if 91000 <= facts.cudnn < 91500:
        yield Finding(
            "watch",
            "cuDNN",
            f"{facts.cudnn}: 9.10 to 9.14 have slow and faulty 3D convolutions in 16 bits",
            "pip install 'nvidia-cudnn-cu12>=9.15', or a newer torch",
        )
    else:
        yield Finding("good", "cuDNN", str(facts.cudnn))


def _gpu(facts: MachineInfo) -> Iterator[Finding]:
    if facts.gpus:
        for number, gpu in enumerate(facts.gpus):
            words = f"{gpu.name}, {gpu.memory / _GIGABYTE:.0f} GB"
            half = "bf16" if gpu.capability >= BF16_CAPABILITY else "fp16 with a gradient scaler (it has no bf16)"
            yield Finding("good", f"GPU {number}", f"{words}: pretraining computes in {half}")
    elif facts.gpu_devices:
        why, remedy = _why_undetected(facts)
        yield Finding("bad", "GPU", f"torch does not detect it: {why}", remedy)
    else:
        yield Finding(
            "watch",
            "GPU",
            "none: only the xs networks can be trained on a CPU",
            "See `viewalign estimate`.",
        )


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


def _cpu_precision(facts: MachineInfo) -> Iterator[Finding]:
    choice = choose_for_cpu(facts.cpu_units)
    yield Finding("good", "CPU precision", f"{choice.precision} without a GPU ({choice.reason})")


def _threads(facts: MachineInfo) -> Iterator[Finding]:
    granted = min(facts.cores, facts.quota) if facts.quota else facts.cores
    if facts.threads > granted:
        yield Finding(
            "watch",
            "Threads",
            f"torch uses {facts.threads} threads on {granted:g} cores",
            f"runtime.threads={max(int(granted), 1)}, or OMP_NUM_THREADS={max(int(granted), 1)}",
        )
    else:
        yield Finding("good", "Threads", f"{facts.threads} of {granted:g} cores")
    if facts.load > 1.5 * granted:
        yield Finding(
            "watch",
            "Load",
            f"{facts.load:.1f} processes run on {granted:g} cores",
            "Other programs are running; training will take longer.",
        )


def _memory(facts: MachineInfo) -> Iterator[Finding]:
    words = f"{facts.memory / _GIGABYTE:.0f} GB"
    if facts.memory < 8e9:
        yield Finding("watch", "Memory", f"{words} is little", "prepare with --workers 2, train with runtime.workers=1")
    else:
        yield Finding("good", "Memory", words)


def _shm(facts: MachineInfo) -> Iterator[Finding]:
    if facts.shm is None:
        return
    words = f"{facts.shm / _GIGABYTE:.1f} GB free"
    if facts.shm < _MIN_SHM:
        yield Finding(
            "bad" if facts.shm < 100e6 else "watch",
            "/dev/shm",
            f"{words}: workers pass their samples through it and die with a bus error when it is full",
            "docker run --shm-size=16g (or --ipc=host); without a container: mount -o remount,size=16G /dev/shm; else "
            "runtime.workers=0",
        )
    else:
        yield Finding("good", "/dev/shm", words)


def _check_open_files(facts: MachineInfo) -> Iterator[Finding]:
    if facts.open_files is None:
        return
    if 0 <= facts.open_files < _MIN_FILES:
        yield Finding(
            "watch",
            "Open files",
            f"a process may open {facts.open_files}; many workers need more",
            "ulimit -n 65536 (permanently: /etc/security/limits.conf)",
        )
    else:
        yield Finding("good", "Open files", "unlimited" if facts.open_files < 0 else f"{facts.open_files:,}")


def _folders(facts: MachineInfo) -> Iterator[Finding]:
    for folder in facts.folders:
        yield from _folder(folder)


def _folder(folder: FolderInfo) -> Iterator[Finding]:
    words = f"{folder.kind or 'unknown file system'}, {folder.free / _GIGABYTE:.0f} GB free"
    if not folder.writable:
        yield Finding(
            "bad", str(folder.path), f"{words}, cannot be written", "Choose another folder, or change its permissions."
        )
    elif folder.free < _MIN_DISK:
        yield Finding(
            "watch", str(folder.path), words, "Free some space; `viewalign estimate` reports how much a store needs."
        )
    elif folder.kind in _SHARED:
        yield Finding(
            "watch",
            str(folder.path),
            f"{words}: every read of a store goes through the network",
            "Copy the store to a local disk before training: rsync -a STORE /local/disk/",
        )
    else:
        yield Finding("good", str(folder.path), words)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


_CHECKS: tuple[Callable[[MachineInfo], Iterator[Finding]], ...] = (
    _torch, _cudnn, _gpu, _cpu_precision, _threads, _memory, _shm, _check_open_files, _folders,
)  # fmt: skip
