"""Settings of `viewalign embed`, `probe` and `evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from viewalign.utils.settings import (
    Count,
    Counts,
    FilePath,
    Millimetres,
    Names,
    Number,
    PathOrName,
    Settings,
    Triple,
    as_list,
)

Spacing = Annotated[
    Literal["pretraining", "none"] | Millimetres, BeforeValidator(lambda value: "none" if value is None else value)
]
"""As in pretraining, each image's own, or voxel sizes in mm."""


FixedPool = Literal["multistage", "average", "pretrained"]
"""Pooling of feature maps to a vector by a frozen encoder."""
Pool = Literal["multistage", "average", "attention", "pretrained"]
"""Pooling of feature maps to a vector; `attention` is learnt and only available in fine-tuning."""

ChannelMode = Literal["stacked", "separate"]
CHANNEL_MODES = (
    "Images of a case with several channels: stacked into one image, for which the first convolution is repeated; or "
    "encoded separately, with their features one after the other."
)


class FeatureSettings(Settings):
    """Features."""

    patch_size: Triple | None = Field(
        None, description="Field of view (D, H, W) in voxels; null for the views of pretraining."
    )
    spacing: Spacing = Field(
        "pretraining", description="Voxel size in mm along (D, H, W); `pretraining`, or `none` for each image's own."
    )
    pool: FixedPool = Field(
        "multistage",
        description="Pooling of feature maps: averages of all stages, of the last stage, or the pooling of the "
        "pretraining (runs only).",
    )


class CaseSettings(FeatureSettings):
    """Cases."""

    channels: ChannelMode = Field("stacked", description=CHANNEL_MODES)
    cache: FilePath | None = Field(None, description="Folder that stores prepared cases for reuse.")
    workers: Number | None = Field(
        None,
        description="Number of processes that prepare cases; 0 uses this process, unprotected against files that crash "
        "a reader. null: one per core, up to 16, and 0 for 16 cases or fewer.",
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: CUDA if there is a GPU, else the CPU.")


class EmbedSettings(CaseSettings):
    """What is written."""

    maps: bool = Field(False, description="Also store the coarsest feature map (C, d, h, w) of each case.")


class ProbeSettings(CaseSettings):
    """Evaluation."""

    names: Names = Field((), description="Names of the encoders in tables; empty: their file names.")
    learners: Annotated[tuple[Literal["linear", "knn", "sgd"], ...], BeforeValidator(as_list), Field(min_length=1)] = (
        Field(
            ("linear", "knn"),
            description="linear (logistic regression or ridge), knn (nearest neighbours by cosine) and sgd (heads with "
            "13 learning rates on features as they are, as in FOMO26).",
        )
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        5, description="Folds of the cross-validation by subject, if the manifest has no test cases or folds."
    )
    shots: Counts = Field((), description="Few-shot curve: training cases per class, or in total for a regression.")
    repeats: Count = Field(10, description="Number of samples for each number of shots.")
    draws: Annotated[int, Field(ge=100)] = Field(1000, description="Bootstrap samples of subjects for 95 % intervals.")
    seed: Number = Field(0, description="Random seed of folds, sampling and the untrained network.")


class EvaluateSettings(Settings):
    """Evaluation of segmentations."""

    tolerance: str = Field(
        "1",
        description="Tolerance of the surface distance in mm: for all classes, or by class such as tumour=2,oedema=1.",
    )
    dataset_json: FilePath | None = Field(
        None, description="dataset.json with the names of classes and regions; null: searched beside both folders."
    )
    ignore: int | None = Field(None, description="Label of reference voxels to exclude; null: from dataset_json.")
    empty: Literal["skip", "one", "fomo26"] = Field(
        "skip",
        description="Score of a class in neither map: excluded from means, or counted as 1. fomo26: a single class "
        "counts as Dice 1 and NSD 0; of several, those that the reference lacks are excluded.",
    )
    cases: PathOrName | None = Field(
        None, description="Evaluate only these cases: patterns such as 'heart_2*,heart_30', or a file of names."
    )
    workers: Count = Field(1, description="Number of processes that evaluate cases.")
