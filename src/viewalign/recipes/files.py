"""YAML files of the package by their names, and files of users by their paths, each with what it is based on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.utils.overrides import closest
from viewalign.utils.settings import absolute_paths, nested, parse_yaml, read_yaml, with_home

_PART = re.compile(r"_[A-Za-z0-9][A-Za-z0-9_.+-]*")
"""Names of files that only serve as a base of others."""


@dataclass(frozen=True)
class SettingsFiles:
    """The package's YAML files of one kind, and those of users.

    Attributes:
        kind: its name in messages.
        subfolder: of `viewalign.recipes`.
        listing: command that lists the package's files; empty if messages list them.
    """

    kind: str
    subfolder: str = ""
    listing: str = ""

    @property
    def _folder(self) -> Traversable:
        return resources.files("viewalign.recipes").joinpath(self.subfolder)

    def names(self) -> list[str]:
        """Return the sorted names of the package's files, without those that begin with `_`."""
        files = [entry.name for entry in self._folder.iterdir()]
        return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml") and name[0] != "_")

    def headline(self, name: str) -> str:
        """Return the first line of one of the package's files, a comment that describes it."""
        return self._text(name).splitlines()[0].removeprefix("#").strip()

    def _text(self, name: str) -> str:
        return self._folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")

    def read(self, name_or_path: str, model: type[Any]) -> list[tuple[dict[str, Any], Path | None]]:
        """Read the settings of a file and of its bases (`base`), the deepest base first.

        Args:
            name_or_path: one of the package's files, or a user's YAML file.
            model: of the settings; its paths in a user's file are relative to that file.

        Returns:
            Settings, each with its path if it is a user's file.

        Raises:
            UserError: there is no such file, it contains no settings, or it is based on itself.
        """
        chain: list[tuple[dict[str, Any], Path | None]] = []
        above: list[str] = []
        name: str | None = with_home(name_or_path)
        while name is not None:
            if name in above:
                raise UserError(f"The {self.kind} {name} is based on itself ({' → '.join([*above, name])}).")
            above.append(name)
            path = Path(name) if _is_yaml(name) and Path(name).is_file() else None
            tree = parse_yaml(self._packaged(name), name) if path is None else read_yaml(path)
            if not tree:
                example = self.names()[0]
                raise UserError(f"{name} has no settings. Name at least what it is based on, such as base: {example}.")
            tree = nested(tree)
            base = tree.pop("base", None)
            chain.insert(0, (tree if path is None else absolute_paths(tree, model, path.parent), path))
            name = str(base) if base else None
            if path is not None and name is not None and _is_yaml(name):
                name = str(path.parent / with_home(name))
        return chain

    def _packaged(self, name: str) -> str:
        if name in self.names() or (_PART.fullmatch(name) and self._folder.joinpath(f"{name}.yaml").is_file()):
            return self._text(name)
        raise UserError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        """Return the message for a name that is neither a file nor one of the package's."""
        path = Path(name)
        if (path / "config.yaml").is_file():
            return f"{name} is a run. Resume or repeat it by its recipe, {name}/config.yaml."
        if (path / "store.json").is_file():
            return f"{name} is a store, not a {self.kind}. The {self.kind} is the first argument, the store the second."
        if path.is_file():
            return f"{name} is no {self.kind}: the name of its file must end in .yaml or .yml."
        if _is_yaml(name) or path.name != name:
            return f"{name} is a folder, not a {self.kind}." if path.is_dir() else f"There is no file {name}."
        all_of_them = f"`{self.listing}` lists them" if self.listing else f"There are {', '.join(self.names())}"
        found = f"There is no {self.kind} '{name}'{closest(name, self.names())}."
        return f"{found} {all_of_them}; name a YAML file by its path."


def _is_yaml(name: str) -> bool:
    return Path(name).suffix in {".yaml", ".yml"}


RECIPES = SettingsFiles("recipe", listing="viewalign recipes")
STUDIES = SettingsFiles("study", "studies", "viewalign study --list")
TASK_RECIPES = SettingsFiles("recipe for tasks", "tasks")
