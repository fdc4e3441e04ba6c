"""Optional packages: what an extra consists of, and the command that installs it into the running environment."""

from __future__ import annotations

import re
import shlex
import sys
from importlib import metadata

from viewalign.errors import UserError

_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")
_OWN = re.compile(r"viewalign\[([\w,-]+)\]")


def missing(what: str, extra: str) -> UserError:
    """Return the error for a feature whose packages are not installed.

    Args:
        what: a clause such as `A probe needs scikit-learn`.
        extra: the name in `pyproject.toml`.
    """
    return UserError(f"{what}: {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return a command that installs the packages of an extra, whether or not viewalign itself is on an index.

    Example:
        `install_command("lora")` is `/env/bin/python -m pip install 'peft>=0.15'`.
    """
    packages = requirements_of(extra) or [f"viewalign[{extra}]"]
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])


def requirements_of(extra: str) -> list[str]:
    """Return the packages of an extra, sorted, as the installed distribution names them; none where it is unknown."""
    try:
        lines = metadata.requires("viewalign") or []
    except metadata.PackageNotFoundError:
        return []
    found = set[str]()
    for line in lines:
        requirement, _, condition = line.partition(";")
        named = _EXTRA.search(condition)
        if named is None or named[1] != extra:
            continue
        if own := _OWN.match(requirement):
            found.update(one for name in own[1].split(",") for one in requirements_of(name))
        else:
            found.add(requirement.strip())
    return sorted(found)
