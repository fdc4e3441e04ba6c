"""Where nnU-Net finds data, results and our trainer: environment variables are the only way that it takes."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from viewalign.errors import UserError

EXTERNAL = Path(__file__).parent / "external"
"""The folder that `nnUNet_extTrainer` names."""
LOADERS = "nnUNet_n_proc_DA"
"""The variable that says how many processes prepare patches."""
_TRAINERS = "nnUNet_extTrainer"
_FOLDERS = ("raw", "preprocessed", "results")
_LOWEST, _TOO_HIGH = (2, 8, 1), (2, 9)


@dataclass(frozen=True)
class Folders:
    """nnU-Net's three folders."""

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def of(cls, fallback: Path) -> Folders:
        """Take what the environment names, and folders below `fallback` for what it does not."""
        found = {name: Path(os.environ.get(f"nnUNet_{name}") or fallback / name).absolute() for name in _FOLDERS}
        return cls(**found)

    def make(self) -> None:
        """Make the folders that are not there.

        Raises:
            UserError: one cannot be made.
        """
        for name in _FOLDERS:
            folder: Path = getattr(self, name)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise UserError(f"nnU-Net's folder {folder} cannot be made: {problem.strerror}.") from None


def variables(folders: Folders | None) -> dict[str, str]:
    """Return what nnU-Net's own commands need to find our trainer, and the folders where some are given."""
    named = {} if folders is None else {f"nnUNet_{name}": str(getattr(folders, name)) for name in _FOLDERS}
    others = [part for part in os.environ.get(_TRAINERS, "").split(os.pathsep) if part]
    paths = [*(part for part in others if Path(part) != EXTERNAL), str(EXTERNAL)]
    return {**named, _TRAINERS: os.pathsep.join(paths)}


def as_shell(values: dict[str, str]) -> str:
    """Return lines for `eval` in a POSIX shell."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())


def enter(folders: Folders, processes: int, device: str) -> None:
    """Set the environment of this process and its children; nnU-Net reads it when it is imported and later.

    Raises:
        UserError: nnU-Net is not installed, or is of a version that this was not built for.
    """
    check_installed()
    os.environ.update(variables(folders))
    os.environ.setdefault("nnUNet_def_n_proc", str(processes))
    # Planning hands this number to torch.set_num_threads, which refuses 0; `loading` says what training shall have.
    os.environ[LOADERS] = str(max(1, loaders(processes, device)))


def loaders(processes: int, device: str) -> int:
    """Return how many processes prepare patches: none on a CPU, where the network needs the cores."""
    return 0 if device == "cpu" else processes


def check_installed() -> None:
    """Refuse to begin without a fitting nnU-Net.

    Raises:
        UserError: it is missing or of another version.
    """
    wanted = "pip install 'viewalign[nnunet]'"
    if util.find_spec("nnunetv2") is None:
        raise UserError(f"Segmentation is fine-tuned by nnU-Net, which is not installed: {wanted}")
    version = metadata.version("nnunetv2")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not _LOWEST <= numbers < _TOO_HIGH:
        raise UserError(f"nnunetv2 {version} is installed; this needs 2.8.1 or a later 2.8: {wanted}")
