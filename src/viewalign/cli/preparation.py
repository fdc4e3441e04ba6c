"""What commands about preparation have in common: a catalogue from a file or a folder, and settings from options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import UserError

if TYPE_CHECKING:
    from viewalign.volumes.catalogue import Record
    from viewalign.volumes.given import Catalogue
    from viewalign.volumes.recipe import PrepareSettings


def catalogue_of(path: Path, frames: bool = False) -> Catalogue:
    """Read a catalogue, or index a folder, with a progress bar; see `volumes.given`."""
    from viewalign.cli.progress import progress_bar
    from viewalign.volumes import given

    with progress_bar("Reading headers") as report:
        return given.catalogue_of(path, frames, report)


def settings_of(spacing: str, chosen: Mapping[str, Any], records: Sequence[Record]) -> PrepareSettings:
    """Make settings of options; `median` spacing is taken from the headers of `records`.

    Raises:
        UserError: an option that does not fit.
    """
    from viewalign.volumes.given import settings_from

    size = _spacing(spacing)
    settings = settings_from({**chosen, "spacing": None if size == "median" else size}, "--")
    return settings.model_copy(update={"spacing": _median(records)}) if size == "median" else settings


def choices_of(
    interpolation: str,
    normalise: str,
    percentiles: str,
    window: str | None,
    dtype: str,
    view: str | None,
    fill_nonfinite: bool = False,
    frames: str = "refuse",
) -> dict[str, Any]:
    """Collect options into values of `PrepareSettings`, numbers read."""
    return {
        "normalise": normalise,
        "interpolation": interpolation,
        "percentiles": numbers_of("percentiles", percentiles, 2),
        "window": numbers_of("window", window, 2),
        "dtype": dtype,
        "view": numbers_of("view", view, 3, whole=True),
        "fill_nonfinite": fill_nonfinite,
        "frames": frames,
    }


def numbers_of(option: str, text: str | None, count: int, whole: bool = False) -> tuple[float, ...] | None:
    """Read `1,2,3` (or one number for all) as numbers; None stays None.

    Raises:
        UserError: other than one or `count` numbers.
    """
    if text is None:
        return None
    try:
        numbers = tuple((int if whole else float)(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1 and count == 3:
        numbers *= 3
    if len(numbers) != count:
        wanted = "one or three numbers, such as 1 or 3,1,1" if count == 3 else "two numbers LOW,HIGH"
        raise UserError(f"--{option} {text}: give {wanted}.")
    return numbers


def _spacing(text: str) -> tuple[float, ...] | str | None:
    word = text.strip().lower()
    if word in {"none", "median"}:
        return None if word == "none" else word
    try:
        return numbers_of("spacing", text, 3)
    except UserError:
        raise UserError(
            f"--spacing {text}: give one or three voxel sizes in mm, such as 1 or 3,1,1, or `median` or `none`."
        ) from None


def _median(records: Sequence[Record]) -> tuple[float, float, float]:
    from rich.console import Console

    from viewalign.cli.progress import progress_bar
    from viewalign.volumes.spacings import median_spacing

    with progress_bar("Reading voxel sizes") as report:
        found = median_spacing(records, lambda done: report(done, len(records)))
    words = ",".join(f"{size:g}" for size in found)
    Console(stderr=True).print(
        f"The median voxel size is {words} mm (--spacing {words} says the same).", highlight=False
    )
    return found
