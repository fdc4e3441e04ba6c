"""Settings of a pretraining run: one small strict model for each group of keys.

A recipe is a YAML file of these keys (`recipes/`); a command line may override any of them by its dotted name
(`optim.lr=0.001`). Nothing else configures a run. Builders unpack settings into plain arguments; no settings object
is passed into a component.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from viewalign.utils.settings import (
    Betas,
    Count,
    FilePath,
    Fraction,
    FractionRange,
    Names,
    NotNegative,
    Number,
    PartialFraction,
    PathMark,
    PathOrName,
    Positive,
    PositiveRange,
    Settings,
    Triple,
)
from viewalign.views.intensity_config import IntensityConfig


class ViewSettings(Settings):
    """Views: size, position, spatial augmentation."""

    patch_size: Triple = Field((64, 64, 64), description="Size of a view (D, H, W) in voxels.")
    overlap: FractionRange = Field(
        (0.4, 0.8), description="Range of the fraction of a view's volume that the two views of a pair share."
    )
    mirror: bool = Field(True, description="Mirror along each axis with probability 0.5.")
    p_rotation: Fraction = Field(0.2, description="Probability of a rotation.")
    rotation_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = Field(
        30.0, description="Largest angle of a rotation about each axis, in degrees."
    )
    p_scale: Fraction = Field(0.2, description="Probability of scaling.")
    scale: PositiveRange = Field((0.7, 1.4), description="Range of the scale factor.")
    independent: bool = Field(
        False,
        description="Mirror, rotate and scale each view of a pair independently; false: both in the same way.",
    )
    min_foreground: Fraction = Field(
        0.1, description="Smallest fraction of foreground voxels in a view; other views are sampled again."
    )
    redraws: Number = Field(8, description="How often a view with too little foreground is sampled again.")
    photometric: IntensityConfig = IntensityConfig()


class SamplingSettings(Settings):
    """Sampling: which volumes of the store are used, and how often."""

    by: Literal["image", "subject", "dataset"] = Field("image", description="Unit with equal sampling probability.")
    weights: dict[str, NotNegative] = Field(
        {}, description="Factors of these probabilities, by name of dataset, subject or image id; 0 excludes."
    )
    modalities: Names = Field((), description="Use only these modalities (case-insensitive); empty for all.")
    max_quality_score: float | None = Field(
        None, description="Exclude volumes with a higher score (lower is better); volumes without a score are kept."
    )


class MaskSettings(Settings):
    """Masking of the student's views."""

    ratio: PartialFraction = Field(0.75, description="Fraction of a view that is masked.")
    block: Triple = Field(
        (16, 16, 16), description="Size (D, H, W) in voxels of masked blocks for a CNN; Primus drops whole tokens."
    )
    whole: Fraction = Field(
        0.0,
        description="Fraction of views that are not masked and are restored as a whole: an encoder is used on such "
        "images later. A Primus keeps all of their tokens, which takes more time.",
    )


class NetworkSettings(Settings):
    """Network (`network=NAME` is short for `network.name=NAME`)."""

    name: str = Field(
        "resenc-l",
        description="resenc-l, resenc-xs, primus-m or primus-xs; resenc-xxs and primus-xxs are for tests of software.",
    )
    channels: Count = Field(1, description="Channels of the images.")
    drop_path: PartialFraction = Field(0.0, description="Rate of stochastic depth of a Primus.")


class HeadSettings(Settings):
    """Heads: projector (three layers) and predictor (two) of the consistency and contrastive terms."""

    projector: Literal["both", "pooled", "none"] = Field(
        "both",
        description="Features that pass through the heads: dense and pooled (as published), pooled only, or none.",
    )
    width: Count = Field(2048, description="Width of the projector.")
    predictor_width: Count = Field(512, description="Hidden width of the predictor.")
    norm: Literal["auto", "batch", "layer"] = Field(
        "auto",
        description="Norm of the heads; auto: batch norm from 8 pooled vectors per global batch on, else layer norm.",
    )


class ObjectiveSettings(Settings):
    """Objectives: terms of the loss; a term of weight 0 is not computed."""

    reconstruction_weight: NotNegative = Field(5.0, description="Weight of the reconstruction.")
    huber_delta: Positive = Field(1.0, description="Error at which the Huber loss changes from quadratic to linear.")
    reconstruction: Literal["huber", "mse"] = Field(
        "huber", description="Loss of the reconstruction, over valid voxels."
    )
    consistency: Literal["cosine", "nt_xent", "gram"] = Field(
        "cosine", description="Consistency of aligned features: cosine (CVA), dense NT-Xent (C-CVA) or Gram matrices."
    )
    negatives: Literal["pair", "batch"] = Field(
        "pair", description="Negatives of the dense NT-Xent: other cells of the same pair of views, or of the batch."
    )
    consistency_weight: NotNegative = Field(1.0, description="Weight of the consistency.")
    contrastive_weight: NotNegative = Field(0.1, description="Weight of the global NT-Xent between pooled features.")
    temperature: Positive = Field(0.5, description="Temperature of the NT-Xent terms.")
    order: Literal["project_first", "align_first"] = Field(
        "project_first",
        description="Project feature maps before alignment (as published), or only the aligned cells (cheaper).",
    )
    dense: Literal["encoder", "decoder"] = Field("encoder", description="Feature maps that the consistency compares.")
    cells: Triple = Field((7, 7, 7), description="Cells of the lattice over the common region, along (D, H, W).")
    samples: Count = Field(2, description="Sampling points per axis and cell.")


class TeacherSettings(Settings):
    """Teacher: the exponential moving average of the student."""

    momentum: Fraction = Field(0.995, description="Momentum of the average; 0 copies the student.")
    final_momentum: Fraction | None = Field(
        None, description="Momentum at the last step, reached along half a cosine; null: constant."
    )


class OptimSettings(Settings):
    """Optimizer and schedule; one step is one update with a global batch."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="Optimizer; sgd has Nesterov momentum.")
    lr: Positive = Field(0.01, description="Learning rate after the warm-up.")
    weight_decay: NotNegative = Field(3e-5, description="Weight decay.")
    momentum: Fraction = Field(0.99, description="Momentum of sgd.")
    betas: Betas = Field((0.9, 0.98), description="Betas of adamw.")
    clip: Positive | None = Field(12.0, description="Largest norm of the gradient of a step; null: no clipping.")
    warmup_steps: Number = Field(
        0, description="Steps of linear warm-up of the learning rate; an epoch of the paper is 250 steps."
    )
    power: Positive = Field(0.9, description="Exponent of the polynomial decay of the learning rate after the warm-up.")


class RunningProbeSettings(Settings):
    """Probe during pretraining: frozen features on a small labelled task, also at step 0."""

    task: FilePath = Field(description="Folder of the task (task.yaml and its manifest).")
    every: Count = Field(2500, description="Steps between probes.")
    folds: Annotated[int, Field(ge=2)] = Field(5, description="Folds of the cross-validation.")


class ValidateSettings(Settings):
    """Validation on held-out subjects: at least 5 and at most 200; none if there are fewer than 20 subjects."""

    every: Number = Field(500, description="Steps between validations; 0 for none.")
    share: Fraction = Field(0.01, description="Fraction of the subjects that is held out.")
    batches: Count = Field(8, description="Number of batches of a validation.")
    probe: RunningProbeSettings | None = Field(None, description="A linear probe during pretraining.")


class CheckpointSettings(Settings):
    """Checkpoints."""

    every: Count = Field(500, description="Steps between checkpoints.")
    keep_last: Count = Field(2, description="Number of newest checkpoints to keep.")
    keep_every: Number = Field(0, description="Steps between checkpoints that are kept permanently; 0 for none.")


class LogSettings(Settings):
    """Logging and trackers."""

    every: Count = Field(10, description="Steps between rows of log.jsonl and of the trackers.")
    health_every: Count = Field(50, description="Steps between measurements of the features (see docs/health.md).")
    tensorboard: bool = Field(True, description="Write TensorBoard events to the run folder.")
    wandb: bool = Field(False, description="Send rows to Weights & Biases (extra `tracking`).")
    mlflow: bool = Field(False, description="Send rows to MLflow (extra `tracking`).")


class RuntimeSettings(Settings):
    """Machine settings; they do not change the results beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="auto: CUDA if there is a GPU, else the CPU. Apple's GPUs lack float64, which the geometry needs.",
    )
    gpus: Count = Field(1, description="GPUs on each machine, with one process each; on a CPU: number of processes.")
    nodes: Count = Field(1, description="Machines.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = Field(
        "auto", description="Precision of the networks; auto chooses it from the hardware."
    )
    tf32: bool = Field(False, description="Let GPUs round the factors of float32 products to 10 bits of mantissa.")
    workers: Number | Literal["auto"] = Field(
        "auto", description="Number of processes that read volumes; 0 reads in the training process."
    )
    threads: Number = Field(0, description="Number of torch's CPU threads; 0 for torch's default.")
    accumulate: Count = Field(1, description="Compute a process's share of the batch in this many parts: less memory.")
    recompute: bool = Field(False, description="Recompute activations in the backward pass: less memory, more time.")
    compile: bool = Field(False, description="Compile the networks' blocks; takes minutes at the start.")
    deterministic: bool = Field(False, description="Use deterministic GPU kernels only: slower.")
    bad_steps: Count = Field(20, description="Stop after this many non-finite steps in a row.")
    lost_share: Fraction = Field(0.05, description="Stop if a larger fraction of the volumes has become unreadable.")


class InitSettings(Settings):
    """Initial weights (`init=PATH` is short for `init.weights=PATH`)."""

    weights: Annotated[PathOrName, BeforeValidator(lambda value: "" if value is None else value)] = Field(
        "",
        description="A run, an export, a checkpoint of nnssl or nnU-Net, hf:OWNER/NAME, or a name of `viewalign "
        "encoders`; used at the first start only.",
    )
    min_share: Fraction = Field(0.9, description="Smallest fraction of the encoder that the weights must cover.")
    token_order: Literal["auto", "dhw", "hdw"] = Field(
        "auto",
        description="Token order of a Primus if its trainer is unknown: hdw (nnssl's EvaMAE) or dhw (raster order).",
    )


def _as_network(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _as_init(value: object) -> object:
    return {"weights": value or ""} if isinstance(value, str | None) else value


class Recipe(Settings):
    """The run.

    `pretext` contains the settings of a single method: each method's file has a strict model of them
    (`MethodSettings`), against which a recipe is checked. docs/methods.md lists which other groups a method uses.
    """

    method: str = Field("cva", description="The pretraining method, see `viewalign methods`.")
    pretext: dict[str, Any] = Field({}, description="Settings of a single method, see docs/methods.md.")
    network: Annotated[NetworkSettings, BeforeValidator(_as_network)] = NetworkSettings()
    init: Annotated[InitSettings, BeforeValidator(_as_init), PathMark(or_name=True)] = InitSettings()
    data: FilePath = Field("", description="The prepared store.")
    out: FilePath = Field("", description="The run's folder.")
    seed: Number = Field(0, description="Random seed of weights, views, masks and order.")
    geometry: Literal["exact", "latentcampus"] = Field(
        "exact",
        description="latentcampus: views and alignment as in the code released with the paper, for comparison only.",
    )
    steps: Count = Field(62_500, description="Optimizer steps.")
    batch: Count = Field(4, description="Volumes in a global batch, over all processes.")
    views: ViewSettings = ViewSettings()
    sampling: SamplingSettings = SamplingSettings()
    masking: MaskSettings = MaskSettings()
    heads: HeadSettings = HeadSettings()
    objectives: ObjectiveSettings = ObjectiveSettings()
    teacher: TeacherSettings = TeacherSettings()
    optim: OptimSettings = OptimSettings()
    validate_: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    runtime: RuntimeSettings = RuntimeSettings()


def public_settings(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data without local paths and names of subjects, for checkpoints and exports."""
    private: dict[str, Any] = {
        "data": True,
        "out": True,
        "init": {"weights"},
        "validate_": {"probe"},
        "sampling": {"weights"},
    }
    return recipe.model_dump(mode="json", by_alias=True, exclude=private)
