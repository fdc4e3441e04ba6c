from __future__ import annotations

from pathlib import Path

import pytest

from viewalign.data.catalogue import Collection, Dataset, Image, Session, Subject
from viewalign.data.inputs import quality_scores
from viewalign.data.prepare import prepare_records
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store


def collection(images: list[Image], scores: object) -> Collection:
    subject = Subject("p", None, {"s": Session("s", None, images)})
    return Collection(1, "c", {"d": Dataset("d", "d", {"image_quality_score": scores}, {"p": subject})})


def test_scores_are_of_a_modality_and_a_source() -> None:
    images = [
        Image("a", "a.nii.gz", "T1w", {"derived_from": "raw"}),
        Image("b", "b.nii.gz", "T1w", {"derived_from": "other"}),
        Image("c", "c.nii.gz", "FLAIR"),
        Image("d", "d.nii.gz", "T2w", {"image_quality_score": 2.5}),
    ]
    scores = [
        {"modality": "T1w", "derived_from": "raw", "image_quality_score": 1},
        {"modality": "T1w", "derived_from": None, "image_quality_score": "3.5"},
        {"modality": "T2w", "derived_from": None, "image_quality_score": 9},
    ]
    found = quality_scores(collection(images, scores))
    assert found == {"c__d__p__s__a": 1.0, "c__d__p__s__b": 3.5, "c__d__p__s__d": 2.5}


@pytest.mark.parametrize("odd", [None, "good", [1, 2], [{"modality": "T1w", "image_quality_score": "nan"}]])
def test_what_is_no_score_gives_none(odd: object) -> None:
    assert quality_scores(collection([Image("a", "a.nii.gz", "T1w")], odd)) == {}


def test_the_store_knows_the_scores(tmp_path: Path, write_image, make_head) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.nii.gz", make_head())
    images = [Image("a", "a.nii.gz", "T1w", {"image_quality_score": 2}), Image("b", "b.nii.gz", "T1w")]
    catalogue = collection(images, None)
    records = list(catalogue.records(tmp_path))
    prepare_records(records, tmp_path / "s", PrepareSettings(spacing=None), 0, quality=quality_scores(catalogue))
    quality = Store.open(tmp_path / "s").quality
    assert quality[0] == 2
    assert quality[1] != quality[1]
    report = prepare_records(records, tmp_path / "s", PrepareSettings(spacing=None), 0)
    assert report.made == 1  # the score is gone from the catalogue, and so from the store
