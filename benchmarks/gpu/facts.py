"""The machine: card, versions, what `viewalign doctor` finds, and what the card can do at most."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch
from session import Facts, Session, rounded

from viewalign.training.doctor import diagnose, inspect_machine
from viewalign.training.gpu import timing

PACKAGES = (
    *("torch", "triton", "numpy", "timm", "dynamic-network-architectures", "lightning-fabric", "blosc2", "pydantic"),
    *("SimpleITK", "nnunetv2"),
)


def facts(session: Session) -> Facts:
    """Describe the machine and measure its limits."""
    device = session.device
    out: Facts = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "doctor": [f"{f.level}: {f.what}: {f.found}" for f in diagnose(inspect_machine((session.folder,)))],
        "copy_gb_per_s": rounded(timing.copy_rate(device) / 1e9),
        "product_tflops": {},
    }
    for precision in ("bf16", "fp16", "fp32") if device.type == "cuda" else ("fp32",):
        out["product_tflops"][precision] = rounded(session.product_rate(precision) / 1e12)
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        out["gpu"] = {
            "name": card.name,
            "memory_gb": rounded(card.total_memory / 1e9),
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "driver": _driver(),
        }
        out["upload_gb_per_s"] = rounded(timing.upload_rate(device) / 1e9)
    return out


def _version(name: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""


def _driver() -> str:
    with suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    return ""
