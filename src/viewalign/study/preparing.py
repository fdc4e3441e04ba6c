"""The images that all arms are pretrained on: a store that is there, or one that the study prepares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viewalign.locks import locked
from viewalign.study.digests import digest_of
from viewalign.study.labelled import first_there
from viewalign.study.settings import DataSettings, SourceSettings
from viewalign.volumes.catalogue import write_catalogue
from viewalign.volumes.indexing import index_sources
from viewalign.volumes.prepare import prepare_catalogue
from viewalign.volumes.recipe import PrepareSettings
from viewalign.volumes.store import Store


def will_be_prepared(data: DataSettings, root: Path) -> Mapping[str, Any]:
    """Return how the images are prepared, or will be."""
    if data.source is None:
        return Store.open(root / (data.store or "")).recipe
    return PrepareSettings.model_validate(data.source.prepare).model_dump(mode="json")


def prepared_store(data: DataSettings, root: Path, out: Path) -> Path:
    """Return the store, after preparing what is missing of it; other processes of the study wait for that."""
    if data.source is None:
        return root / (data.store or "")
    source = data.source
    folder = first_there(root, source.folder)
    files = [[path.name, path.stat().st_size] for pattern in source.only or ["*"] for path in folder.glob(pattern)]
    place = out / "data" / digest_of([source.prepare, sorted(files)])
    if not (place / "store" / "index.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        with locked(place / ".lock", math.inf):
            if not (place / "store" / "index.json").is_file():
                _prepare(source, folder, place)
    return place / "store"


def _prepare(source: SourceSettings, folder: Path, place: Path) -> None:
    index = index_sources([str(folder / pattern) for pattern in source.only] or [str(folder)])
    write_catalogue(index.collection, place / "catalogue.json")
    prepare_catalogue(place / "catalogue.json", place / "store", PrepareSettings.model_validate(source.prepare))
