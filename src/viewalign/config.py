"""Settings of a pretraining run: one small strict model per room.

A recipe is a YAML file of these keys (`recipes/`); a command line may override any of them by its dotted name
(`optim.lr=0.001`). Nothing else configures a run. Builders unpack settings into plain arguments; a settings object
never travels into a component.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


def _as_triple(value: object) -> object:
    if isinstance(value, int | float):
        return (value, value, value)
    if isinstance(value, list | tuple) and len(value) != 3:
        raise ValueError(f"needs one number or three in the order (D, H, W), not {list(value)}")
    return tuple(value) if isinstance(value, list) else value


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Triple = Annotated[tuple[Count, Count, Count], BeforeValidator(_as_triple)]
"""Three voxel counts in array order (D, H, W); a single number stands for a cube."""
Millimetres = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(_as_triple)]
"""Three voxel sizes in mm in array order (D, H, W); a single number stands for all."""
Range = Annotated[tuple[float, float], BeforeValidator(_as_tuple)]
"""Lower and upper end of a uniform draw."""


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class PhotometricSettings(Settings):
    """Changes of intensity, drawn per view. Each has a probability `p_*`; ranges are uniform draws.

    Brightness, contrast and gamma come before the reconstruction target is taken; low resolution, blur and noise after.
    """

    p_brightness: Fraction = 0.15
    brightness: Range = (0.75, 1.25)
    p_contrast: Fraction = 0.15
    contrast: Range = (0.75, 1.25)
    p_gamma: Fraction = 0.3
    p_gamma_inverted: Fraction = 0.1
    gamma: Range = (0.7, 1.5)
    p_low_resolution: Fraction = 0.1
    low_resolution: Range = (0.5, 1.0)
    p_blur: Fraction = 0.2
    blur_sigma: Range = (0.5, 1.0)
    p_noise: Fraction = 0.1
    noise_variance: Range = (0.0, 0.1)


class ViewSettings(Settings):
    """Where views lie and how they look (`views/`)."""

    size: Triple = (64, 64, 64)
    overlap: Range = (0.4, 0.8)
    mirror: bool = True
    p_rotation: Fraction = 0.2
    rotation_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 30.0
    p_scale: Fraction = 0.2
    scale: Range = (0.7, 1.4)
    independent: bool = False
    min_foreground: Fraction = 0.1
    redraws: Annotated[int, Field(ge=0)] = 8
    photometric: PhotometricSettings = PhotometricSettings()

    @model_validator(mode="after")
    def _ranges(self) -> ViewSettings:
        low, high = self.overlap
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"views.overlap must be two fractions 0 < low ≤ high ≤ 1, not {list(self.overlap)}")
        if not 0.0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"views.scale must be two positive factors, low ≤ high, not {list(self.scale)}")
        return self


class SamplingSettings(Settings):
    """Which volumes are drawn, and how often (`training/sampling.py`). The defaults draw every image alike.

    `by` is what is drawn alike; `weights` multiplies, by dataset, subject or image id. `max_quality_score` leaves out
    what scores higher, for lower is better; volumes without a score stay.
    """

    by: Literal["image", "subject", "dataset"] = "image"
    weights: dict[str, Annotated[float, Field(ge=0.0)]] = {}
    modalities: tuple[str, ...] = ()
    max_quality_score: float | None = None


class MaskSettings(Settings):
    """What the student does not see. `block` is for CNNs; Primus drops whole tokens."""

    ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.75
    block: Triple = (16, 16, 16)


class NetworkSettings(Settings):
    """Which backbone, and options of it. `network=NAME` on the command line is short for `network.name=NAME`."""

    name: str = "resenc-l"
    channels: Count = 1
    drop_path: Fraction = 0.0


class HeadSettings(Settings):
    """Projector (three layers) and predictor (two) of the consistency and contrastive terms.

    `projector` says which features pass them: "both" as published, "pooled" the vectors of whole images alone, "none".
    """

    projector: Literal["both", "pooled", "none"] = "both"
    width: Count = 2048
    predictor_width: Count = 512
    norm: Literal["auto", "batch", "layer"] = "auto"


class ObjectiveSettings(Settings):
    """Terms of the loss and their weights; a weight of 0 leaves the term uncomputed.

    `dense` says whose feature maps consistency compares; `cells` are those of the lattice, along (D, H, W).
    """

    reconstruction_weight: Annotated[float, Field(ge=0.0)] = 5.0
    huber_delta: Positive = 1.0
    reconstruction: Literal["huber", "mse"] = "huber"
    consistency: Literal["cosine", "nt_xent", "gram"] = "cosine"
    negatives: Literal["pair", "batch"] = "pair"
    consistency_weight: Annotated[float, Field(ge=0.0)] = 1.0
    contrastive_weight: Annotated[float, Field(ge=0.0)] = 0.1
    temperature: Positive = 0.5
    order: Literal["project_first", "align_first"] = "project_first"
    dense: Literal["encoder", "decoder"] = "encoder"
    cells: Triple = (7, 7, 7)
    samples: Count = 2


class TeacherSettings(Settings):
    """The exponential moving average of the student.

    With `final_momentum` the momentum goes from `momentum` to it along half a cosine over the run.
    """

    momentum: Fraction = 0.995
    final_momentum: Fraction | None = None


class OptimSettings(Settings):
    """Optimizer and schedule. `warmup` and the polynomial decay count optimizer steps."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    weight_decay: Annotated[float, Field(ge=0.0)] = 3e-5
    momentum: Fraction = 0.99
    betas: Range = (0.9, 0.98)
    clip: Positive | None = 12.0
    warmup: Annotated[int, Field(ge=0)] = 0
    power: Positive = 0.9


class RunningProbeSettings(Settings):
    """A small labelled task (`task`: its folder) on which frozen features are judged every so often, and at step 0."""

    task: str
    every: Count = 2500
    folds: Annotated[int, Field(ge=2)] = 5


class ValidateSettings(Settings):
    """Held-out subjects: 1 % of them, at least 5 and at most 200, none when there are fewer than 20."""

    every: Annotated[int, Field(ge=0)] = 500
    share: Fraction = 0.01
    batches: Count = 8
    probe: RunningProbeSettings | None = None


class CheckpointSettings(Settings):
    """How often all state is written, and how many of the newest checkpoints stay. `keep_every` ones stay for good."""

    every: Count = 500
    keep_last: Count = 2
    keep_every: Annotated[int, Field(ge=0)] = 0


class LogSettings(Settings):
    """How often a line is written to `log.jsonl` and shown elsewhere, and how often features are examined."""

    every: Count = 10
    health_every: Count = 50
    tensorboard: bool = True
    wandb: bool = False
    mlflow: bool = False


class RuntimeSettings(Settings):
    """The machine: none of these changes what is learnt beyond rounding.

    `accelerator` is a GPU of CUDA where there is one, else the CPU: Apple's GPUs have no float64, which geometry needs.
    `precision: auto` follows from the hardware (`viewalign.utils.precision`). `tf32` lets GPUs round the factors of
    float32 products to 10 bits of mantissa; off, float32 is float32 on every GPU.
    Where memory is short: `accumulate` computes a process's share of the batch in so many parts, `recompute` works
    activations out again in the backward pass. `compile` compiles the networks' blocks, which takes minutes once.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Count = 1
    nodes: Count = 1
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "auto"
    tf32: bool = False
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    accumulate: Count = 1
    recompute: bool = False
    compile: bool = False
    deterministic: bool = False
    bad_steps: Count = 20
    lost_share: Fraction = 0.05


class InitSettings(Settings):
    """Weights to start from. `init=PATH` on the command line is short for `init.weights=PATH`.

    A checkpoint of nnssl's layout, an export or a run of this package; used at the first start alone. `min_share` is of
    the encoder's elements that the weights must cover. `token_order` is needed for a Primus of unknown trainer alone:
    "hdw" for nnssl's EvaMAE, whose tokens have the first two axes exchanged, "dhw" for raster order.
    """

    weights: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)] = ""
    min_share: Fraction = 0.9
    token_order: Literal["auto", "dhw", "hdw"] = "auto"


def _as_network(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _as_init(value: object) -> object:
    return {"weights": value or ""} if isinstance(value, str | None) else value


class Recipe(Settings):
    """A whole pretraining run.

    `geometry: latentcampus` draws and aligns views as the code released with the paper does, for comparison only.
    `pretext` holds what belongs to one method alone: each method's file has a strict model of it (`class Pretext`), and
    a recipe is checked against the one that `method` names. Which other groups a method reads: see docs/methods.md.
    """

    method: str = "cva"
    pretext: dict[str, Any] = {}
    network: Annotated[NetworkSettings, BeforeValidator(_as_network)] = NetworkSettings()
    init: Annotated[InitSettings, BeforeValidator(_as_init)] = InitSettings()
    data: str = ""
    out: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    geometry: Literal["exact", "latentcampus"] = "exact"
    steps: Count = 62_500
    batch: Count = 4
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
    """Return a recipe as plain data without the paths of this machine: what checkpoints and exports may tell."""
    paths: dict[str, Any] = {"data": True, "out": True, "init": {"weights"}, "validate_": {"probe"}}
    return recipe.model_dump(mode="json", by_alias=True, exclude=paths)
