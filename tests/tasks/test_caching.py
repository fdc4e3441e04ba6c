"""Cached cases: the same tensors, prepared once, and again when a file or the preprocessing changes."""

import os
from dataclasses import replace

import numpy as np
import pytest

from viewalign.errors import UserError
from viewalign.evaluation.embedding import Embeddings, embed
from viewalign.evaluation.encoders import build_encoder, read_pretrained
from viewalign.tasks.cases import cache_key, prepare_case, prepare_cases
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Preprocessor

SIZE = (16, 16, 16)


def counting(preprocessor, monkeypatch):
    made = []
    original = Preprocessor.__call__

    def call(self, images, mask=None):
        made.append(images)
        return original(self, images, mask)

    monkeypatch.setattr(Preprocessor, "__call__", call)
    return made


def test_a_case_is_prepared_once_and_again_when_something_changes(
    tmp_path, striped_task, head, write_image, monkeypatch
):
    spec, cases = striped_task(tmp_path / "task", cases=3)
    preprocessor = Preprocessor(spec.channels, SIZE)
    plain, _ = prepare_cases(cases, preprocessor)
    made = counting(preprocessor, monkeypatch)
    for expected in (3, 3):
        samples, excluded = prepare_cases(cases, preprocessor, cache=tmp_path / "cache")
        assert len(made) == expected
        assert not excluded
        for name, sample in samples.items():
            assert isinstance(sample.image, np.memmap)
            for part in ("image", "valid", "present"):
                np.testing.assert_array_equal(getattr(sample, part), getattr(plain[name], part))
    prepare_cases(cases, replace(preprocessor, size=(16, 16, 24)), cache=tmp_path / "cache")
    assert len(made) == 6
    write_image(cases[0].images["t1"], head(7))
    samples, _ = prepare_cases(cases, preprocessor, cache=tmp_path / "cache")
    assert len(made) == 7
    assert not np.array_equal(samples["c00"].image, plain["c00"].image)
    os.utime(cases[1].images["t1"], ns=(1, 1))
    prepare_cases(cases, preprocessor, cache=tmp_path / "cache")
    assert len(made) == 8
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


def test_cases_without_reliable_file_stamps_are_not_cached(tmp_path, striped_task):
    spec, cases = striped_task(tmp_path / "task", cases=1)
    preprocessor = Preprocessor(spec.channels, SIZE)
    assert cache_key(preprocessor, {"t1": tmp_path / "slice.dcm"}, None) is None
    assert cache_key(preprocessor, cases[0].images, cases[0].images["t1"]) != cache_key(
        preprocessor, cases[0].images, None
    )
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"x")
    with pytest.raises(UserError):
        prepare_case(TaskCase("broken", "s", {"t1": broken}), preprocessor, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("ending", ["npz", "parquet"])
@pytest.mark.parametrize("maps", [False, True])
def test_embeddings_are_read_as_written(tmp_path, striped_task, ending, maps):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    spec, cases = striped_task(tmp_path / "task", cases=3)
    backbone, _ = build_encoder(read_pretrained("untrained:resenc-xs"), SIZE, 1)
    found = embed(backbone, Preprocessor(spec.channels, SIZE), cases, with_maps=maps, cache=tmp_path / "cache")
    path = tmp_path / f"features.{ending}"
    found.write(path)
    again = Embeddings.read(path)
    assert again.cases == found.cases
    assert again.facts == found.facts
    np.testing.assert_array_equal(again.features, found.features)
    assert (again.maps is None) != maps
    if maps:
        np.testing.assert_array_equal(again.maps, found.maps)
    if ending == "parquet":
        import pandas

        table = pandas.read_parquet(path)
        assert table["case"].tolist() == ["c00", "c01", "c02"]
        assert len(table["features"][0]) == found.features.shape[1]
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="embeddings"):
        Embeddings.read(path)
