"""What this machine is like, looked up; `diagnosis.py` says what to make of it."""

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
    """A folder that will be read or written: its file system's type, free bytes, and whether it can be written."""

    path: Path
    kind: str
    free: int
    writable: bool


@dataclass(frozen=True)
class MachineInfo:
    """All that is judged.

    Attributes:
        torch, cudnn, cuda: versions; cuDNN as a number such as 91002, None without; `cuda` None for a CPU build.
        gpus: those that torch sees.
        gpu_devices: whether the operating system has an NVIDIA device.
        visible: CUDA_VISIBLE_DEVICES, None where it is not set.
        cores: those this process may use.
        quota: cores that a control group grants, None without a limit.
        threads: of torch in one process.
        memory: bytes this process may use.
        load: mean number of running processes over the last minute.
        cpu_units: the CPU's units for bfloat16, see `arithmetic.cpu_units`.
        shm: free bytes in /dev/shm, None where there is none.
        open_files: how many files a process may have open.
        places: folders asked about.
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
    places: tuple[FolderInfo, ...]


def inspect_machine(places: tuple[Path, ...] = ()) -> MachineInfo:
    """Look at the machine."""
    seen = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    properties = [torch.cuda.get_device_properties(k) for k in seen]
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
        places=tuple(inspect_folder(path) for path in places),
    )


def inspect_folder(path: Path) -> FolderInfo:
    """Look at a folder, or at the nearest one above it that is there."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return FolderInfo(path, file_system(folder), _free(folder) or 0, os.access(folder, os.W_OK))


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Return the type of the file system that a folder is on, such as ext4 or nfs4; "" where it cannot be told."""
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
_LEAST_SHM, _LEAST_FILES, _LEAST_DISK = 2e9, 4096, 20e9


@dataclass(frozen=True)
class Finding:
    """One thing about the machine: what, how it stands, and what to do where it does not stand well."""

    level: Level
    what: str
    found: str
    remedy: str = ""


def diagnose(facts: MachineInfo) -> list[Finding]:
    """Return all findings, in a fixed order."""
    return [finding for judge in _JUDGES for finding in judge(facts)]


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
        why, remedy = _why_unseen(facts)
        yield Finding("bad", "GPU", f"there is one, but torch does not see it: {why}", remedy)
    else:
        yield Finding(
            "watch",
            "GPU",
            "none: the xs networks train on a CPU, the large ones do not",
            "See `viewalign estimate`.",
        )


def refuse_without_gpu(facts: MachineInfo) -> None:
    """See to it that torch can use a GPU.

    Raises:
        UserError: it cannot; the sentence says why.
    """
    if facts.gpus:
        return
    if not facts.gpu_devices:
        raise UserError("--gpu: this machine has no NVIDIA GPU. Leave --gpu out, or run it on the machine that trains.")
    why, remedy = _why_unseen(facts)
    raise UserError(f"--gpu: torch does not see this machine's GPU: {why}. {remedy}")


def _why_unseen(facts: MachineInfo) -> tuple[str, str]:
    """Return why torch does not see a GPU that is there, and the remedy."""
    if facts.visible is not None and facts.visible.strip() in {"", "-1"}:
        return "CUDA_VISIBLE_DEVICES hides it", "unset CUDA_VISIBLE_DEVICES"
    if facts.cuda is None:
        return "torch is a CPU build", "Install torch for CUDA: https://pytorch.org/get-started/locally"
    return "no driver", f"Update the NVIDIA driver; torch was built for CUDA {facts.cuda}. `nvidia-smi` must list it."


def _cpu_precision(facts: MachineInfo) -> Iterator[Finding]:
    choice = choose_for_cpu(facts.cpu_units)
    yield Finding("good", "CPU precision", f"{choice.precision} where no GPU is used ({choice.reason})")


def _threads(facts: MachineInfo) -> Iterator[Finding]:
    granted = min(facts.cores, facts.quota) if facts.quota else facts.cores
    if facts.threads > granted:
        yield Finding(
            "watch",
            "Threads",
            f"torch takes {facts.threads} threads, but {granted:g} cores are granted: they wait for each other",
            f"runtime.threads={max(int(granted), 1)}, or OMP_NUM_THREADS={max(int(granted), 1)}",
        )
    else:
        yield Finding("good", "Threads", f"{facts.threads} of {granted:g} cores")
    if facts.load > 1.5 * granted:
        yield Finding(
            "watch",
            "Load",
            f"{facts.load:.1f} processes want {granted:g} cores",
            "Other work is running; times will be longer.",
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
    if facts.shm < _LEAST_SHM:
        yield Finding(
            "bad" if facts.shm < 100e6 else "watch",
            "/dev/shm",
            f"{words}: workers hand their samples over in it and die with a bus error when it is full",
            "docker run --shm-size=16g (or --ipc=host); without a container: mount -o remount,size=16G /dev/shm; else "
            "runtime.workers=0",
        )
    else:
        yield Finding("good", "/dev/shm", words)


def _check_open_files(facts: MachineInfo) -> Iterator[Finding]:
    if facts.open_files is None:
        return
    if 0 <= facts.open_files < _LEAST_FILES:
        yield Finding(
            "watch",
            "Open files",
            f"a process may open {facts.open_files}; many workers need more",
            "ulimit -n 65536 (for good: /etc/security/limits.conf)",
        )
    else:
        yield Finding("good", "Open files", "unlimited" if facts.open_files < 0 else f"{facts.open_files:,}")


def _places(facts: MachineInfo) -> Iterator[Finding]:
    for place in facts.places:
        yield from _place(place)


def _place(place: FolderInfo) -> Iterator[Finding]:
    words = f"{place.kind or 'unknown file system'}, {place.free / _GIGABYTE:.0f} GB free"
    if not place.writable:
        yield Finding(
            "bad", str(place.path), f"{words}, cannot be written", "Choose another folder, or ask for the right."
        )
    elif place.free < _LEAST_DISK:
        yield Finding("watch", str(place.path), words, "Make room; `viewalign estimate` says how much a store needs.")
    elif place.kind in _SHARED:
        yield Finding(
            "watch",
            str(place.path),
            f"{words}: every read of a store crosses the network (arrays are read, for mapping is slower still)",
            "Copy the store to a local disk before training: rsync -a STORE /local/disk/",
        )
    else:
        yield Finding("good", str(place.path), words)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


_JUDGES: tuple[Callable[[MachineInfo], Iterator[Finding]], ...] = (
    _torch, _cudnn, _gpu, _cpu_precision, _threads, _memory, _shm, _check_open_files, _places,
)  # fmt: skip
