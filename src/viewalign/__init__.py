"""Self-supervised pretraining on 3D medical images by Consistent View Alignment, and transfer to labelled tasks.

Nothing heavy is imported until it is used: `import viewalign` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from viewalign import losses
    from viewalign.api.data import estimate, index, prepare
    from viewalign.api.evaluation import compare, embed, evaluate, probe
    from viewalign.api.exporting import export
    from viewalign.api.finetuning import finetune, predict
    from viewalign.api.pretraining import list_methods, list_recipes, pretrain, report
    from viewalign.api.studies import compare_methods, gain, study
    from viewalign.utils.progress import show_progress
    from viewalign.views.alignment import align, roi_align_3d
    from viewalign.views.batch import sample_views
    from viewalign.weights.encoder import load_encoder
    from viewalign.weights.export import export_run
    from viewalign.weights.initial import transfer_encoder
    from viewalign.weights.published import list_encoders
    from viewalign.weights.verification import verify

_HOMES = {
    "align": "viewalign.views.alignment",
    "compare": "viewalign.api.evaluation",
    "compare_methods": "viewalign.api.studies",
    "embed": "viewalign.api.evaluation",
    "estimate": "viewalign.api.data",
    "evaluate": "viewalign.api.evaluation",
    "export": "viewalign.api.exporting",
    "export_run": "viewalign.weights.export",
    "finetune": "viewalign.api.finetuning",
    "gain": "viewalign.api.studies",
    "index": "viewalign.api.data",
    "list_encoders": "viewalign.weights.published",
    "list_methods": "viewalign.api.pretraining",
    "list_recipes": "viewalign.api.pretraining",
    "load_encoder": "viewalign.weights.encoder",
    "predict": "viewalign.api.finetuning",
    "prepare": "viewalign.api.data",
    "pretrain": "viewalign.api.pretraining",
    "probe": "viewalign.api.evaluation",
    "report": "viewalign.api.pretraining",
    "roi_align_3d": "viewalign.views.alignment",
    "sample_views": "viewalign.views.batch",
    "show_progress": "viewalign.utils.progress",
    "study": "viewalign.api.studies",
    "transfer_encoder": "viewalign.weights.initial",
    "verify": "viewalign.weights.verification",
}

__all__ = [
    "__version__",
    "align",
    "compare",
    "compare_methods",
    "embed",
    "estimate",
    "evaluate",
    "export",
    "export_run",
    "finetune",
    "gain",
    "index",
    "list_encoders",
    "list_methods",
    "list_recipes",
    "load_encoder",
    "losses",
    "predict",
    "prepare",
    "pretrain",
    "probe",
    "report",
    "roi_align_3d",
    "sample_views",
    "show_progress",
    "study",
    "transfer_encoder",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("viewalign.losses")
    if name not in _HOMES:
        raise AttributeError(f"module 'viewalign' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
