"""Fingerprint and plans of a dataset in nnssl's format; the fingerprint is read from headers only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from viewalign.compat.nnssl.folders import FINGERPRINT, creation_hint
from viewalign.data.catalogue import Record
from viewalign.data.layout import ImageProgress, ProgressListener, read_json, write_json
from viewalign.data.readers.headers import read_header
from viewalign.data.sources import Exclusion
from viewalign.data.worker_pool import run_jobs
from viewalign.errors import ExcludedImageError, UserError

Spacing = tuple[float, float, float]
CRASHED = "the reader crashed on this file"
_HEADERS_PER_PROCESS = 64
"""Number of headers that are read in about the time in which a process starts."""


class _Measured(NamedTuple):
    spacing: Spacing | None
    reason: str | None = None


def measure(
    records: Sequence[Record], processes: int, on_progress: ProgressListener | None = None
) -> tuple[list[Spacing], list[Exclusion]]:
    """Return voxel sizes (z, y, x) in mm, sorted by file, and excluded files."""
    workers = min(processes, len(records) // _HEADERS_PER_PROCESS)
    found: dict[str, Spacing] = {}
    excluded: list[Exclusion] = []
    for done, (record, result) in enumerate(run_jobs(_measure, records, workers), 1):
        measured = result if isinstance(result, _Measured) else _Measured(None, getattr(result, "reason", CRASHED))
        if measured.spacing is not None:
            found[str(record.path)] = measured.spacing
        else:
            excluded.append(Exclusion(str(record.path), measured.reason or "no voxel size"))
        if on_progress is not None:
            on_progress(ImageProgress(done, len(records), 0, len(excluded), str(record.path), measured.reason))
    return [found[path] for path in sorted(found)], sorted(excluded)


def _measure(record: Record) -> _Measured:
    try:
        return _Measured(read_header(record.path, source=record.series).spacing)
    except ExcludedImageError as exclusion:
        return _Measured(None, str(exclusion))
    except Exception as error:  # a single file must not stop the run
        return _Measured(None, f"unexpected {type(error).__name__}: {error}")


def write_fingerprint(folder: Path, spacings: Sequence[Spacing]) -> Path:
    """Write `dataset_fingerprint.json` into a dataset's folder and return the file."""
    path = folder / FINGERPRINT
    write_json(path, {"spacings": [list(spacing) for spacing in spacings]})
    return path


def read_fingerprint(folder: Path) -> list[Spacing]:
    """Read the voxel sizes.

    Raises:
        UserError: no fingerprint, or a damaged one.
    """
    path = folder / FINGERPRINT
    try:
        return [(float(z), float(y), float(x)) for z, y, x in read_json(path)["spacings"]]
    except FileNotFoundError:
        number = folder.name.removeprefix("Dataset").split("_")[0]
        raise UserError(f"There is no {path}. Create it with `nnssl_extract_fingerprint -d {number}`.") from None
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise UserError(
            f"{path} cannot be used ({type(problem).__name__}: {problem}). "
            "Replace it with `nnssl_extract_fingerprint --clean`."
        ) from None


PLANNER = "ExperimentPlanner"
PLANS_NAME = "nnsslPlans"
_VERSION = 1
"""Increased whenever the same plans would result in other voxels."""
_RESAMPLE = "resample_data_or_seg_to_shape"
Axis = Annotated[int, Field(ge=0, le=2)]
Size = Annotated[float, Field(ge=0.01, le=100.0)]


class _Model(BaseModel):
    """Keeps unknown keys of nnssl."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Interpolation(_Model):
    """Resampling: spline order in the plane, nearest neighbour across thick slices."""

    is_seg: bool = False
    order: Annotated[int, Field(ge=0, le=5)] = 3
    order_z: Literal[0] = 0
    force_separate_z: bool | None = None


class Configuration(_Model):
    """One way to prepare a dataset.

    Attributes:
        data_identifier: name of the folder with its images.
        spacing: voxel size in mm along the transposed axes; None keeps each image's own.
    """

    data_identifier: str = ""
    preprocessor_name: Literal["DefaultPreprocessor"] = "DefaultPreprocessor"
    spacing_style: str = ""
    normalization_schemes: tuple[Literal["ZScoreNormalization", "NoNormalization"], ...] = ("ZScoreNormalization",)
    use_mask_for_norm: tuple[bool, ...] = (False,)
    resampling_fn_data: str = _RESAMPLE
    resampling_fn_data_kwargs: Interpolation = Interpolation()
    resampling_fn_mask: str = _RESAMPLE
    resampling_fn_mask_kwargs: Interpolation = Interpolation(is_seg=True, order=1)
    spacing: tuple[Size, Size, Size] | None = None
    patch_size: tuple[int, ...] | None = None

    @property
    def normalised(self) -> bool:
        """Whether images are z-scored."""
        return self.normalization_schemes == ("ZScoreNormalization",)


class Plans(_Model):
    """The plans of a dataset.

    Attributes:
        transpose_forward: the file's array axes (z, y, x) in the order of the stored ones.
    """

    dataset_name: str = ""
    plans_name: str = PLANS_NAME
    original_median_spacing_after_transp: tuple[float, float, float] = (1.0, 1.0, 1.0)
    image_reader_writer: str = "SimpleITKIO"
    transpose_forward: tuple[Axis, Axis, Axis] = (0, 1, 2)
    transpose_backward: tuple[Axis, Axis, Axis] = (0, 1, 2)
    configurations: dict[str, Configuration]
    experiment_planner_used: str = PLANNER

    @model_validator(mode="after")
    def _each_axis_once(self) -> Plans:
        if sorted(self.transpose_forward) != [0, 1, 2]:
            raise ValueError(f"transpose_forward is {list(self.transpose_forward)}, but must be an order of three axes")
        return self

    def images_folder(self, name: str) -> str:
        """Return the name of the folder with a configuration's images."""
        return self.configurations[name].data_identifier or f"{self.plans_name}_{name}"

    def fingerprint(self, name: str) -> str:
        """Return 16 hex digits that change whenever the stored voxels of some image would."""
        settings = self.configurations[name].model_dump(mode="json", exclude={"data_identifier", "patch_size"})
        essence = {"version": _VERSION, "forward": list(self.transpose_forward), "how": settings}
        return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()[:16]

    def single(self, name: str, patch_size: Sequence[int]) -> dict[str, Any]:
        """Return the plans for an adaptation plan: one configuration, with the size of the views."""
        chosen = self.configurations[name].model_copy(update={"patch_size": tuple(patch_size)})
        return self.model_copy(update={"configurations": {name: chosen}}).model_dump(mode="json")


def plan(dataset: str, spacings: Sequence[Sequence[float]]) -> Plans:
    """Plan nnssl's three configurations.

    The axis with the largest median voxel size is the first; `median` has the median of each axis over all images.

    Args:
        dataset: name such as "Dataset745_OpenMind".
        spacings: voxel size (z, y, x) in mm of every image.

    Raises:
        UserError: there are none.
    """
    if not len(spacings):
        raise UserError(f"{dataset} has no image with a known voxel size; nothing can be planned.")
    median = np.percentile(np.asarray(spacings, dtype=np.float64), 50, axis=0)
    first = int(np.argmax(median))
    forward = [first, *(axis for axis in range(3) if axis != first)]
    permuted = tuple(float(median[axis]) for axis in forward)
    sizes = {"onemmiso": (1.0, 1.0, 1.0), "median": permuted, "noresample": None}
    return Plans.model_validate(
        {
            "dataset_name": dataset,
            "original_median_spacing_after_transp": permuted,
            "transpose_forward": forward,
            "transpose_backward": [forward.index(axis) for axis in range(3)],
            "configurations": {
                name: {"data_identifier": f"{PLANS_NAME}_{name}", "spacing_style": name, "spacing": size}
                for name, size in sizes.items()
            },
        }
    )


def write_plans(folder: Path, plans: Plans) -> Path:
    """Write the plans into a dataset's folder and return the file."""
    path = folder / f"{plans.plans_name}.json"
    write_json(path, plans.model_dump(mode="json"))
    return path


def read_plans(folder: Path, name: str, configuration: str) -> Plans:
    """Read a dataset's plans, which must contain a configuration.

    Args:
        folder: `$nnssl_preprocessed/DatasetXXX_Name`.
        name: of the plans, such as "nnsslPlans".
        configuration: "onemmiso", "median" or "noresample".

    Raises:
        UserError: no plans, damaged or unsupported plans, or no such configuration.
    """
    path = folder / f"{name}.json"
    try:
        plans = Plans.model_validate({"plans_name": name, **read_json(path)})
    except FileNotFoundError:
        raise UserError(
            f"There are no plans {path} (in $nnssl_preprocessed, by the name of the plans). "
            f"{creation_hint(folder.name, configuration)}"
        ) from None
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"The plans {path} cannot be used: {where}: {first['msg']}, not {first['input']}.") from None
    except (OSError, ValueError, TypeError) as problem:
        raise UserError(f"The plans {path} cannot be used: {problem}.") from None
    if configuration not in plans.configurations:
        raise UserError(f"{path} has no configuration {configuration}, only {', '.join(plans.configurations)}.")
    return plans
