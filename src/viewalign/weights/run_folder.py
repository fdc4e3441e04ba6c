"""A run's folder: its files, and whether a new run may start in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.recipes import loading
from viewalign.utils import outputs
from viewalign.utils.io import write_text
from viewalign.utils.locks import LOCK
from viewalign.utils.overrides import diff_settings
from viewalign.utils.settings import absolute_paths
from viewalign.utils.yaml_values import load_yaml

_MAY_CHANGE = ("runtime", "log", "checkpoint", "data", "out", "init", "validate.probe.task")
"""Settings that a resumed run may change: they do not affect what is learnt, did so only at the start, or are paths,
since a folder may have been moved and a path is written differently from another folder."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    root: Path

    @classmethod
    def of(cls, recipe: Recipe) -> RunFolder:
        """Return the folder that a recipe names.

        Raises:
            UserError: it names none.
        """
        if not recipe.out:
            raise UserError("Name a folder for the run with -o.")
        return cls(Path(recipe.out))

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.root / "config.yaml"

    @property
    def log(self) -> Path:
        """One JSON object per line."""
        return self.root / "log.jsonl"

    @property
    def messages(self) -> Path:
        """Messages and progress lines with their times."""
        return self.root / "run.log"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """The folder of exported weights."""
        return self.root / "export"

    @property
    def initial(self) -> Path:
        """Initial weights and how they matched."""
        return self.root / "init.json"

    @property
    def pictures(self) -> Path:
        """Arrays for the report's pictures."""
        return self.root / "pictures.npz"

    @property
    def report(self) -> Path:
        """The run's page."""
        return self.root / "report.html"

    def recipe(self) -> Recipe:
        """Read the run's recipe.

        Raises:
            UserError: the folder contains no run.
        """
        if not self.config.is_file():
            raise no_run(self.root)
        return loading.load(str(self.config))


def check_folder(recipe: Recipe, resume: bool) -> tuple[RunFolder, Recipe]:
    """Check that a run may start or resume in its folder; nothing is written.

    Args:
        recipe: the requested settings.
        resume: whether an existing run may be resumed.

    Returns:
        The folder, and the recipe to use: values resolved at the first start are kept.

    Raises:
        UserError: no folder named, a folder with another run, or a recipe that differs from the run's.
    """
    folder = RunFolder.of(recipe)
    if folder.config.is_file():
        before = folder.recipe()
        if not resume:
            raise UserError(
                f"{folder.root} contains another run. Resume it with --resume (in Python: resume=True), or name a new "
                "folder with -o."
            )
        recipe = _reconcile(before, recipe, folder.root)
    else:
        outputs.check_folder(folder.root, "run", False, (LOCK, folder.messages.name))  # of a start that failed
    return folder, recipe


def open_folder(recipe: Recipe, resume: bool) -> tuple[RunFolder, Recipe]:
    """Create a run's folder, or open the existing one; arguments and results are those of `check_folder`."""
    folder, recipe = check_folder(recipe, resume)
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"The folder {folder.root} cannot be created: {problem.strerror}.") from None
    return folder, recipe


def keep_precision(recipe: Recipe) -> Recipe:
    """Replace `precision: auto` by the precision of the run in `out`; a new measurement might differ."""
    folder = RunFolder.of(recipe)
    if recipe.runtime.precision != "auto" or not folder.config.is_file():
        return recipe
    settled = folder.recipe().runtime.precision
    return recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"precision": settled})})


def _reconcile(before: Recipe, now: Recipe, root: Path) -> Recipe:
    """Keep values resolved before; reject a recipe that would learn something else."""
    old, new = before.model_dump(by_alias=True), now.model_dump(by_alias=True)
    if new["steps"] > old["steps"]:  # a run may be extended
        old["steps"] = new["steps"]
    for path, was, wanted in diff_settings(old, new):
        if not any(path == name or path.startswith(f"{name}.") for name in _MAY_CHANGE):
            raise UserError(
                f"{root} was started with {path}={was}, not {wanted}. Resume with the same recipe, "
                f"as in {root / 'config.yaml'}, or start a new run in another folder. `steps` can be raised."
            )
    begun = any(RunFolder(root).checkpoints.glob("step_*"))
    if begun or not new["init"]["weights"]:
        new["init"] = old["init"]  # initial weights have been used already, and their file may have been moved
    return Recipe.model_validate(new)


def write_config(folder: RunFolder, recipe: Recipe) -> None:
    """Write the resolved recipe atomically: `out` is the folder of the file, other paths are absolute.

    So the file can be used from anywhere, and `--resume` with it also after the folder was moved.
    """
    settings = absolute_paths(recipe.model_dump(mode="json", by_alias=True), Recipe, Path.cwd())
    write_text(folder.config, loading.to_yaml(Recipe.model_validate({**settings, "out": "."})))


def no_run(folder: Path) -> UserError:
    """Return the error for a folder without a run; runs one level below or above are named."""
    below = sorted(path.parent for path in folder.glob("*/config.yaml")) if folder.is_dir() else []
    hint = f" Runs in it: {', '.join(str(path) for path in below[:5])}." if below else ""
    if (folder / "store.json").is_file():
        hint = f" It is a store, whose page is {folder / 'report.html'}."
    if (folder.parent / "config.yaml").is_file():
        hint = f" The folder above it is a run: {folder.parent}."
    missing = "it is a file" if folder.is_file() else "there is no such folder"
    what = "it has no config.yaml" if folder.is_dir() else missing
    return UserError(f"{folder} contains no run: {what}.{hint}")


def read_config_text(path: Path) -> dict[str, Any]:
    """Read a config file as plain data."""
    tree: dict[str, Any] = load_yaml(path.read_text(encoding="utf-8"))
    return tree


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read all complete rows of a log: JSON objects with a kind and a step. Other lines are skipped."""
    if not path.is_file():
        return []
    rows = (_row(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [row for row in rows if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    complete = isinstance(row, dict) and isinstance(row.get("kind"), str) and isinstance(row.get("step"), int)
    return row if complete else None
