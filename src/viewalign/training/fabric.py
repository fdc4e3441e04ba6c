"""Lightning Fabric, without what it would load beside itself.

On import it asks for the version of torchmetrics by importing it, and that brings transformers, torchvision and
matplotlib along where they are installed: five seconds and more at the start of every process of a run. Only its
detection of spikes needs the answer, which is not used here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let an import of a module fail for a while, unless it has been imported."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _without("torchmetrics"):
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

__all__ = ["DDPStrategy", "Fabric"]
