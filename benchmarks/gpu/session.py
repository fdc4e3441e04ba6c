"""What all parts of the check share: device, size, time left, synthetic stores, and limits that are measured once."""

from __future__ import annotations

import gc
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from viewalign.training.gpu import timing
from viewalign.training.gpu.bench import Bench
from viewalign.training.gpu.synthetic import HEAD, SMALL, synthetic_store
from viewalign.utils.precision import choose

Facts = dict[str, Any]


def check(what: str, value: float, limit: float) -> Facts:
    """Return one comparison of a part with its target: lower is better."""
    return {"what": what, "value": value, "limit": limit}


def rounded(value: float, digits: int = 3) -> float:
    """Return a number with so many significant digits, as the report shows it."""
    return float(f"{value:.{digits}g}")


@dataclass
class Session:
    """One run of the check.

    Attributes:
        device: that is checked.
        tiny: whether small networks stand in for the large ones, so that a CPU can do it.
        budget: seconds for all parts.
        folder: for stores and runs; emptied of each part's runs.
        begun: when it began, by `time.monotonic`.
    """

    device: torch.device
    tiny: bool
    budget: float
    folder: Path
    begun: float = field(default_factory=time.monotonic)
    _rates: dict[str, float] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.budget - (time.monotonic() - self.begun)

    def begin_part(self) -> None:
        """Give memory back and undo the settings of torch that a part may have changed."""
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
        self.free()

    def free(self) -> None:
        """Give the memory of networks that are no longer used back to the GPU."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def new_run(self) -> Path:
        """Return a folder for a run; it does not exist yet."""
        (self.folder / "runs").mkdir(exist_ok=True)
        return self.folder / "runs" / f"{next(self._numbers):03d}"

    @cached_property
    def heads(self) -> Path:
        """A store of six volumes of the size of a head, or of small ones."""
        synthetic_store(self.folder / "heads", 6, SMALL if self.tiny else HEAD)
        return self.folder / "heads"

    @cached_property
    def small(self) -> Path:
        """A store of eight small volumes."""
        synthetic_store(self.folder / "small", 8, SMALL)
        return self.folder / "small"

    @property
    def half(self) -> str:
        """The precision of 16 bits that a run chooses on the device; bf16 on any CPU."""
        return choose(self.device).precision if self.device.type == "cuda" else "bf16"

    @property
    def small_settings(self) -> list[str]:
        """Settings of small runs: their own, and smaller ones for a CPU."""
        return ["views.patch_size=16", "batch=2", "heads.width=16", "runtime.workers=0"] if self.tiny else []

    def bench(self, recipe: str, *settings: str) -> Bench:
        """Build the bench of a large recipe; of its xs network in a tiny check."""
        if self.tiny:
            recipe = recipe.replace("resenc-l", "resenc-xs").replace("primus-m", "primus-xs")
            settings = ("views.patch_size=16", "batch=2", "heads.width=16", *settings)
        self.free()
        return Bench(recipe, list(settings), self.heads, self.new_run(), self.device.type)

    def product_rate(self, precision: str) -> float:
        """Return the measured operations a second of matrix products, which are measured once for each precision."""
        if precision not in self._rates:
            self._rates[precision] = timing.product_rate(self.device, precision)
        return self._rates[precision]


Part = Callable[[Session], Facts]
