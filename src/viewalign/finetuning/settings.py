"""Settings of `viewalign predict`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from viewalign.utils.settings import Number, Settings


class PredictSettings(Settings):
    """Prediction."""

    tta: bool = Field(
        False,
        description="Average over mirrored images, if training used them, which takes eight times as long.",
    )
    device: Literal["auto", "cuda", "cpu", "mps"] = Field(
        "auto",
        description="auto: CUDA if there is a GPU, else the CPU (.onnx: always); mps: nnU-Net only.",
    )
    workers: Number | None = Field(
        None,
        description="Number of processes that prepare cases (not for a segmentation). null: one per core, up to 16.",
    )
