"""From a study's name or file and `key=value` overrides to a checked `Study`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from viewalign.config import Settings
from viewalign.errors import UserError
from viewalign.given import misfits, nearest, put, read_override, walk
from viewalign.recipes.loading import merged, settings_in
from viewalign.study import settings as models
from viewalign.study.settings import Study

_MODELS = [one for one in vars(models).values() if isinstance(one, type) and issubclass(one, Settings)]
_KINDS = {"voxel_probe", "retrieval", "feature_probe", "segmentation", "finetune"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def names() -> list[str]:
    """Return the names of the studies that come with the package, sorted; `_name` is a part that others share."""
    files = [one.name for one in _folder().iterdir() if one.name.endswith(".yaml")]
    return sorted(name.removesuffix(".yaml") for name in files if not name.startswith("_"))


def headline(name: str) -> str:
    """Return a shipped study's first line, which says in a comment what it is."""
    text: str = _folder().joinpath(f"{name}.yaml").read_text()
    return text.splitlines()[0].removeprefix("#").strip()


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study, lay overrides over it and check everything that can be known without its data.

    Relative paths in a file are relative to `data.root`, and that to the file's folder.

    Raises:
        UserError: unknown study or key (the nearest right one is named), or a value that does not fit.
    """
    tree = _read(name_or_path)
    for override in overrides:
        put(tree, *read_override(override, "steps=300"))
    return check(tree, name_or_path)


def check(tree: Mapping[str, Any], source: str) -> Study:
    """Turn plain values into a `Study`; arms and judges that are null are left out."""
    tree = dict(tree)
    for group in ("arms", "judges"):
        if isinstance(tree.get(group), dict):
            tree[group] = {name: one for name, one in tree[group].items() if one is not None}
    try:
        study = Study.model_validate(tree)
    except ValidationError as problem:
        raise UserError(f"{source}: " + misfits(problem, _suggest, tags=_KINDS)) from None
    for word in (study.name, *study.arms, *study.judges):
        if not _NAME.fullmatch(word):
            raise UserError(f"{source}: '{word}' names a folder; use letters, digits, -, _, + and dots.")
    _check_names(study, source)
    return study


def flatten(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield nested settings as `key.key=value` overrides."""
    for key, value in walk(tree, lambda group: group.rsplit(".", 1)[-1] == "weights"):
        yield f"{key}={json.dumps(value)}"


def _check_names(study: Study, source: str) -> None:
    if study.against not in study.arms:
        raise UserError(
            f"{source}: reference: there is no arm '{study.reference}'{nearest(study.against, study.arms)}."
        )
    if len(set(study.seeds)) != len(study.seeds) or not study.seeds:
        raise UserError(f"{source}: seeds must be different numbers, at least one.")
    for name, arm in study.arms.items():
        chain, start = [name], arm.start
        while start is not None:
            if start not in study.arms:
                raise UserError(f"{source}: arms.{name}.start: there is no arm '{start}'{nearest(start, study.arms)}.")
            if start in chain:
                raise UserError(f"{source}: the arms {', '.join(chain)} start from each other in a circle.")
            chain.append(start)
            start = study.arms[start].start
    wanting = [name for name, one in study.judges.items() if one.kind in ("voxel_probe", "retrieval", "segmentation")]
    if wanting and study.data.labelled is None:
        raise UserError(f"{source}: judges.{wanting[0]} needs labelled images: name them in data.labelled.")


def _folder() -> Any:
    return resources.files("viewalign.recipes").joinpath("studies")


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    shipped = (
        bool(_NAME.fullmatch(name_or_path.removeprefix("_"))) and _folder().joinpath(f"{name_or_path}.yaml").is_file()
    )
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        text = path.read_text(encoding="utf-8")
    elif shipped:
        text = _folder().joinpath(f"{name_or_path}.yaml").read_text()
    else:
        raise UserError(
            f"There is no study '{name_or_path}'{nearest(name_or_path, names())}. "
            f"Studies are {', '.join(names())}, or the path of a YAML file."
        )
    tree = settings_in(text, name_or_path)
    base = tree.pop("base", None)
    tree = merged(_read(str(base)), tree) if base else tree
    data = tree.get("data")
    if not shipped and isinstance(data, dict) and not Path(str(data.get("root") or "")).is_absolute():
        tree["data"] = {**data, "root": str(path.parent.absolute() / str(data.get("root") or ""))}
    return tree


def _suggest(key: str) -> str:
    return nearest(key, sorted({field for model in _MODELS for field in model.model_fields}))
