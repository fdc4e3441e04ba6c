"""Environment variables by which nnU-Net finds data, results and our trainer."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from viewalign.errors import UserError
from viewalign.utils.extras import missing

EXTERNAL = Path(__file__).parent / "external"
"""Folder of our trainer, for `nnUNet_extTrainer`."""
LOADERS = "nnUNet_n_proc_DA"
"""Variable with the number of processes that load patches."""
_TRAINERS = "nnUNet_extTrainer"
_FOLDERS = ("raw", "preprocessed", "results")
_MIN_VERSION, _MAX_VERSION = (2, 8, 1), (2, 9)


@dataclass(frozen=True)
class Folders:
    """nnU-Net's three folders."""

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def of(cls, fallback: Path) -> Folders:
        """Return the folders of the environment, with folders in `fallback` for those it does not name."""
        return cls(*(Path(os.environ.get(f"nnUNet_{name}") or fallback / name).absolute() for name in _FOLDERS))

    def make(self) -> None:
        """Create missing folders.

        Raises:
            UserError: a folder cannot be created.
        """
        for name in _FOLDERS:
            folder: Path = getattr(self, name)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise UserError(f"nnU-Net's folder {folder} cannot be created: {problem.strerror}.") from None


def variables(folders: Folders | None) -> dict[str, str]:
    """Return the variables with which nnU-Net's commands find our trainer, and optionally its folders."""
    named = {} if folders is None else {f"nnUNet_{name}": str(getattr(folders, name)) for name in _FOLDERS}
    others = [part for part in os.environ.get(_TRAINERS, "").split(os.pathsep) if part]
    paths = [*(part for part in others if Path(part) != EXTERNAL), str(EXTERNAL)]
    return {**named, _TRAINERS: os.pathsep.join(paths)}


def as_shell(values: dict[str, str]) -> str:
    """Format variables for `eval` in a POSIX shell."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())


def enter(folders: Folders, processes: int, device: str) -> None:
    """Set the environment of this process and its children.

    Raises:
        UserError: nnU-Net is not installed, or its version is not supported.
    """
    check_installed()
    os.environ.update(variables(folders))
    os.environ.setdefault("nnUNet_def_n_proc", str(processes))
    # Planning passes this number to torch.set_num_threads, which rejects 0; `nnunet.train` sets it for training.
    os.environ[LOADERS] = str(max(1, loaders(processes, device)))


def loaders(processes: int, device: str) -> int:
    """Return the number of processes that load patches: 0 on a CPU, where the network needs the cores."""
    return 0 if device == "cpu" else processes


def check_installed() -> None:
    """Check that a supported nnU-Net is installed.

    Raises:
        UserError: it is missing, or its version is not supported.
    """
    if util.find_spec("nnunetv2") is None:
        raise missing("Fine-tuning for segmentation needs nnU-Net", "nnunet")
    version = metadata.version("nnunetv2")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not _MIN_VERSION <= numbers < _MAX_VERSION:
        raise missing(f"nnunetv2 {version} is installed; viewalign needs 2.8.1 or a later 2.8", "nnunet")
