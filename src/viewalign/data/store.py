"""A prepared dataset on disk, read box by box.

```python
store = Store.open("store")
box = store.read(0, start=(10, 20, 30), stop=(58, 68, 78))  # float32 (1, 48, 48, 48)
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from viewalign.data.columns import INDEX_COLUMNS, OPTIONAL_COLUMNS, Row, TextColumn, write_index
from viewalign.data.layout import (
    MASK_KINDS,
    STORE_FORMAT,
    STORE_VERSION,
    beside,
    entry_path,
    read_json,
    write_entry,
    write_json,
)
from viewalign.data.quantization import dequantize
from viewalign.data.verification import CheckedImages, image_damage
from viewalign.errors import ExcludedImageError, UserError, os_reason
from viewalign.utils.memory import memory_bytes

_BYTES = 8
"""Bytes per voxel while reading: stored numbers and float32 values are in memory together."""
_FITS_ANYWHERE = 2**24
"""Voxels of a box for which the memory is not looked up, 128 MB."""
Corner = Sequence[int] | NDArray[np.integer[Any]]


class Store:
    """A prepared dataset, opened for reading. Images are numbered by their sorted ids.

    It has one compact table and no open file, so that it is cheap to copy into workers. Before an image is read for the
    first time, by this process or one forked from it, its files are compared with their checksums.

    Attributes:
        path: the store's folder.
        ids: image ids.
        subjects: subject id of each image.
        groups: subject id of each image, the same one for subjects that share copies of an image; a split keeps it on
            one side.
        datasets: dataset of each image.
        modalities: modality of each image.
        shapes: int32 (N, 3), voxels along (D, H, W).
        spacings: float32 (N, 3), mm along (D, H, W).
        foreground_thresholds: float32 (N,), in the units of the voxels read.
        channels: int32 (N,).
        quality: float32 (N,), the catalogue's quality score, NaN if there is none.
        recipe: settings the store was made with.
        held_out: validation subjects of the dataset; None if the run chooses them.
    """

    held_out: frozenset[str] | None = None

    def __init__(self, path: Path, header: Mapping[str, Any], columns: Mapping[str, list[Any]]) -> None:
        count = len(columns["id"])
        columns = {**{name: [value] * count for name, value in OPTIONAL_COLUMNS.items()}, **columns}
        self.path = path
        self.recipe: dict[str, Any] = dict(header.get("recipe") or {})
        self.recipe_hash: str = str(header.get("recipe_hash", ""))
        self.ids = TextColumn(columns["id"])
        self.subjects = TextColumn(columns["subject"])
        linked = any(group is not None for group in columns["group"])
        pairs = zip(columns["group"], columns["subject"], strict=True)
        self.groups = TextColumn(group or subject for group, subject in pairs) if linked else self.subjects
        self.datasets = TextColumn(columns["dataset"])
        self.modalities = TextColumn(columns["modality"])
        self.shapes = np.array(columns["shape"], dtype=np.int32).reshape(-1, 3)
        self.spacings = np.array(columns["spacing"], dtype=np.float32).reshape(-1, 3)
        self.foreground_thresholds = np.array(columns["foreground_threshold"], dtype=np.float32)
        self._paths = TextColumn(columns["path"])
        self.channels = np.array(columns["channels"], dtype=np.int32)
        self.quality = np.array(columns["quality"], dtype=np.float32)
        self._scales = _by_channel(columns["scale"], 1.0)
        self._offsets = _by_channel(columns["offset"], 0.0)
        self._masks = {kind: np.array(columns[kind], dtype=bool) for kind in MASK_KINDS}
        self._checked = CheckedImages(count)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store.

        Raises:
            UserError: no store, an unfinished one, or one of a newer version.
        """
        folder = Path(path)
        header = read_store_header(folder)
        if header is None:
            if (folder / "config.yaml").is_file():
                raise UserError(f"{folder} is a run, not a store; name the store that `viewalign prepare` wrote.")
            if folder.exists():
                raise UserError(
                    f"{folder} is not a store. Make one of images or of a catalogue: "
                    f"`viewalign prepare {folder} -o store`."
                )
            raise UserError(f"There is no store {folder}. Make one with `viewalign prepare CATALOGUE -o {folder}`.")
        try:
            columns = dict(read_json(folder / "index.json"))
            missing = [name for name in INDEX_COLUMNS if name not in columns]
        except FileNotFoundError:
            raise UserError(
                f"The store {folder} was not finished. Run the same `viewalign prepare` again; it does what is missing."
            ) from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"The index of the store {folder} cannot be read: {os_reason(error)}.") from None
        if missing:
            raise UserError(f"The index of the store {folder} lacks the column `{missing[0]}`.")
        try:
            if len({len(values) for values in columns.values()}) != 1:
                raise ValueError("its columns have different lengths")
            return cls(folder, header, columns)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(
                f"The index of the store {folder} is damaged: {error}. Run the same `viewalign prepare` again; it "
                "writes a new index."
            ) from None

    def __len__(self) -> int:
        return len(self.ids)

    def shape(self, k: int) -> tuple[int, int, int]:
        """Return the voxels of image k along (D, H, W)."""
        d, h, w = (int(n) for n in self.shapes[k])
        return d, h, w

    def spacing(self, k: int) -> tuple[float, float, float]:
        """Return the voxel size of image k in mm along (D, H, W)."""
        d, h, w = (float(size) for size in self.spacings[k])
        return d, h, w

    def foreground_threshold(self, k: int) -> float:
        """Return the value of image k above which a voxel is foreground (Otsu)."""
        return float(self.foreground_thresholds[k])

    def has_mask(self, k: int, kind: str) -> bool:
        """Return whether image k has an `anonymisation` or `anatomy` mask."""
        return bool(self._masks[kind][k])

    def read(self, k: int, start: Corner | None = None, stop: Corner | None = None) -> NDArray[np.float32]:
        """Read a box of image k, decompressing only the blocks it touches.

        Args:
            k: number of the image.
            start: first voxel (D, H, W); default the volume's first.
            stop: voxel after the last (D, H, W); default the volume's end.

        Returns:
            float32 (C, d, h, w); C is 1 for prepared images.

        Raises:
            ValueError: the box is empty or reaches outside the volume.
            ExcludedImageError: the array is missing or damaged.
        """
        stored = self._read(k, ".b2nd", start, stop)
        if stored.dtype.kind == "i":
            count = len(stored)
            return dequantize(stored, self._scales[k, :count], self._offsets[k, :count])
        return np.asarray(stored, dtype=np.float32)

    def read_mask(
        self, k: int, kind: str, start: Corner | None = None, stop: Corner | None = None
    ) -> NDArray[np.bool_] | None:
        """Read a box of a mask of image k: bool (d, h, w), true inside the mask; None without one.

        Args:
            k: number of the image.
            kind: `anonymisation` or `anatomy`.
            start: first voxel (D, H, W); default the volume's first.
            stop: voxel after the last (D, H, W); default the volume's end.

        Raises:
            ValueError: the box is empty or reaches outside the volume.
            ExcludedImageError: the array is missing or damaged.
        """
        if not self.has_mask(k, kind):
            return None
        return np.asarray(self._read(k, f".{kind}.b2nd", start, stop)[0] != 0)

    def properties(self, k: int) -> dict[str, Any]:
        """Return geometry, history and statistics of image k.

        Raises:
            ExcludedImageError: they are missing or damaged.
        """
        try:
            return dict(read_json(beside(self.path, self._paths[k], ".json")))
        except (OSError, ValueError, TypeError) as error:
            raise ExcludedImageError(f"the properties of {self.ids[k]} cannot be read: {os_reason(error)}") from None

    def _check(self, k: int) -> None:
        """Compare the files of image k with their checksums.

        Raises:
            ExcludedImageError: they are damaged.
        """
        for path, reason in image_damage(beside(self.path, self._paths[k], ".json")):
            raise ExcludedImageError(f"{self.ids[k]}: the stored file {path} cannot be used: {reason}")

    def _read(self, k: int, suffix: str, start: Corner | None, stop: Corner | None) -> NDArray[Any]:
        shape = self.shape(k)
        low = tuple(int(n) for n in start) if start is not None else (0, 0, 0)
        high = tuple(int(n) for n in stop) if stop is not None else shape
        if not all(0 <= a < b <= n for a, b, n in zip(low, high, shape, strict=True)):
            raise ValueError(f"the box {low} to {high} is empty or reaches outside the volume {shape}")
        path = beside(self.path, self._paths[k], suffix)
        wanted = (int(self.channels[k]) if suffix == ".b2nd" else 1, *shape)
        try:
            if k not in self._checked:
                self._check(k)
                self._checked.add(k)
            array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
            if tuple(array.shape) != wanted:
                raise ValueError(f"its shape is {tuple(array.shape)}, the index says {wanted}")
            _check_size(wanted[0] * int(np.prod([b - a for a, b in zip(low, high, strict=True)], dtype=object)))
            return np.asarray(array[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))])
        except (OSError, RuntimeError, ValueError) as error:
            raise ExcludedImageError(
                f"{self.ids[k]}: the stored array {path} cannot be read: {os_reason(error)}"
            ) from None


def _check_size(voxels: int) -> None:
    """Check that a box fits into memory, since a small file can claim any size.

    Raises:
        ValueError: it is too large.
    """
    if voxels <= _FITS_ANYWHERE:  # looking up the memory takes a tenth of a read
        return
    limit = memory_bytes() // _BYTES
    if voxels > limit:
        raise ValueError(f"it claims {voxels:,} voxels; the limit of this machine is {limit:,}")


def _by_channel(values: Sequence[Sequence[float]], filling: float) -> NDArray[np.float32]:
    """Return (N, C) for the largest number of channels."""
    most = max((len(each) for each in values), default=1)
    if all(len(each) == most for each in values):
        return np.array(values, dtype=np.float32).reshape(-1, most)
    return np.array([[*each, *[filling] * (most - len(each))] for each in values], dtype=np.float32)


def read_store_header(folder: Path) -> dict[str, Any] | None:
    """Return the content of `store.json`, or None without one.

    Raises:
        UserError: it is damaged, of another kind, or of a newer version.
    """
    path = folder / "store.json"
    try:
        header = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {os_reason(error)}.") from None
    if not isinstance(header, dict) or header.get("format") != STORE_FORMAT:
        raise UserError(f"{path} does not describe a store of viewalign.")
    version, recipe = header.get("version", 0), header.get("recipe")
    if not isinstance(version, int) or not isinstance(recipe, dict | None):
        raise UserError(f"{path} is damaged: `version` must be a whole number, and `recipe` an object or null.")
    if version > STORE_VERSION:
        raise UserError(
            f"The store {folder} has version {header['version']}, but this viewalign reads only up to {STORE_VERSION}. "
            "Upgrade viewalign."
        )
    return header


def store_from_arrays(
    path: str | Path,
    arrays: Mapping[str, NDArray[Any]],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    masks: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
) -> Store:
    """Write arrays unchanged into a new store and open it; for tests and examples.

    Args:
        path: folder, created if missing.
        arrays: by image name; (D, H, W) or (C, D, H, W), stored as float32. Each is a separate subject.
        spacing: mm along (D, H, W), the same for all.
        masks: by image name, then by kind (`anonymisation`, `anatomy`): (D, H, W), non-zero inside.
    """
    folder = Path(path)
    rows = []
    for name, values in arrays.items():
        array = np.asarray(values, dtype=np.float32)
        array = array[None] if array.ndim == 3 else array
        kept = {kind: (np.asarray(mask) != 0).astype(np.uint8) for kind, mask in (masks or {}).get(name, {}).items()}
        properties = {
            "id": f"arrays__arrays__{name}__ses-DEFAULT__{name}",
            "subject": f"arrays__arrays__{name}",
            "dataset": "arrays",
            "modality": "unknown",
            "shape": list(array.shape[1:]),
            "channels": len(array),
            "spacing": list(spacing),
            "foreground_threshold": float(array[0].mean()),
        }
        relative = entry_path("arrays", name, "ses-DEFAULT", name)
        write_entry(folder, relative, array, properties, kept)
        rows.append(Row.of(relative, {**properties, "files": {f".{kind}.b2nd": 0 for kind in kept}}))
    write_json(folder / "store.json", {"format": STORE_FORMAT, "version": STORE_VERSION, "recipe": None})
    write_index(folder, rows)
    write_json(folder / "report.json", {"prepared": len(rows), "excluded": []})
    return Store.open(folder)
