"""Names for what depends on given values: equal values, equal name."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from viewalign.config import Count, Settings


def digest_of(told: Any) -> str:
    """Return ten letters that tell plain values from any others."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]


Draw = Literal["spread", "seed"]
_Names = Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]


def _as_seeds(value: object) -> object:
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class SourceSettings(Settings):
    """Images to pretrain on that are not prepared yet.

    Attributes:
        folder: where they lie; `a|b` takes the first that is there.
        only: patterns of file names, such as `case_0*`; empty for all.
        prepare: settings of `viewalign prepare`, such as `spacing`.
    """

    folder: str
    only: _Names = ()
    prepare: dict[str, Any] = Field(default_factory=dict)


class LabelledSettings(Settings):
    """Images with label maps, for judging. One of `images` with `labels`, `dataset` or `manifest`.

    Attributes:
        images, labels: folders of files of one name (an image may end in nnU-Net's `_0000`); `a|b` takes the first.
        dataset: a folder in nnU-Net's raw layout.
        manifest: a CSV of case, image, labels and perhaps split (learn or test); paths are relative to it.
        learn, test: patterns of case names; without them the manifest's column `split` tells.
        classes: names of label values, for segmentation; default `class 1`, `class 2` ….
    """

    images: str | None = None
    labels: str | None = None
    dataset: str | None = None
    manifest: str | None = None
    learn: _Names = ()
    test: _Names = ()
    classes: dict[str, Count] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> LabelledSettings:
        ways = [self.images is not None, self.dataset is not None, self.manifest is not None]
        if sum(ways) != 1 or (self.images is None) != (self.labels is None):
            raise ValueError("data.labelled needs `images` with `labels`, or `dataset`, or `manifest`")
        return self


class DataSettings(Settings):
    """What all arms learn from and are judged on. Relative paths are relative to `root`."""

    root: str = ""
    store: str | None = None
    source: SourceSettings | None = None
    labelled: LabelledSettings | None = None

    @model_validator(mode="after")
    def _one_way(self) -> DataSettings:
        if (self.store is None) == (self.source is None):
            raise ValueError("data needs either `store`, a prepared store, or `source`, images to prepare")
        return self


class ArmSettings(Settings):
    """One row of the table.

    Attributes:
        recipe: a recipe's name or file.
        settings: what the arm changes of it; these win over `common`.
        start: another arm, whose pretraining of the same seed it starts from.
        untrained: the same network before any step.
        title: for the page; default the arm's name.
    """

    recipe: str
    settings: dict[str, Any] = Field(default_factory=dict)
    start: str | None = None
    untrained: bool = False
    title: str = ""

    @model_validator(mode="after")
    def _plain(self) -> ArmSettings:
        if self.untrained and self.start:
            raise ValueError("an untrained arm starts from nothing; leave out `start`")
        return self


class VoxelProbeEvaluation(Settings):
    """Linear probe of frozen voxel features on `data.labelled`: mean Dice.

    `draw: spread` takes labelled cases evenly over those to learn from; `seed` draws others for every seed, the same
    for all arms.
    """

    kind: Literal["voxel_probe"]
    shots: Count = 10
    draw: Draw = "spread"
    per_class: Count = 400
    test_voxels: Count = 10_000


class RetrievalEvaluation(Settings):
    """Frozen features: is a place of one view found in another view, turned otherwise, of the same image?"""

    kind: Literal["retrieval"]
    cells: Count = 7


class FeatureProbeEvaluation(Settings):
    """Linear probe or neighbours of one vector a case, on a task (the folder of task.yaml and its manifest).

    Cases marked as test are judged where there are some, else all in folds.
    """

    kind: Literal["feature_probe"]
    task: str
    learner: Literal["linear", "knn"] = "linear"
    folds: Annotated[int, Field(ge=2)] = 5


class SegmentationEvaluation(Settings):
    """Fine-tuning by nnU-Net on a few cases of `data.labelled`: mean Dice and surface Dice of the test cases.

    An arm that is untrained is trained from scratch on the same plan.

    Attributes:
        shots, draw: cases to learn from; see `VoxelJudge`.
        settings: as of `viewalign.finetune("segmentation", ...)`: epochs, iterations, patch, optimizer, lr, precision,
            mirror, device and so on. Dataset, encoder, seed and splits are the study's.
        keep: keep networks and predictions.
    """

    kind: Literal["segmentation"]
    shots: Count | None = None
    draw: Draw = "seed"
    settings: dict[str, Any] = Field(default_factory=dict)
    keep: bool = False


class FinetuneEvaluation(Settings):
    """Fine-tuned classification or regression on a task; `settings` as of `finetune classification`.

    `keep` keeps the folds' models.
    """

    kind: Literal["finetune"]
    task: str
    recipe: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    keep: bool = False


Evaluation = Annotated[
    VoxelProbeEvaluation | RetrievalEvaluation | FeatureProbeEvaluation | SegmentationEvaluation | FinetuneEvaluation,
    Field(discriminator="kind"),
]


class Study(Settings):
    """A whole study.

    Attributes:
        name: its folder's and page's.
        common: settings of every arm's recipe, such as `batch: 8`.
        steps, precision, threads, device: of every arm; they win over `common`.
        reference: the arm that others are compared with; default the first that is trained.
    """

    name: str = "study"
    data: DataSettings
    arms: dict[str, ArmSettings] = Field(min_length=1)
    judges: dict[str, Evaluation] = Field(min_length=1)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_seeds)] = (0, 1, 2)
    reference: str | None = None
    common: dict[str, Any] = Field(default_factory=dict)
    steps: Count | None = None
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    threads: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def chain(self, arm: str) -> list[str]:
        """Return an arm and those that it starts from, the nearest first."""
        start = self.arms[arm].start
        return [arm] if start is None else [arm, *self.chain(start)]

    @property
    def against(self) -> str:
        """The arm that others are compared with."""
        trained = [name for name, arm in self.arms.items() if not arm.untrained]
        return self.reference or (trained or list(self.arms))[0]
