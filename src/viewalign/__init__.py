"""Self-supervised pretraining on 3D medical images by Consistent View Alignment, and transfer of what was learnt.

Nothing heavy is imported until it is used: `import viewalign` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from viewalign.api import embed, finetune, predict, prepare, pretrain
    from viewalign.views.alignment import align, roi_align_3d
    from viewalign.views.batch import sample_views
    from viewalign.weights.encoder import load_encoder
    from viewalign.weights.export import export_run
    from viewalign.weights.initial import transfer_encoder

_HOMES = {
    "align": "viewalign.views.alignment",
    "sample_views": "viewalign.views.batch",
    "embed": "viewalign.api",
    "export_run": "viewalign.weights.export",
    "finetune": "viewalign.api",
    "load_encoder": "viewalign.weights.encoder",
    "predict": "viewalign.api",
    "prepare": "viewalign.api",
    "pretrain": "viewalign.api",
    "roi_align_3d": "viewalign.views.alignment",
    "transfer_encoder": "viewalign.weights.initial",
}

__all__ = [
    "__version__",
    "align",
    "embed",
    "export_run",
    "finetune",
    "load_encoder",
    "predict",
    "prepare",
    "pretrain",
    "roi_align_3d",
    "sample_views",
    "transfer_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'viewalign' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
