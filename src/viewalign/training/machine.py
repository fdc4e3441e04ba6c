"""What this machine is like, looked up; `diagnosis.py` says what to make of it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from viewalign.arithmetic import cpu_units
from viewalign.volumes.limits import memory_bytes
from viewalign.volumes.pool import default_workers


@dataclass(frozen=True)
class Gpu:
    """One GPU that torch sees."""

    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Place:
    """A folder that will be read or written: its file system's type, free bytes, and whether it can be written."""

    path: Path
    kind: str
    free: int
    writable: bool


@dataclass(frozen=True)
class Facts:
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
    places: tuple[Place, ...]


def look(places: tuple[Path, ...] = ()) -> Facts:
    """Look at the machine."""
    seen = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    properties = [torch.cuda.get_device_properties(k) for k in seen]
    return Facts(
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
        places=tuple(look_at(path) for path in places),
    )


def look_at(path: Path) -> Place:
    """Look at a folder, or at the nearest one above it that is there."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return Place(path, file_system(folder), _free(folder) or 0, os.access(folder, os.W_OK))


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
