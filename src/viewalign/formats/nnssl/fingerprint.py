"""A dataset's fingerprint: the voxel size of every image, from the headers alone (nnssl decodes every voxel for it)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from viewalign.errors import RefusedImageError, UserError
from viewalign.formats.nnssl.folders import FINGERPRINT
from viewalign.volumes.catalogue import Record
from viewalign.volumes.headers import read_header
from viewalign.volumes.layout import read_json, write_json
from viewalign.volumes.pool import run_jobs
from viewalign.volumes.progress import Progress, ProgressListener
from viewalign.volumes.sources import Refusal

Spacing = tuple[float, float, float]
CRASHED = "the reader crashed on this file"
_WORTH_A_PROCESS = 64
"""Headers that are read in the time another process takes to start, roughly."""


class _Looked(NamedTuple):
    spacing: Spacing | None
    reason: str | None = None


def measure(
    records: Sequence[Record], processes: int, on_progress: ProgressListener | None = None
) -> tuple[list[Spacing], list[Refusal]]:
    """Read the voxel sizes (z, y, x) in mm, sorted by file, and name the files whose headers are no volume's."""
    workers = min(processes, len(records) // _WORTH_A_PROCESS)
    found: dict[str, Spacing] = {}
    refused: list[Refusal] = []
    for done, (record, result) in enumerate(run_jobs(_look, records, workers), 1):
        looked = result if isinstance(result, _Looked) else _Looked(None, getattr(result, "reason", CRASHED))
        if looked.spacing is not None:
            found[str(record.path)] = looked.spacing
        else:
            refused.append(Refusal(str(record.path), looked.reason or "no voxel size"))
        if on_progress is not None:
            on_progress(Progress(done, len(records), 0, len(refused), str(record.path), looked.reason))
    return [found[path] for path in sorted(found)], sorted(refused)


def _look(record: Record) -> _Looked:
    try:
        return _Looked(read_header(record.path).spacing)
    except RefusedImageError as refusal:
        return _Looked(None, str(refusal))
    except Exception as error:  # one file must never stop the run
        return _Looked(None, f"unexpected {type(error).__name__}: {error}")


def write_fingerprint(folder: Path, spacings: Sequence[Spacing]) -> Path:
    """Write `dataset_fingerprint.json` into a dataset's folder and return the file."""
    path = folder / FINGERPRINT
    write_json(path, {"spacings": [list(spacing) for spacing in spacings]})
    return path


def read_fingerprint(folder: Path) -> list[Spacing]:
    """Read the voxel sizes.

    Raises:
        UserError: there is no fingerprint, or it is damaged.
    """
    path = folder / FINGERPRINT
    try:
        return [(float(z), float(y), float(x)) for z, y, x in read_json(path)["spacings"]]
    except FileNotFoundError:
        number = folder.name.removeprefix("Dataset").split("_")[0]
        raise UserError(f"There is no {path}. `nnssl_extract_fingerprint -d {number}` makes it.") from None
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise UserError(
            f"{path} cannot be used ({type(problem).__name__}: {problem}). "
            "`nnssl_extract_fingerprint --clean` makes it anew."
        ) from None
