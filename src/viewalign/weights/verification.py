"""Check of stores, runs and exports against the checksums that were written with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from viewalign.data.store import Store
from viewalign.data.verification import verify_store
from viewalign.errors import UserError, report_os_errors
from viewalign.weights import checkpoints
from viewalign.weights.encoder import FACTS_FILE, load_encoder, read_facts
from viewalign.weights.files import sha256_of
from viewalign.weights.run_folder import RunFolder, read_config_text


@dataclass(frozen=True)
class Verification:
    """Result of checking a folder.

    Attributes:
        kind: of the folder.
        checked: images of a store, checkpoints of a run, files of an export.
        problems: damaged files, with reasons.
    """

    kind: Literal["store", "run", "export"]
    checked: int
    problems: list[tuple[Path, str]] = field(default_factory=list)


@report_os_errors()
def verify(path: str | Path, on_progress: Callable[[int, int], None] | None = None) -> Verification:
    """Read all files of a store, a run or an export, and compare them with the checksums beside them.

    Args:
        path: the folder.
        on_progress: called with the number checked and the total; only for a store.

    Raises:
        UserError: the folder is none of these, or a store whose index cannot be read.
    """
    folder = Path(path)
    if (folder / "store.json").is_file():
        Store.open(folder)  # header and index
        count, problems = verify_store(folder, on_progress)
        return Verification("store", count, problems)
    if (folder / "config.yaml").is_file():
        return _verify_run(RunFolder(folder))
    if (folder / FACTS_FILE).is_file():
        return _verify_export(folder)
    raise UserError(f"{folder} is not a store (store.json), run (config.yaml) or export ({FACTS_FILE}).")


def _verify_run(run: RunFolder) -> Verification:
    paths = [checkpoints.path_of(run.checkpoints, step) for step in checkpoints.steps(run.checkpoints)]
    problems = [(path, reason) for path in paths if (reason := _problem(path)) is not None]
    try:
        read_config_text(run.config)
    except (OSError, ValueError, yaml.YAMLError) as problem:
        problems.append((run.config, f"it cannot be read: {problem}"))
    lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines() if run.log.is_file() else []
    bad = [number for number, line in enumerate(lines, 1) if not _is_json(line)]
    if bad:
        problems.append((run.log, f"{len(bad)} of its {len(lines)} lines are not rows, the first in line {bad[0]}"))
    return Verification("run", len(paths), problems)


def _problem(checkpoint: Path) -> str | None:
    try:
        return checkpoints.damage(checkpoint)
    except UserError as problem:
        return str(problem)


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _verify_export(folder: Path) -> Verification:
    """Compare files with the checksums in the facts, and load the encoder as `load_encoder` does."""
    problems = []
    try:
        load_encoder(folder)
    except UserError as problem:
        problems.append((folder / FACTS_FILE, str(problem)))
        return Verification("export", 1, problems)
    listed = read_facts(folder).get("sha256_of")
    digests = listed if isinstance(listed, dict) else {}
    for name, wanted in digests.items():
        file = folder / Path(name).name
        if not file.is_file():
            problems.append((file, "it is missing"))
        elif sha256_of(file) != wanted:
            problems.append((file, f"its checksum differs from the one in {FACTS_FILE}"))
    return Verification("export", 1 + len(digests), problems)
