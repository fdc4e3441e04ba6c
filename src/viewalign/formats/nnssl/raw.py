"""A raw dataset of nnssl's: `$nnssl_raw/DatasetXXX_Name/pretrain_data.json`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from viewalign.volumes.catalogue import AssociatedMasks, Collection, write_catalogue

CATALOGUE = "pretrain_data.json"


def write_raw_dataset(root: Path, name: str, catalogue: Collection) -> Path:
    """Write a catalogue as a raw dataset and return the file; no image is copied.

    What lies below `root` is written as `$nnssl_raw/…`, so that the folder may move; other paths stay as they are.

    Args:
        root: the folder of the variable.
        name: such as "Dataset745_OpenMind".
        catalogue: with absolute paths.
    """
    for dataset in catalogue.datasets.values():
        for subject in dataset.subjects.values():
            for session in subject.sessions.values():
                session.images = [
                    replace(
                        image,
                        image_path=_portable(image.image_path, root),
                        associated_masks=_portable_masks(image.associated_masks, root),
                    )
                    for image in session.images
                ]
    path = root / name / CATALOGUE
    write_catalogue(catalogue, path)
    return path


def _portable_masks(masks: AssociatedMasks | None, root: Path) -> AssociatedMasks | None:
    if masks is None:
        return None
    paths = (masks.anonymization_mask, masks.anatomy_mask)
    return AssociatedMasks(*(path and _portable(path, root) for path in paths))


def _portable(written: str, root: Path) -> str:
    path, base = Path(written), root.absolute()
    return f"$nnssl_raw/{path.relative_to(base).as_posix()}" if path.is_relative_to(base) else written
