"""Catalogues of images: collection → dataset → subject → session → image.

On disk a catalogue is `pretrain_data.json` as nnssl reads and writes it, so that both use the same file. A path in it
may start with `$VARIABLE/` (expanded from the environment) and is otherwise relative to the folder of the JSON file.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from viewalign.data.readers.dicom_stacks import Rejected, Stack
from viewalign.errors import UserError, os_reason
from viewalign.utils.io import write_text
from viewalign.utils.overrides import similar

DEFAULT_SESSION = "ses-DEFAULT"
Info = dict[str, Any] | None


@dataclass(frozen=True)
class AssociatedMasks:
    """Paths, as written, of the masks on an image's voxels; None if there is no such mask."""

    anonymization_mask: str | None = None
    anatomy_mask: str | None = None


@dataclass(frozen=True)
class Image:
    """One file. `name` is unique within its session; `image_path` is kept as written."""

    name: str
    image_path: str
    modality: str
    image_info: Info = None
    associated_masks: AssociatedMasks | None = None


@dataclass
class Session:
    """One visit of a subject."""

    session_id: int | str
    session_info: Info = None
    images: list[Image] = field(default_factory=list)


@dataclass
class Subject:
    """One person or animal, with sessions by id."""

    subject_id: str
    subject_info: Info = None
    sessions: dict[str, Session] = field(default_factory=dict)


@dataclass
class Dataset:
    """Images of one origin, with subjects by id."""

    dataset_index: int | str
    name: str | None = None
    dataset_info: Info = None
    subjects: dict[str, Subject] = field(default_factory=dict)


@dataclass(frozen=True)
class SeriesSource:
    """Further sources of a DICOM image, besides the folder of the file that names it.

    Attributes:
        folders: further folders with slices of its series.
        output: which of dcm2niix's images of the series it is; None for one that is read directly.
        slices: the slices, if the headers of its folders are known; not part of a catalogue.
    """

    folders: tuple[Path, ...] = ()
    output: str | None = None
    slices: Stack | Rejected | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, info: Info, path: Path) -> SeriesSource | None:
        """Return the series in the info of an image; None if there is none."""
        folders, output = ((info or {}).get(key) for key in ("dicom_folders", "dcm2niix_output"))
        names = [name for name in folders if isinstance(name, str)] if isinstance(folders, list) else []
        if not names and not isinstance(output, str):
            return None
        return cls(
            tuple(Path(os.path.normpath(path.parent / name)) for name in names),
            output if isinstance(output, str) else None,
        )

    def as_info(self, path: Path) -> dict[str, Any]:
        """Return the form that `of` reads, with folders relative to that of a file."""
        folders = [Path(os.path.relpath(folder, path.parent)).as_posix() for folder in self.folders]
        info: dict[str, Any] = {"dicom_folders": folders} if folders else {}
        return info if self.output is None else {**info, "dcm2niix_output": self.output}


@dataclass(frozen=True)
class Record:
    """One image with its session, subject and dataset; paths are resolved.

    `image_id` is unique within a catalogue, `subject_id` identifies the subject across sessions; `units` are of PET.
    `channels` are the images that are stacked into this one, the first of which gives path and masks; usually none.
    """

    collection: str
    dataset: str
    subject: str
    session: str
    name: str
    path: Path
    modality: str
    anonymisation_mask: Path | None = None
    anatomy_mask: Path | None = None
    series: SeriesSource | None = None
    units: str = ""
    channels: tuple[Record, ...] = ()

    @property
    def image_id(self) -> str:
        """`collection__dataset__subject__session__image`."""
        return "__".join((self.collection, self.dataset, self.subject, self.session, self.name))

    @property
    def subject_id(self) -> str:
        """`collection__dataset__subject`."""
        return "__".join((self.collection, self.dataset, self.subject))


@dataclass
class Collection:
    """A whole catalogue: datasets by `str(dataset_index)`."""

    collection_index: int | str
    collection_name: str
    datasets: dict[str, Dataset] = field(default_factory=dict)

    def records(self, folder: Path | None = None) -> list[Record]:
        """Return every image in the order of the file; relative paths are in `folder` (default: working folder)."""
        with _collector_paused():
            return list(self._records(folder or Path.cwd()))

    def _records(self, base: Path) -> Iterator[Record]:
        for dataset_key, dataset in self.datasets.items():
            for subject_key, subject in dataset.subjects.items():
                for session_key, session in subject.sessions.items():
                    for image in session.images:
                        masks = image.associated_masks or AssociatedMasks()
                        path = resolve(image.image_path, base)
                        yield Record(
                            collection=self.collection_name,
                            dataset=dataset_key,
                            subject=subject_key,
                            session=session_key,
                            name=image.name,
                            path=path,
                            modality=image.modality,
                            anonymisation_mask=_resolve_optional(masks.anonymization_mask, base),
                            anatomy_mask=_resolve_optional(masks.anatomy_mask, base),
                            series=SeriesSource.of(image.image_info, path),
                            units=str((image.image_info or {}).get("units", "")),
                        )


def resolve(written: str, folder: Path) -> Path:
    """Return the path of a catalogue's entry, `$VARIABLE/` expanded and relative paths taken from `folder`.

    Raises:
        UserError: the environment variable is not set.
    """
    if written.startswith("$"):
        variable, _, rest = written[1:].partition("/")
        variable = variable.strip("{}")
        if variable not in os.environ:
            raise UserError(
                f"The catalogue has the path {written}, but the environment variable {variable} is not set."
            )
        return Path(os.environ[variable]) / rest
    return Path(os.path.normpath(folder / written))


def _resolve_optional(written: str | None, folder: Path) -> Path | None:
    return resolve(written, folder) if written else None


def write_catalogue(collection: Collection, path: Path) -> None:
    """Write `pretrain_data.json` atomically."""
    write_text(path, json.dumps(asdict(collection), indent=1, ensure_ascii=False) + "\n")


def read_catalogue(path: Path) -> Collection:
    """Read `pretrain_data.json`.

    Raises:
        UserError: no such file, invalid JSON, or a missing or unknown key; the message names the key and its position.
    """
    with _collector_paused():
        return _collection(_read_json(path), str(path))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector, which takes most of the time while hundreds of thousands of objects are created."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_json(path: Path) -> object:
    try:
        raw: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.suffix != ".json":
            raise UserError(f"There is no folder or catalogue {path}.") from None
        near = similar(path.name, [one.name for one in path.parent.glob("*.json")])
        raise UserError(
            f"There is no catalogue {path}{near}. Make one with `viewalign index FOLDER -o {path}`."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a catalogue: it is not valid JSON ({error}).") from None
    except OSError as error:
        raise UserError(f"The catalogue {path} cannot be read: {os_reason(error)}.") from None
    return raw


def _collection(raw: object, where: str) -> Collection:
    if isinstance(raw, dict) and "datasets" not in raw:
        raise UserError(
            f"{where} is not a catalogue: it has no key `datasets`. Name a folder of images, or a catalogue."
        )
    known = _keys(raw, where, {"collection_index", "collection_name", "datasets"}, set())
    datasets = _mapping(known["datasets"], f"{where}, datasets")
    return Collection(
        known["collection_index"],
        str(known["collection_name"]),
        {key: _dataset(value, f"{where}, dataset {key}") for key, value in datasets.items()},
    )


def _dataset(raw: object, where: str) -> Dataset:
    known = _keys(raw, where, {"dataset_index", "subjects"}, {"name", "dataset_info"})
    subjects = _mapping(known["subjects"], f"{where}, subjects")
    return Dataset(
        known["dataset_index"],
        known.get("name"),
        known.get("dataset_info"),
        {key: _subject(key, value, f"{where}, subject {key}") for key, value in subjects.items()},
    )


def _subject(key: str, raw: object, where: str) -> Subject:
    known = _keys(raw, where, {"sessions"}, {"subject_id", "subject_info"})
    sessions = _mapping(known["sessions"], f"{where}, sessions")
    return Subject(
        known.get("subject_id", key),
        known.get("subject_info"),
        {name: _session(name, value, f"{where}, session {name}") for name, value in sessions.items()},
    )


def _session(key: str, raw: object, where: str) -> Session:
    known = _keys(raw, where, {"images"}, {"session_id", "session_info"})
    if not isinstance(known["images"], list):
        raise UserError(f"{where}: `images` must be a list.")
    images = [_image(value, f"{where}, image {number}") for number, value in enumerate(known["images"])]
    return Session(known.get("session_id", key), known.get("session_info"), images)


def _image(raw: object, where: str) -> Image:
    known = _keys(raw, where, {"name", "image_path", "modality"}, {"image_info", "associated_masks"})
    for key in ("name", "image_path", "modality"):
        if not isinstance(known[key], str):
            raise UserError(f"{where}: `{key}` must be a text, not {known[key]!r}.")
        if "\0" in known[key]:
            raise UserError(f"{where}: `{key}` contains a NUL character.")
    masks = known.get("associated_masks")
    if masks is not None:
        _keys(masks, f"{where}, associated_masks", {"anonymization_mask", "anatomy_mask"}, set())
        masks = AssociatedMasks(**masks)
    return Image(known["name"], known["image_path"], known["modality"], known.get("image_info"), masks)


def _mapping(raw: object, where: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be an object in braces, not a {type(raw).__name__}.")
    return raw


def _keys(raw: object, where: str, needed: set[str], optional: set[str]) -> Mapping[str, Any]:
    mapping = _mapping(raw, where)
    missing = sorted(needed - mapping.keys())
    if missing:
        raise UserError(f"{where}: the key `{missing[0]}` is missing.")
    unknown = sorted(mapping.keys() - needed - optional)
    if unknown:
        raise UserError(f"{where}: the key `{unknown[0]}` is unknown. Known: {', '.join(sorted(needed | optional))}.")
    return mapping
