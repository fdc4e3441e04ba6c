"""nnssl's lists of a preprocessed dataset: its images, and training and validation subjects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from viewalign.compat.nnssl.folders import MASK_FILES, SPLITS, VALID
from viewalign.data.catalogue import AssociatedMasks, Collection, Dataset, Image, Session, Subject, write_catalogue
from viewalign.data.layout import read_json, write_json
from viewalign.errors import UserError


@dataclass(frozen=True)
class Split:
    """Training and validation subjects, as `collection__dataset__subject`."""

    train: frozenset[str]
    validation: frozenset[str]


def write_prepared(
    folder: Path, images: str, configuration: str, catalogue: Collection, done: Mapping[str, str]
) -> None:
    """Write `pretrain_data__<configuration>.json` and `valid_imgs.json` with the prepared images.

    Args:
        folder: `$nnssl_preprocessed/DatasetXXX_Name`.
        images: name of the folder with prepared images in it.
        configuration: its name.
        catalogue: of the raw dataset.
        done: path (`folders.image_place`) of each complete image, by id.
    """
    kept = Collection(catalogue.collection_index, catalogue.collection_name)
    for (key, dataset), (subject_id, subject), (session_id, session), image in _walk(catalogue):
        place = done.get("__".join((catalogue.collection_name, key, subject_id, session_id, image.name)))
        if place is None:
            continue
        into = kept.datasets.setdefault(key, replace(dataset, subjects={}))
        whose = into.subjects.setdefault(subject_id, replace(subject, sessions={}))
        visit = whose.sessions.setdefault(session_id, replace(session, images=[]))
        visit.images.append(_moved(image, f"$nnssl_preprocessed/{folder.name}/{images}/{place}"))
    write_catalogue(kept, folder / listed_file(configuration))
    write_json(folder / VALID, [_flat(kept, *item) for item in _walk(kept)])


def write_part(folder: Path, configuration: str, part: int, parts: int, places: Iterable[str]) -> bool:
    """Write the list of a configuration's part; return whether those of all parts exist.

    Lists with another number of parts are removed when all exist.
    """
    write_json(part_file(folder, configuration, part, parts), sorted(places))
    ours = {part_file(folder, configuration, number, parts) for number in range(parts)}
    if not all(path.is_file() for path in ours):
        return False
    for path in folder.glob(f"valid_imgs__{configuration}__*_of_*.json"):
        if path not in ours:
            path.unlink(missing_ok=True)
    return True


def part_file(folder: Path, configuration: str, part: int, parts: int) -> Path:
    """Return the file that is written when a part of a configuration is complete."""
    return folder / f"valid_imgs__{configuration}__{part}_of_{parts}.json"


def listed_file(configuration: str) -> str:
    """Return the name of the list of a configuration's images."""
    return f"pretrain_data__{configuration}.json"


def read_listed(path: Path) -> list[tuple[str, str, str, str]]:
    """Return (dataset, subject, session, image) of each image in a list of prepared images; none if there is no list.

    Raises:
        OSError, ValueError, TypeError, KeyError, AttributeError: it cannot be read.
    """
    if not path.is_file():
        return []
    return [
        (str(dataset), str(subject), str(session), str(image["name"]))
        for dataset, inside in read_json(path)["datasets"].items()
        for subject, whose in inside["subjects"].items()
        for session, visit in whose["sessions"].items()
        for image in visit["images"]
    ]


def read_split(folder: Path) -> Split | None:
    """Read `splits_final.json`, or return None if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / SPLITS
    try:
        split = read_json(path)
        return Split(frozenset(map(str, split["train"])), frozenset(map(str, split["val"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise UserError(
            f"{path} cannot be used ({type(problem).__name__}: {problem}). Remove it to create a new one."
        ) from None


def write_split(folder: Path, split: Split) -> None:
    """Write `splits_final.json`, for later runs and nnssl."""
    write_json(folder / SPLITS, {"train": sorted(split.train), "val": sorted(split.validation)})


_Item = tuple[tuple[str, Dataset], tuple[str, Subject], tuple[str, Session], Image]


def _walk(catalogue: Collection) -> Iterator[_Item]:
    for dataset in catalogue.datasets.items():
        for subject in dataset[1].subjects.items():
            for session in subject[1].sessions.items():
                for image in session[1].images:
                    yield dataset, subject, session, image


def _moved(image: Image, path: str) -> Image:
    """Return an image with the paths of the prepared arrays, without extension, as written by nnssl."""
    masks = image.associated_masks
    if masks is not None:
        anonymisation, anatomy = (f"{path}{MASK_FILES[kind].removesuffix('.b2nd')}" for kind in MASK_FILES)
        masks = AssociatedMasks(
            anonymisation if masks.anonymization_mask else None, anatomy if masks.anatomy_mask else None
        )
    return replace(image, image_path=path, associated_masks=masks)


def _flat(
    catalogue: Collection,
    dataset: tuple[str, Dataset],
    subject: tuple[str, Subject],
    session: tuple[str, Session],
    image: Image,
) -> dict[str, Any]:
    return {
        "collection_index": catalogue.collection_index,
        "collection_name": catalogue.collection_name,
        "dataset_index": dataset[0],
        "dataset_name": dataset[1].name,
        "subject_id": subject[0],
        "subject_info": subject[1].subject_info,
        "session_id": session[0],
        "session_info": session[1].session_info,
        **asdict(image),
    }
