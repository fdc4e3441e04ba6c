"""Definition of a task in `task.yaml`: kind of target, image channels, classes or unit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from viewalign.errors import UserError
from viewalign.utils.io import atomic_write, is_file, is_folder
from viewalign.utils.overrides import closest, format_validation_error
from viewalign.utils.settings import Settings
from viewalign.utils.yaml_values import load_yaml

Kind = Literal["binary", "multiclass", "multilabel", "regression"]
FILE = "task.yaml"

_OF_CLASSES = ("balanced_accuracy", "auroc", "average_precision", "f1", "accuracy")
METRICS: dict[Kind, tuple[str, ...]] = {
    "binary": (*_OF_CLASSES, "sensitivity", "specificity", "brier", "ece"),
    "multiclass": (*_OF_CLASSES, "brier", "ece"),
    "multilabel": (*_OF_CLASSES, "brier"),
    "regression": ("mae", "rmse", "r2", "pearson", "spearman", "mean_error"),
}
"""Metrics by kind of task."""
PRIMARY: dict[Kind, str] = {
    "binary": "auroc",
    "multiclass": "balanced_accuracy",
    "multilabel": "auroc",
    "regression": "mae",
}
"""Default primary metric by kind of task."""


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class ChannelSpec(Settings):
    """One input channel.

    Attributes:
        name: suffix of the manifest's column `image.<name>`.
        aliases: alternative image names, used in order if a case lacks `name` (`swi`, else `t2s`).
        optional: whether a case may lack the channel, which is then filled with zeros.
    """

    name: str
    aliases: Names = ()
    optional: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The name, then the aliases."""
        return (self.name, *self.aliases)


class TaskSpec(Settings):
    """A task with one target per case.

    Attributes:
        name: of the task, for titles.
        kind: binary and multiclass have one true class, multilabel any number of classes, regression a number.
        channels: input channels in order.
        classes: class names in order of their indices; the second class of a binary task is the positive class.
        unit: of a regression target, for tables.
        range: lowest and highest possible regression target, to which predictions are clipped. None: no limits.
        primary: metric that is shown first; default by kind.
        laterality: whether left and right differ, so that images must not be mirrored.
    """

    name: str
    kind: Kind
    channels: tuple[ChannelSpec, ...] = Field(min_length=1)
    classes: Names = ()
    unit: str = ""
    range: tuple[float, float] | None = None
    primary: str | None = None
    laterality: bool = True

    @model_validator(mode="after")
    def _validate(self) -> TaskSpec:
        minimum = {"binary": 2, "multiclass": 2, "multilabel": 1, "regression": 0}[self.kind]
        if len(self.classes) < minimum or (self.kind == "binary" and len(self.classes) != 2):
            raise ValueError(f"classes: a {self.kind} task needs {minimum} or more names, not {list(self.classes)}")
        if self.kind == "regression" and self.classes:
            raise ValueError("classes: a regression task has none")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: names must be unique")
        if len(set(self.image_names)) != len(self.image_names):
            raise ValueError("channels: names and aliases must be unique")
        if self.primary is not None and self.primary not in METRICS[self.kind]:
            known = METRICS[self.kind]
            raise ValueError(
                f"primary: a {self.kind} task has no metric '{self.primary}'{closest(self.primary.lower(), known)}; "
                f"it has {', '.join(known)}"
            )
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range: needs low < high, not {list(self.range)}")
        return self

    @property
    def image_names(self) -> list[str]:
        """Names and aliases of all channels."""
        return [word for channel in self.channels for word in channel.words]

    @property
    def outputs(self) -> int:
        """Number of network outputs per case."""
        return len(self.classes) if self.kind != "regression" else 1

    @property
    def figure(self) -> str:
        """The primary metric."""
        return self.primary or PRIMARY[self.kind]


def distinct(names: Sequence[str]) -> list[str]:
    """Return names of channels as they are, or numbered if two are equal, as those of several CT phases."""
    return list(names) if len(set(names)) == len(names) else [f"{name}{k}" for k, name in enumerate(names)]


def task_file(path: str | Path) -> Path:
    """Return the YAML file of a task, from its folder or the file itself.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    file = path / FILE if is_folder(path) else path
    if not is_file(file):
        raise UserError(
            f"There is no task at {path}: expected a folder with {FILE} and manifest.csv, or the YAML file."
        )
    return file


def read_spec(path: str | Path) -> TaskSpec:
    """Read a task definition.

    Raises:
        UserError: no such file, invalid YAML or invalid settings.
    """
    file = task_file(path)
    try:
        tree = load_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise UserError(f"{file} is not valid YAML: {problem}") from None
    return check_spec(tree, str(file))


def check_spec(tree: object, source: str) -> TaskSpec:
    """Validate plain values as a `TaskSpec`; `source` names them in messages."""
    try:
        return TaskSpec.model_validate(tree)
    except ValidationError as problem:
        suggest = partial(closest, known=TaskSpec.model_fields)
        raise UserError(f"{source}: {format_validation_error(problem, suggest)}.") from None


def write_spec(spec: TaskSpec, folder: Path) -> Path:
    """Write `task.yaml` into a folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
    with atomic_write(folder / FILE) as partial_file:
        partial_file.write_text(text, encoding="utf-8")
    return folder / FILE
