"""The base class of all settings, shared field types, and parsing of `key=value` into a checked model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from viewalign.errors import UserError
from viewalign.utils.io import is_file, is_folder
from viewalign.utils.overrides import closest, format_validation_error, iter_nested, read_override, set_nested
from viewalign.utils.yaml_values import load_yaml

Model = TypeVar("Model", bound=BaseModel)


_DEEPEST = 20
"""Largest depth of nesting in a YAML file."""


def as_list(value: object) -> object:
    """Read `a,b` or a single value as a list; YAML itself requires `[a,b]`."""
    if isinstance(value, str) and value.lstrip().startswith("[") and "]" not in value:
        raise ValueError("cannot be read; write lists as [32,32,32]")
    if isinstance(value, str):
        return [_scalar(part) for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, list | tuple) else value if value is None else [value]


def _scalar(text: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text.strip()  # text that has a special meaning in YAML, such as the pattern *.nii


def as_triple(value: object) -> object:
    """Read `a,b,c`, or one number for all three, as a list of three."""
    parts = as_list(value)
    if not isinstance(parts, list):
        return parts
    if len(parts) not in (1, 3) or not all(isinstance(part, Real) for part in parts):
        raise ValueError(f"needs one number or three in the order (D, H, W), not {value}")
    return parts * 3 if len(parts) == 1 else parts


def as_pair(value: object) -> object:
    """Read `LOW,HIGH` as a list of two."""
    parts = as_list(value)
    if isinstance(parts, list) and len(parts) != 2:
        raise ValueError(f"needs two numbers, LOW,HIGH, not {', '.join(map(str, parts)) or 'none'}")
    return parts


def in_order(value: tuple[float, float]) -> tuple[float, float]:
    """Check that a lower bound is not above the upper one."""
    if value[0] > value[1]:
        raise ValueError("must be in order, LOW ≤ HIGH")
    return value


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


def _not_bool(value: object) -> object:
    """Reject `steps=true`, which pydantic reads as 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


_Float = Annotated[float, BeforeValidator(_not_bool)]
_Int = Annotated[int, BeforeValidator(_not_bool)]
Fraction = Annotated[_Float, Field(ge=0.0, le=1.0)]
Positive = Annotated[_Float, Field(gt=0.0)]
NotNegative = Annotated[_Float, Field(ge=0.0)]
PositiveFraction = Annotated[_Float, Field(gt=0.0, le=1.0)]
PartialFraction = Annotated[_Float, Field(ge=0.0, lt=1.0)]
Count = Annotated[_Int, Field(ge=1)]
OddCount = Annotated[Count, AfterValidator(_odd)]
Number = Annotated[_Int, Field(ge=0)]
Triple = Annotated[tuple[Count, Count, Count], BeforeValidator(as_triple)]
"""Three voxel counts in array order (D, H, W); a single number means a cube."""
Millimetres = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(as_triple)]
"""Three voxel sizes in mm in array order (D, H, W); a single number applies to all axes."""
_ORDERED = (BeforeValidator(as_pair), AfterValidator(in_order))
Range = Annotated[tuple[float, float], *_ORDERED]
"""Lower and upper bound."""
PositiveRange = Annotated[tuple[Positive, Positive], *_ORDERED]
NotNegativeRange = Annotated[tuple[NotNegative, NotNegative], *_ORDERED]
FractionRange = Annotated[tuple[PositiveFraction, PositiveFraction], *_ORDERED]
Betas = Annotated[tuple[PartialFraction, PartialFraction], BeforeValidator(as_pair)]
"""Factors of two running means of an optimizer."""
Names = Annotated[tuple[str, ...], BeforeValidator(as_list)]


def with_home(path: str) -> str:
    """Replace `~/` at the start of a path by the user's home; a shell does so only at the start of an unquoted word."""
    return str(Path(path).expanduser()) if path.startswith("~/") else path


@dataclass(frozen=True)
class PathMark:
    """Marks a setting that names a file or folder; with `or_name`, any other text is possible too."""

    or_name: bool = False


FilePath = Annotated[str, AfterValidator(with_home), PathMark()]
"""A file or folder; `~` is the user's home. In a YAML file it is relative to that file."""
PathOrName = Annotated[str, AfterValidator(with_home), PathMark(or_name=True)]
"""The same, or another text, such as the name of a public encoder."""
FilePaths = Annotated[tuple[FilePath, ...], BeforeValidator(as_list)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(as_list)]
Positives = Annotated[tuple[Positive, ...], BeforeValidator(as_list)]


@dataclass(frozen=True)
class SettingsOf:
    """Marks a plain mapping of settings that are checked later, by this model, which tells the paths among them."""

    model: type[BaseModel]


class Settings(BaseModel):
    """Base class of all settings: frozen; unknown keys are rejected. Each field has a description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )


_OTHER_NAMES = {
    "basedon": "base",
    "extends": "base",
    "inherits": "base",
    "accelerator": "device",
    "batchsize": "batch",
    "blocksize": "block",
    "cropsize": "patch_size",
    "dataset": "data",
    "devices": "gpus",
    "ema": "teacher.momentum",
    "epochs": "steps",
    "flips": "tta",
    "gradclip": "clip",
    "iterations": "steps",
    "learningrate": "lr",
    "maskratio": "ratio",
    "model": "network.name",
    "norm": "normalise",
    "normalize": "normalise",
    "numgpus": "gpus",
    "numprocesses": "workers",
    "numworkers": "workers",
    "output": "out",
    "patch": "patch_size",
    "patchsize": "patch_size",
    "pretrainedweights": "init",
    "processes": "workers",
    "roisize": "patch_size",
    "size": "patch_size",
    "steps": "epochs",
    "view": "patch_size",
    "wd": "weight_decay",
}
"""Names of settings in other tools (letters only), to suggest the name used here."""


def setting_names(model: type[BaseModel], prefix: str = "", groups: bool = False) -> Iterator[str]:
    """Yield the dotted name of every setting of a model, and with `groups` also those of its groups."""
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        below = models_in(field.annotation)
        if groups or not below:
            yield path
        for kind in below:
            yield from setting_names(kind, path + ".", groups)


def absolute_paths(tree: Mapping[str, Any], model: type[BaseModel], folder: Path) -> dict[str, Any]:
    """Return nested settings whose relative paths are made absolute.

    Args:
        tree: settings as in a file, not checked.
        model: of these settings; its fields of type `FilePath` and `PathOrName` are paths.
        folder: that they are relative to. A text that may be something else is a path if there is such a file in it.
    """
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    out = dict(tree)
    for name, value in tree.items():
        if (field := fields.get(name)) is None:
            continue
        mark = next(_path_marks([*field.metadata, field.annotation]), None)
        later = next((one.model for one in field.metadata if isinstance(one, SettingsOf)), None)
        if isinstance(value, Mapping):
            out[name] = _absolute_below(nested(value) if later else value, later or field.annotation, folder)
        elif mark is not None and isinstance(value, list):
            out[name] = [_absolute(one, mark, folder) for one in value]
        elif mark is not None:
            out[name] = _absolute(value, mark, folder)
    return out


def _absolute_below(tree: Mapping[str, Any], annotation: Any, folder: Path) -> Mapping[str, Any]:
    """Return a group of settings, or a mapping of groups, with absolute paths."""
    for below in models_in(annotation):
        tree = absolute_paths(tree, below, folder)
    if get_origin(annotation) is dict:
        kind = get_args(annotation)[1]
        return {key: _absolute_below(v, kind, folder) if isinstance(v, Mapping) else v for key, v in tree.items()}
    return tree


def _path_marks(parts: Iterable[Any]) -> Iterator[PathMark]:
    for part in parts:
        if isinstance(part, PathMark):
            yield part
        else:
            yield from _path_marks([*get_args(part), *getattr(part, "__metadata__", ())])


def _absolute(value: Any, mark: PathMark, folder: Path) -> Any:
    if not isinstance(value, str) or not value:
        return value
    path = folder.absolute() / with_home(value)
    return str(path) if not mark.or_name or is_file(path) or is_folder(path) else value


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models of a group: itself, or those of an optional or annotated one; none for a mapping of models."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [model for part in get_args(annotation) for model in models_in(part)]
    return []


def suggest(word: str, known: Sequence[str]) -> str:
    """Suggest the setting for an unknown word: by its name in other tools, else the most similar name."""
    leaf = word.rsplit(".", 1)[-1].lower().replace("_", "").replace("-", "")
    habit = _OTHER_NAMES.get(leaf)
    same = [name for name in known if habit and f".{name}".endswith(f".{habit}")]
    return f" (did you mean '{same[0]}'?)" if same else closest(word, known)


def read_words(words: Sequence[str], model: type[BaseModel] | None = None) -> dict[str, Any]:
    """Read `key=value` words as nested values; `config=FILE` reads a YAML file, which the other words override.

    Relative paths in a file are relative to it, if the model of the settings is given.

    A group that has a plain name too, as in `network=primus-m network.channels=4`, keeps both, the others with dotted
    keys.

    Raises:
        UserError: a word that is not `key=value`, or a file that does not contain settings.
    """
    tree: dict[str, Any] = {}
    for key, value in map(read_override, words):
        if key == "config":
            file = Path(with_home(str(value)))
            own = nested(read_yaml(file))
            tree = _over(own if model is None else absolute_paths(own, model, file.parent), tree)
        else:
            _add_word(tree, key, value)
    return tree


def _over(own: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the words' settings over those of a file; a plain name of a group in the file is kept, as in words."""
    tree = merged(own, words)
    for key, value in own.items():
        if isinstance(value, str) and isinstance(words.get(key), Mapping):
            del tree[key]
            tree |= {key: value, **{f"{key}.{name}": one for name, one in iter_nested(words[key])}}
    return tree


def _add_word(tree: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(tree.get(key), dict) and not isinstance(value, dict):
        below = {f"{key}.{name}": one for name, one in iter_nested(tree.pop(key))}
        tree.update({key: value, **below})
    elif not isinstance(tree.get(key.split(".")[0], {}), dict):
        tree[key] = value
    else:
        set_nested(tree, key, value)


def checked(model: type[Model], values: Mapping[str, Any], source: str = "") -> Model:
    """Check plain values, with dotted keys or in groups; `source` names them in messages.

    Raises:
        UserError: an unknown key (with the closest match), or a value that does not fit.
    """
    try:
        return model.model_validate(nested(values))
    except ValidationError as problem:
        names = partial(suggest, known=list(setting_names(model, groups=True)))
        start = f"{source}: " if source else ""
        raise UserError(f"{start}{format_validation_error(problem, names)}.") from None


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in groups; any of them may have dotted keys.

    Those below a group that has a plain name too, as `network.channels` beside `network: primus-m`, keep their key.
    """
    tree: dict[str, Any] = {}
    named = {key for key, value in values.items() if not isinstance(value, Mapping)}
    for key, value in values.items():
        *parents, last = str(key).split(".")
        if any(".".join(parents[: n + 1]) in named for n in range(len(parents))):
            tree[key] = value
            continue
        one: dict[str, Any] = {last: value}
        for parent in reversed(parents):
            one = {parent: one}
        tree = merged(tree, one)
    return tree


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings merged over those of a base, group by group."""
    out = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        UserError: there is no such file, or it does not contain settings.
    """
    try:
        return parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except OSError as problem:
        raise UserError(f"{file} cannot be read: {problem.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not a text file in UTF-8.") from None


def _check_nesting(text: str, source: str) -> None:
    """Reject aliases, with which a few lines can expand to billions of values, and excessive nesting.

    Raises:
        UserError: there are some.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
            what = "an alias (*name)" if isinstance(event, yaml.AliasEvent) else f"more than {_DEEPEST} levels"
            line = event.start_mark.line + 1 if event.start_mark else 0
            raise UserError(f"{source} has {what} in line {line}, which is not allowed.")


def _check_keys(node: yaml.Node | None, source: str) -> None:
    """Reject a key that is twice in one mapping, of which YAML would ignore the first.

    Raises:
        UserError: there is one.
    """
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, source)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise UserError(f"{source} sets '{name}' twice, in lines {lines[name]} and {line}.")
            lines[name] = line
            _check_keys(value, source)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Read YAML settings; `source` names them in messages.

    Raises:
        UserError: not valid YAML, or no settings.
    """
    try:
        _check_nesting(text, source)
        _check_keys(yaml.compose(text, yaml.SafeLoader), source)
        tree = load_yaml(text) or {}
    except yaml.YAMLError as problem:
        raise UserError(f"{source} is not valid YAML: {problem}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{source} must contain settings as 'key: value' lines.")
    return tree
