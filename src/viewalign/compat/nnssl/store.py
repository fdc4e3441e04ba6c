"""Datasets in nnssl's layout as a store, prepared by nnssl or by viewalign.

- Pickled properties are never read: unpickling runs code. Ours are also in a JSON file, with sizes of the arrays.
- Mask voxels are inside if they are above 0. nnssl's crop writes −1 where mask and image are empty.
- If an image of nnssl has both masks, each is stored under the other's name. Ours are not swapped.
- Images are z-scored, so values above the mean, 0, are foreground if there is no better threshold.
- `valid_imgs.json` names nnssl's complete images; others may be incomplete and are excluded.
- `splits_final.json` names training and validation subjects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from viewalign.compat.nnssl.folders import MASK_FILES, SPLITS, VALID, creation_hint
from viewalign.compat.nnssl.lists import Split, listed_file, read_listed, read_split
from viewalign.compat.nnssl.plans import Configuration, read_plans
from viewalign.data.columns import INDEX_COLUMNS, Row
from viewalign.data.file_types import suffix_of
from viewalign.data.layout import beside, done_properties, read_json
from viewalign.data.store import Corner, Store
from viewalign.errors import UserError
from viewalign.utils.text import counted

_OTHER = {"anonymisation": "anatomy", "anatomy": "anonymisation"}
_RECORD_KEYS = ("dataset_index", "subject_id", "session_id")


class PreprocessedStore(Store):
    """A dataset in nnssl's layout.

    Attributes:
        notes: messages about assumptions and excluded images.
        ours: bool (N,), whether an image was prepared by viewalign, with correctly named masks.
    """

    notes: tuple[str, ...] = ()
    ours: NDArray[np.bool_] = np.zeros(0, dtype=bool)

    def read_mask(
        self, k: int, kind: str, start: Corner | None = None, stop: Corner | None = None
    ) -> NDArray[np.bool_] | None:
        """Read a box of a mask of image k, true where it is above 0; see `Store.read_mask`."""
        if not self.has_mask(k, kind):
            return None
        swapped = not self.ours[k] and self.has_mask(k, _OTHER[kind])
        return np.asarray(self._read(k, MASK_FILES[_OTHER[kind] if swapped else kind], start, stop)[0] > 0)

    def properties(self, k: int) -> dict[str, Any]:
        """Return properties of image k: id, subject, shape and spacing, and more if it is ours."""
        if self.ours[k]:
            return super().properties(k)
        names = {"id": self.ids[k], "subject": self.subjects[k], "dataset": self.datasets[k]}
        return {**names, "shape": list(self.shape(k)), "spacing": list(self.spacing(k))}

    def _check(self, k: int) -> None:
        """Compare image k with its checksums, which images that nnssl prepared do not have."""
        if self.ours[k]:
            super()._check(k)


_Place = tuple[str, str, str, str]
"""Dataset, subject, session and name of an image."""


@dataclass(frozen=True)
class _Entry:
    row: Row
    ours: bool


def open_preprocessed(folder: Path, plans_name: str, configuration: str) -> PreprocessedStore:
    """Open a dataset in nnssl's layout.

    Args:
        folder: `$nnssl_preprocessed/DatasetXXX_Name`.
        plans_name: name of the plans, such as "nnsslPlans".
        configuration: "onemmiso", "median" or "noresample".

    Raises:
        UserError: no plans, no such configuration, or no readable image.
    """
    plans = read_plans(folder, plans_name, configuration)
    settings = plans.configurations[configuration]
    root = folder / plans.images_folder(configuration)
    notes: list[str] = []
    arrays = sorted(root.glob("*/*/*/*/*.b2nd"))
    listed = _listed(folder / listed_file(configuration), notes)
    found = list(_entries(folder, arrays, settings, plans.fingerprint(configuration), listed, notes))
    if not found:
        why = "has no readable image" if root.is_dir() else "does not exist"
        raise UserError(
            f"There are no preprocessed images in $nnssl_preprocessed for {configuration}: {root} {why}. "
            f"{creation_hint(folder.name, configuration)}"
        )
    _note_missing(listed, arrays, listed_file(configuration), notes)
    split = read_split(folder)
    found = _in_split(found, split, notes)
    columns = {name: [getattr(entry.row, name) for entry in found] for name in INDEX_COLUMNS}
    recipe = {
        "spacing": list(settings.spacing) if settings.spacing else None,
        "normalise": _normalisation(settings),
        "dtype": "float32",
        "nnssl_plans": plans.single(configuration, ()),
    }
    store = PreprocessedStore(folder, {"recipe": recipe}, columns)
    store.ours = np.array([entry.ours for entry in found], dtype=bool)
    store.held_out = None if split is None else split.validation
    _note_assumptions(store, settings, configuration, notes)
    store.notes = tuple(notes)
    return store


def _note_assumptions(store: PreprocessedStore, settings: Configuration, configuration: str, notes: list[str]) -> None:
    foreign = [k for k in range(len(store)) if not store.ours[k]]
    if settings.spacing is None and foreign:
        notes.append(
            f"{configuration} keeps each image's voxel size, which is only in the pickles of "
            f"{counted(len(foreign), 'image')}; 1 mm is assumed."
        )
    both = sum(all(store.has_mask(k, kind) for kind in MASK_FILES) for k in foreign)
    if both:
        notes.append(
            f"{counted(both, 'image has', 'images have')} both masks, which nnssl stores under swapped names; they are "
            "read accordingly."
        )


def _normalisation(settings: Configuration) -> str:
    if not settings.normalised:
        return "none"
    return "foreground" if settings.use_mask_for_norm == (True,) else "zscore"


def _entries(
    folder: Path,
    arrays: Sequence[Path],
    settings: Configuration,
    fingerprint: str,
    listed: Sequence[_Place],
    notes: list[str],
) -> Iterator[_Entry]:
    """Yield complete images; those with our JSON file are ours, and are left out if a list does not name them."""
    wanted = {key for place in listed for key in _keys(place)}
    names = {str(path) for path in arrays}
    masks = {path[: -len(".b2nd")] + suffix for path in names for suffix in MASK_FILES.values()}
    foreign, outdated, unlisted = [], 0, 0
    for path in arrays:
        if str(path) in masks:
            continue
        relative = path.relative_to(folder).as_posix().removesuffix(".b2nd")
        facts = done_properties(folder, relative)
        if facts is not None and wanted and _key(path) not in wanted:
            unlisted += 1
        elif facts is not None:
            outdated += facts["recipe_hash"] != fingerprint
            yield _Entry(_our_row(relative, facts), True)
        else:
            foreign.append(path)
    if outdated:
        notes.append(f"Images prepared by other plans: {outdated:,}; run nnssl_preprocess to update them.")
    if unlisted:
        notes.append(f"Left out, because the dataset does not name them any more: {counted(unlisted, 'image')}.")
    spacing = settings.spacing or (1.0, 1.0, 1.0)
    yield from _foreign(folder, _chosen(folder, foreign, notes), spacing, notes)


def _our_row(relative: str, facts: Mapping[str, Any]) -> Row:
    masks = {kind: suffix in facts["files"] for kind, suffix in MASK_FILES.items()}
    return Row(
        id=facts["id"],
        path=relative,
        subject=facts["subject"],
        dataset=facts["dataset"],
        modality=facts["modality"],
        shape=tuple(facts["shape"]),
        spacing=tuple(facts["spacing"]),
        foreground_threshold=facts["foreground_threshold"],
        anonymisation=masks["anonymisation"],
        anatomy=masks["anatomy"],
    )


def _chosen(folder: Path, images: list[Path], notes: list[str]) -> list[Path]:
    """Return nnssl's images that are in `valid_imgs.json`."""
    valid = _valid_images(folder / VALID, notes) if images else None
    if valid is None:
        return images
    kept = [path for path in images if _key(path) in valid]
    if images and not kept:
        notes.append("valid_imgs.json names none of the images, and is ignored.")
        return images
    if len(kept) < len(images):
        notes.append(f"Excluded, because not in valid_imgs.json: {counted(len(images) - len(kept), 'image')}.")
    return kept


def _listed(path: Path, notes: list[str]) -> list[_Place]:
    """Return the images of the list that a preparation writes; none if there is no valid one."""
    try:
        return read_listed(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        notes.append(f"{path.name} is invalid ({type(problem).__name__}: {problem}), and is ignored.")
        return []


def _note_missing(listed: Sequence[_Place], arrays: Sequence[Path], name: str, notes: list[str]) -> None:
    """Report missing images of nnssl's list, which also contains those whose preparation failed."""
    there = {_key(array) for array in arrays}
    gone = [place for place in listed if there.isdisjoint(_keys(place))]
    if gone:
        notes.append(f"{len(gone)} of the {len(listed)} images in {name} are missing, such as {'/'.join(gone[0])}.")


def _valid_images(path: Path, notes: list[str]) -> set[tuple[str, ...]] | None:
    """Return (dataset, subject, session, image) of each record; None if there is no valid list."""
    if not path.is_file():
        return None
    try:
        records = read_json(path)
        records = list(records.values()) if isinstance(records, dict) else records
        return {(*(str(record[k]) for k in _RECORD_KEYS), name) for record in records for name in _names(record)}
    except (OSError, ValueError, TypeError, KeyError) as problem:
        notes.append(f"valid_imgs.json is invalid ({type(problem).__name__}: {problem}), and is ignored.")
        return None


def _names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that the array of a record may have."""
    return _without_suffix(str(record["name"] if "name" in record else record["image_name"]))


def _key(array: Path) -> _Place:
    """Return the place of an array by its path."""
    dataset, subject, session = array.parts[-4:-1]
    return dataset, subject, session, array.stem


def _keys(place: _Place) -> set[_Place]:
    """Return the places that the array of a listed image may have."""
    return {(*place[:3], name) for name in _without_suffix(place[3])}


def _without_suffix(name: str) -> tuple[str, ...]:
    """Return an image's name with and without file extension; the array may have either."""
    suffix = suffix_of(name)
    return (name, name[: -len(suffix)]) if suffix else (name,)


def _foreign(folder: Path, files: Sequence[Path], spacing: tuple[float, ...], notes: list[str]) -> Iterator[_Entry]:
    excluded = []
    for path in files:
        shape = _shape(path)
        if shape is None:
            excluded.append(path)
            continue
        relative = path.relative_to(folder).as_posix().removesuffix(".b2nd")
        names = (*path.parts[-5:-1], path.stem)
        row = Row(
            id="__".join(names),
            path=relative,
            subject="__".join(names[:3]),
            dataset=names[1],
            modality="unknown",
            shape=shape,
            spacing=spacing,
            foreground_threshold=0.0,
            anonymisation=beside(folder, relative, MASK_FILES["anonymisation"]).is_file(),
            anatomy=beside(folder, relative, MASK_FILES["anatomy"]).is_file(),
        )
        yield _Entry(row, False)
    if excluded:
        notes.append(f"Excluded as damaged or not 3D: {counted(len(excluded), 'image')}, such as {excluded[0]}.")


def _shape(path: Path) -> tuple[int, ...] | None:
    """Return (Z, Y, X) from an array's header; None if it is not 3D."""
    try:
        shape = tuple(int(n) for n in blosc2.open(str(path), mode="r").shape)
    except (OSError, RuntimeError, ValueError, AttributeError):
        return None
    return shape[1:] if len(shape) == 4 and min(shape) > 0 else None


def _in_split(found: list[_Entry], split: Split | None, notes: list[str]) -> list[_Entry]:
    """Exclude images of subjects that are in neither part of the dataset's split."""
    if split is None:
        return found
    everyone = split.train | split.validation
    kept = [entry for entry in found if entry.row.subject in everyone]
    if not any(entry.row.subject in split.train for entry in kept):
        raise UserError(
            f"{SPLITS} of the dataset names no training subject with images. Remove it to create a new one."
        )
    if len(kept) < len(found):
        notes.append(f"Excluded, because of subjects not in {SPLITS}: {counted(len(found) - len(kept), 'image')}.")
    return kept
