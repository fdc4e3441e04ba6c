"""nnssl's `pretrain_data.json`, or a catalogue of viewalign: subjects, sessions, infos and masks are kept."""

from __future__ import annotations

from pathlib import Path

from viewalign.data.catalogue import AssociatedMasks, Image, SeriesSource, read_catalogue, resolve
from viewalign.data.sources.records import FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.walk import absolute
from viewalign.utils.io import is_file


def can_read(text: str) -> bool:
    """Accept a file whose name ends in `.json`."""
    return Path(text).suffix.lower() == ".json" and is_file(Path(text))


def find(text: str, options: FindOptions) -> SourceContents:  # noqa: ARG001 - nothing is inferred
    """List the images of a catalogue.

    Raises:
        UserError: not a catalogue, or a variable in a path is not set.
    """
    path = absolute(text)
    collection = read_catalogue(path)
    findings = SourceContents(collection=(collection.collection_index, collection.collection_name))
    for dataset_key, dataset in collection.datasets.items():
        for subject_key, subject in dataset.subjects.items():
            for session_key, session in subject.sessions.items():
                for image in session.images:
                    where = resolve(image.image_path, path.parent)
                    record = ImageRecord(
                        where,
                        dataset_key,
                        subject_key,
                        session_key,
                        image.name,
                        image.modality,
                        _masks(image, path.parent),
                        Infos(dataset.dataset_info, subject.subject_info, session.session_info, image.image_info),
                        image.image_path if image.image_path.startswith("$") else None,
                        series=SeriesSource.of(image.image_info, where),
                    )
                    findings.found.append(record)
    return findings


def _masks(image: Image, folder: Path) -> AssociatedMasks | None:
    masks = image.associated_masks
    if masks is None:
        return None
    written = (masks.anonymization_mask, masks.anatomy_mask)
    kept = (text if not text or text.startswith("$") else str(resolve(text, folder)) for text in written)
    return AssociatedMasks(*kept)
