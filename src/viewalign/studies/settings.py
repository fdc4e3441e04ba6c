"""Settings of a study: arms, evaluations, seeds and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from viewalign.config import Recipe
from viewalign.evaluation.settings import CHANNEL_MODES, ChannelMode
from viewalign.utils.settings import (
    Count,
    Counts,
    Names,
    Number,
    PathOrName,
    Positive,
    Positives,
    Settings,
    SettingsOf,
    as_list,
    merged,
)


def digest_of(values: Any) -> str:
    """Return a hash of ten letters of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


MACHINE = {"device", "gpus", "workers"}
"""Settings of a fine-tuning on which its results do not depend, up to rounding."""


def without_machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a fine-tuning that do not belong to the machine."""
    return {key: value for key, value in settings.items() if key not in MACHINE}


Draw = Literal["spread", "seed"]
_DRAW = "spread: evenly over the cases, equal for all seeds; seed: sampled for each seed, equal for all arms."
_SHOTS = (
    "Training cases of each class (in total for a regression), sampled for each seed and equal for all arms; "
    "null for all. Needs test cases."
)
_SETTINGS = "Settings of the fine-tuning, as for `viewalign finetune`; the study sets data, seed and splits."


def _as_seeds(value: object) -> object:
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else as_list(value)


Tuning = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
"""Settings of fine-tunings; null, by which a study leaves out those of its base, is none."""


class SourceSettings(Settings):
    """Unprepared images to pretrain on."""

    folder: str = Field(description="Their folder; `a|b` uses the first that exists.")
    only: Names = Field((), description="Patterns of file names, such as case_0*; empty for all.")
    prepare: dict[str, Any] = Field(default_factory=dict, description="Settings of prepare, such as spacing.")


class LabelledSettings(Settings):
    """Images with label maps, for evaluation: `images` with `labels`, `dataset` or `manifest`."""

    images: str | None = Field(None, description="Folder of images (file names may end in nnU-Net's _0000).")
    labels: str | None = Field(
        None, description="Folder of label maps of the same names; `a|b` uses the first that exists."
    )
    dataset: str | None = Field(None, description="A folder in nnU-Net's raw layout.")
    manifest: str | None = Field(
        None,
        description="A CSV file with case, image, labels and optional split (learn or test); paths relative to it.",
    )
    learn: Names = Field((), description="Patterns of training cases; default: the manifest's column split.")
    test: Names = Field((), description="Patterns of test cases; default: the manifest's column split.")
    patient: str | None = Field(
        None,
        description="Regular expression whose first group is the patient in a case's name, such as '(sub-\\d+)'; "
        "`shots` then counts patients.",
    )
    classes: dict[str, Count] = Field(
        default_factory=dict, description="Names of label values, for segmentation; default: class 1, class 2 …."
    )

    @model_validator(mode="after")
    def _one_way(self) -> LabelledSettings:
        ways = [self.images is not None, self.dataset is not None, self.manifest is not None]
        if sum(ways) != 1 or (self.images is None) != (self.labels is None):
            raise ValueError("data.labelled needs `images` with `labels`, or `dataset`, or `manifest`")
        return self


class DataSettings(Settings):
    """Data of all arms; relative paths are relative to `root`."""

    root: str = Field("", description="Folder of the data.")
    store: str | None = Field(None, description="A prepared store to pretrain on.")
    source: SourceSettings | None = None
    labelled: LabelledSettings | None = None

    @model_validator(mode="after")
    def _one_way(self) -> DataSettings:
        if (self.store is None) == (self.source is None):
            raise ValueError("data needs either `store`, a prepared store, or `source`, images to prepare")
        return self


class ArmSettings(Settings):
    """An arm: one row of the table."""

    recipe: PathOrName = Field(description="A recipe's name or file.")
    settings: Annotated[dict[str, Any], SettingsOf(Recipe)] = Field(
        default_factory=dict, description="Settings of the recipe in this arm; they override `common`."
    )
    start: str | None = Field(None, description="Another arm; pretraining starts from its weights of the same seed.")
    untrained: bool = Field(False, description="Evaluate the network without training.")
    encoder: str | None = Field(
        None, description="A finished run, an export, a checkpoint or a public encoder to evaluate without pretraining."
    )
    once: bool = Field(False, description="Pretrain with the first seed only; the other seeds evaluate the same run.")
    finetune: Tuning = Field(
        default_factory=dict,
        description="Settings of the arm's fine-tunings, such as lr; they override those of the evaluation.",
    )
    title: str = Field("", description="Title in the report; default: the arm's name.")

    @model_validator(mode="after")
    def _plain(self) -> ArmSettings:
        if sum([self.untrained, self.start is not None, self.encoder is not None]) > 1:
            raise ValueError("an arm has only one of `untrained`, `start` and `encoder`")
        return self


class VoxelProbeEvaluation(Settings):
    """Linear probe of frozen voxel features on `data.labelled`: mean Dice."""

    kind: Literal["voxel_probe"]
    shots: Count = Field(10, description="Labelled cases to fit on.")
    draw: Draw = Field("spread", description=_DRAW)
    per_class: Count = Field(400, description="Training voxels per class and case.")
    test_voxels: Count = Field(10_000, description="Voxels of each test case.")


class RetrievalEvaluation(Settings):
    """Retrieval with frozen features: is a position of one view found in another, rotated view of the image?"""

    kind: Literal["retrieval"]
    cells: Count = Field(7, description="Positions along each axis.")


class FeatureProbeEvaluation(Settings):
    """Linear probe or k-NN of one vector per case on a task, on its test cases or by cross-validation."""

    kind: Literal["feature_probe"]
    task: str = Field(description="Folder of task.yaml and its manifest.")
    shots: Count | None = Field(None, description=_SHOTS)
    learner: Literal["linear", "knn"] = Field("linear", description="Logistic regression or ridge, or neighbours.")
    folds: Annotated[int, Field(ge=2)] = Field(5, description="Folds, if no case is marked as test.")
    channels: ChannelMode = Field("stacked", description=CHANNEL_MODES)


class SegmentationEvaluation(Settings):
    """Fine-tuning by nnU-Net on few cases of `data.labelled`: mean Dice and surface Dice of the test cases.

    An untrained arm is trained from scratch on the same plan.
    """

    kind: Literal["segmentation"]
    shots: Count | None = Field(None, description="Labelled cases to train on; null for all.")
    draw: Draw = Field("seed", description=_DRAW)
    settings: dict[str, Any] = Field(default_factory=dict, description=_SETTINGS)
    keep: bool = Field(False, description="Keep networks and predictions.")


class FinetuneEvaluation(Settings):
    """Fine-tuned classification or regression on a task."""

    kind: Literal["finetune"]
    task: str = Field(description="Folder of task.yaml and its manifest.")
    shots: Count | None = Field(None, description=_SHOTS)
    recipe: PathOrName | None = Field(None, description="Recipe of the fine-tuning.")
    settings: dict[str, Any] = Field(default_factory=dict, description=_SETTINGS)
    keep: bool = Field(False, description="Keep the folds' models.")


Evaluation = Annotated[
    VoxelProbeEvaluation | RetrievalEvaluation | FeatureProbeEvaluation | SegmentationEvaluation | FinetuneEvaluation,
    Field(discriminator="kind"),
]


class Study(Settings):
    """The study."""

    name: str = Field("study", description="Name of its folder and report.")
    data: DataSettings
    arms: dict[str, ArmSettings] = Field(min_length=1, description="What is pretrained.")
    evaluations: dict[str, Evaluation] = Field(min_length=1, description="How each arm is evaluated.")
    seeds: Annotated[tuple[Number, ...], BeforeValidator(_as_seeds)] = Field(
        (0, 1, 2), description="Seeds, or their number."
    )
    reference: str | None = Field(
        None, description="The arm that others are compared with; null: the first trained arm."
    )
    common: Annotated[dict[str, Any], SettingsOf(Recipe)] = Field(
        default_factory=dict, description="Settings of every arm's recipe, such as batch."
    )
    segmentation: Tuning = Field(
        default_factory=dict,
        description="Settings of all evaluations of kind segmentation; their own, and those of arms, override them.",
    )
    steps: Count | None = Field(None, description="Steps of every arm; null: the recipe's.")
    precision: Literal["auto", "fp32", "bf16"] = Field("fp32", description="Precision of every arm.")
    threads: Number = Field(0, description="Number of torch's CPU threads; 0 for torch's default.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is a GPU, else the CPU.")

    def chain(self, arm: str) -> list[str]:
        """Return an arm and those that it starts from, the nearest first."""
        start = self.arms[arm].start
        return [arm] if start is None else [arm, *self.chain(start)]

    def pretraining_seed(self, arm: str, seed: int) -> int:
        """Return the seed of the pretraining that is evaluated for an arm and a seed."""
        shared = self.arms[arm].once or self.arms[arm].encoder
        return self.seeds[0] if shared else seed

    def first(self, arm: str, seed: int) -> tuple[str, int]:
        """Return arm and seed of the first pretraining of the chain that is evaluated for an arm and a seed."""
        for name in self.chain(arm):
            arm, seed = name, self.pretraining_seed(name, seed)
        return arm, seed

    def evaluation(self, name: str, arm: str | None = None) -> Evaluation:
        """Return an evaluation, with the settings that the study, and an arm, have for fine-tunings."""
        found = self.evaluations[name]
        if not isinstance(found, SegmentationEvaluation | FinetuneEvaluation):
            return found
        common = self.segmentation if isinstance(found, SegmentationEvaluation) else {}
        own = {} if arm is None else self.arms[arm].finetune
        return found.model_copy(update={"settings": merged(merged(common, found.settings), own)})

    @property
    def against(self) -> str:
        """The arm that others are compared with."""
        trained = [name for name, arm in self.arms.items() if not arm.untrained]
        return self.reference or (trained or list(self.arms))[0]


class ShareSettings(Settings):
    """This call."""

    minutes: Positive | None = Field(None, description="Start no further cell after this number of minutes.")
    shard: Annotated[str, Field(pattern=r"^\d+/\d+$")] = Field(
        "1/1", description="i/n runs the i-th of n parts, for n processes that share the folder."
    )


class StudyOptions(Study, ShareSettings):
    """All settings of `viewalign study`."""


class GainSettings(Settings):
    """What pretraining gains."""

    recipe: PathOrName = Field("cva-plus-resenc-xs", description="Recipe of the pretraining.")
    steps: Count = Field(1000, description="Its steps.")
    pretrain: Annotated[dict[str, Any], SettingsOf(Recipe)] = Field(
        {}, description="Further settings of the recipe, such as pretrain.batch=8."
    )
    encoder: PathOrName | None = Field(
        None, description="A finished run, an export or a checkpoint to evaluate instead of pretraining."
    )
    public: PathOrName | None = Field(
        None, description="A public encoder to compare with: a name of `viewalign encoders`, or hf:OWNER/NAME."
    )
    shots: Counts = Field(
        (10,), description="Numbers of labelled training cases (of each class for a classification), besides all."
    )
    seeds: Count = Field(3, description="Fine-tunings of each encoder, each with other sampled cases.")
    test: Names = Field(
        (), description="Patterns of test cases; default: those of the task, or a fifth of the cases, at least five."
    )
    patient: str | None = Field(
        None,
        description="Regular expression whose first group is the patient in a case's name, such as '(sub-\\d+)', for "
        "segmentation; test cases and shots are then drawn by patient.",
    )
    frozen: bool = Field(True, description="Also evaluate the frozen features with a linear probe.")
    finetune: dict[str, Any] = Field({}, description="Settings of the fine-tuning, such as finetune.epochs=50.")
    rates: Positives = Field(
        (),
        description="Learning rates to try for each encoder, and for training from scratch, on a fifth of the training "
        "cases, with the smallest number of `shots`; the best one is used. Empty: one rate for all, finetune.lr.",
    )
    threads: Number = Field(0, description="Number of torch's CPU threads; 0 for torch's default.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is a GPU, else the CPU.")
    minutes: Positive | None = Field(None, description="Start no further part after this number of minutes.")

    @model_validator(mode="after")
    def _one_choice(self) -> GainSettings:
        if self.rates and "lr" in self.finetune:
            raise ValueError("set either rates, to be tried, or finetune.lr, one rate for all")
        unused = sorted({"recipe", "steps", "pretrain"} & self.model_fields_set)
        if self.encoder is not None and unused:
            raise ValueError(f"with encoder nothing is pretrained, so that {' and '.join(unused)} would have no effect")
        return self


class CompareMethodsSettings(ShareSettings):
    """Comparison of methods."""

    learn: Names = Field(min_length=1, description="Patterns of training cases, such as 'case_0*'.")
    test: Names = Field(min_length=1, description="Patterns of test cases.")
    network: str = Field("resenc-xs", description="The network part of recipe names.")
    methods: Names = Field((), description="Methods, such as mae,cva; empty for all that have a recipe.")
    steps: Count = Field(300, description="Pretraining steps of every method.")
    seeds: Count = Field(3, description="Number of pretrainings of each method.")
    shots: Count = Field(10, description="Number of labelled training cases of the probe.")
    finetune_shots: Literal["none"] | Counts | None = Field(
        None,
        description="Numbers of labelled cases for nnU-Net's fine-tuning; null: as `shots`, if nnunet is installed.",
    )
    finetune: dict[str, Any] = Field({}, description="Settings of the fine-tuning, such as finetune.epochs=50.")
    common: Annotated[dict[str, Any], SettingsOf(Recipe)] = Field(
        {}, description="Settings of every recipe, such as common.batch=8."
    )
    threads: Number = Field(0, description="Number of torch's CPU threads; 0 for torch's default.")
