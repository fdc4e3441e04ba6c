from __future__ import annotations

import json
from pathlib import Path

import pytest

from viewalign.data.catalogue import read_catalogue, write_catalogue
from viewalign.errors import UserError


def nnssl_example() -> dict:
    return {
        "collection_index": 745,
        "collection_name": "Dataset745_OpenMind",
        "datasets": {
            "ds000001": {
                "dataset_index": "ds000001",
                "name": None,
                "dataset_info": {"image_quality_score": [{"modality": "T1w", "image_quality_score": 2.1}]},
                "subjects": {
                    "sub-01": {
                        "subject_id": "sub-01",
                        "subject_info": {"age": 31, "sex": "F"},
                        "sessions": {
                            "ses-DEFAULT": {
                                "session_id": "ses-DEFAULT",
                                "session_info": None,
                                "images": [
                                    {
                                        "name": "T1w",
                                        "image_path": "$raw_root/ds000001/T1w.nii.gz",
                                        "modality": "T1w",
                                        "image_info": {"derived_from": None},
                                        "associated_masks": {
                                            "anonymization_mask": "masks/anon.nii.gz",
                                            "anatomy_mask": None,
                                        },
                                    },
                                    {
                                        "name": "T2w",
                                        "image_path": "/abs/T2w.nii.gz",
                                        "modality": "T2w",
                                        "image_info": None,
                                        "associated_masks": None,
                                    },
                                ],
                            }
                        },
                    }
                },
            }
        },
    }


def save(folder: Path, content: object) -> Path:
    path = folder / "pretrain_data.json"
    path.write_text(json.dumps(content))
    return path


def test_a_catalogue_of_nnssl_comes_back_unchanged(tmp_path: Path) -> None:
    collection = read_catalogue(save(tmp_path, nnssl_example()))
    write_catalogue(collection, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == nnssl_example()


def test_records_resolve_variables_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("raw_root", "/somewhere")
    first, second = read_catalogue(save(tmp_path, nnssl_example())).records(tmp_path)
    assert first.path == Path("/somewhere/ds000001/T1w.nii.gz")
    assert first.anonymisation_mask == tmp_path / "masks/anon.nii.gz"
    assert first.anatomy_mask is None
    assert second.path == Path("/abs/T2w.nii.gz")
    assert first.image_id == "Dataset745_OpenMind__ds000001__sub-01__ses-DEFAULT__T1w"
    assert first.subject_id == "Dataset745_OpenMind__ds000001__sub-01"


def test_an_unset_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("raw_root", raising=False)
    with pytest.raises(UserError, match="raw_root"):
        list(read_catalogue(save(tmp_path, nnssl_example())).records(tmp_path))


def image_of(content: dict) -> dict:
    return content["datasets"]["ds000001"]["subjects"]["sub-01"]["sessions"]["ses-DEFAULT"]["images"][0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("collection_name"), "`collection_name` is missing"),
        (
            lambda c: c["datasets"]["ds000001"].pop("dataset_index"),
            "ds000001.*`dataset_index` is missing",
        ),
        (lambda c: c["datasets"]["ds000001"]["subjects"]["sub-01"].pop("sessions"), "`sessions` is missing"),
        (lambda c: image_of(c).pop("modality"), "`modality` is missing"),
        (lambda c: image_of(c).update(modalty="T1w"), "`modalty`"),
        (lambda c: image_of(c)["associated_masks"].pop("anatomy_mask"), "`anatomy_mask` is missing"),
        (lambda c: c.update(datasets=[]), "datasets"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, change, sentence: str) -> None:
    content = nnssl_example()
    change(content)
    with pytest.raises(UserError, match=sentence):
        read_catalogue(save(tmp_path, content))


def test_what_is_no_catalogue_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json"):
        read_catalogue(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json.*JSON"):
        read_catalogue(tmp_path / "broken.json")
