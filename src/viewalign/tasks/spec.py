"""What a task asks: its kind, its channels, its classes or its unit. One YAML file, no code per dataset."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from viewalign.errors import UserError
from viewalign.utils.io import atomic_write
from viewalign.utils.overrides import closest, format_validation_error
from viewalign.utils.settings import Settings

Kind = Literal["binary", "multiclass", "multilabel", "regression"]
FILE = "task.yaml"

PRIMARY: dict[Kind, str] = {
    "binary": "auroc",
    "multiclass": "balanced_accuracy",
    "multilabel": "auroc",
    "regression": "mae",
}
"""The figure that stands first where a task names none."""


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class ChannelSpec(Settings):
    """One input channel.

    Attributes:
        name: what the manifest's column `image.<name>` is called.
        aliases: other names of images that may take its place, the first that a case has (`swi`, else `t2s`).
        optional: whether a case may lack it; it is then a channel of zeros.
    """

    name: str
    aliases: Names = ()
    optional: bool = False


class TaskSpec(Settings):
    """A task with one answer a case.

    Attributes:
        name: for titles.
        kind: binary and multiclass have one true class, multilabel any number of them, regression a number.
        channels: input channels in order.
        classes: names of classes in the order of their numbers; the second of a binary task is the positive one.
        unit: of a regression's target, for tables.
        range: a regression's lowest and highest possible value; predictions are held within it. None: no limit.
        primary: the figure that stands first.
        laterality: whether left and right matter, so that nothing may be mirrored along them.
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
    def _fits(self) -> TaskSpec:
        fewest = {"binary": 2, "multiclass": 2, "multilabel": 1, "regression": 0}[self.kind]
        if len(self.classes) < fewest or (self.kind == "binary" and len(self.classes) != 2):
            raise ValueError(f"classes: a {self.kind} task needs {fewest} or more names, not {list(self.classes)}")
        if self.kind == "regression" and self.classes:
            raise ValueError("classes: a regression has none")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        names = [word for channel in self.channels for word in (channel.name, *channel.aliases)]
        if len(set(names)) != len(names):
            raise ValueError("channels: a name or alias stands twice")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range: needs low < high, not {list(self.range)}")
        return self

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for a case."""
        return len(self.classes) if self.kind != "regression" else 1

    @property
    def figure(self) -> str:
        """The figure that stands first."""
        return self.primary or PRIMARY[self.kind]


def task_file(path: str | Path) -> Path:
    """Return the YAML file of a task given as a folder or as that file.

    Raises:
        UserError: there is none.
    """
    given = Path(path)
    file = given / FILE if given.is_dir() else given
    if not file.is_file():
        raise UserError(f"There is no task at {given}: a folder with {FILE} and manifest.csv, or the YAML file itself.")
    return file


def read_spec(path: str | Path) -> TaskSpec:
    """Read a task's YAML.

    Raises:
        UserError: no such file, no YAML, or settings that do not fit.
    """
    file = task_file(path)
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise UserError(f"{file} is no valid YAML: {problem}") from None
    return check_spec(tree, str(file))


def check_spec(tree: object, source: str) -> TaskSpec:
    """Turn plain values into a `TaskSpec`; `source` is what a message calls them."""
    try:
        return TaskSpec.model_validate(tree)
    except ValidationError as problem:
        raise UserError(
            f"{source}: {format_validation_error(problem, partial(closest, known=TaskSpec.model_fields))}."
        ) from None


def write_spec(spec: TaskSpec, folder: Path) -> Path:
    """Write a task's YAML into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
    with atomic_write(folder / FILE) as partial:
        partial.write_text(text, encoding="utf-8")
    return folder / FILE
