"""Predictions of new cases: averaged over folds, written, and a broken case reported."""

import csv
import json

import numpy as np
import torch

from viewalign.evaluation.encoders import build_encoder, read_pretrained
from viewalign.finetuning.classification.models import Predictor, write_model
from viewalign.finetuning.classification.network import GlobalNetwork
from viewalign.finetuning.classification.predict import predict
from viewalign.tasks.preprocessing import Preprocessor

SIZE = (16, 16, 16)


def model(folder, spec, folds, mirrored=False):
    for fold in range(folds):
        backbone, _ = build_encoder(read_pretrained("untrained:resenc-xxs"), SIZE, len(spec.channels), seed=fold)
        network = GlobalNetwork(backbone, spec.outputs, "average", 0.0, [0.0] * spec.outputs)
        torch.manual_seed(fold)
        network.head.weight.data.normal_(std=0.2)
        preprocessor = Preprocessor(spec.channels, SIZE)
        write_model(folder / f"fold_{fold}", network, "resenc-xxs", spec, preprocessor, (0.0, 1.0), mirrored)
    return folder


def test_each_case_is_predicted_and_a_broken_one_is_reported(tmp_path, striped_task):
    spec, cases = striped_task(tmp_path / "task", cases=4)
    cases[2].images["t1"].write_bytes(b"not an image")
    folder = model(tmp_path / "model", spec, folds=2)
    seen = []
    said = predict(folder, tmp_path / "task", tmp_path / "p.csv", on_progress=lambda *at: seen.append(at), workers=0)
    assert said.columns == ("p_no", "p_yes")
    assert [name for name, _ in said.excluded] == ["c02"]
    assert list(said.values) == ["c00", "c01", "c03"]
    assert seen == [(k, 4) for k in range(1, 5)]
    whole, folds = Predictor(folder), [Predictor(folder / f"fold_{k}") for k in range(2)]
    for case in (cases[0], cases[3]):
        np.testing.assert_allclose(said.values[case.case], np.mean([one.predict(case) for one in folds], axis=0))
        np.testing.assert_array_equal(said.values[case.case], whole.predict(case))
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["case"] for row in rows] == ["c00", "c01", "c03"]
    np.testing.assert_allclose(
        [float(row["p_yes"]) for row in rows], [value[1] for value in said.values.values()], rtol=1e-5
    )


def test_mirrored_images_are_averaged_only_if_training_used_them(tmp_path, striped_task, caplog):
    spec, _ = striped_task(tmp_path / "task", cases=2)
    values = {}
    for mirrored in (False, True):
        folder = model(tmp_path / str(mirrored), spec, 1, mirrored)
        values[mirrored] = [
            predict(folder, tmp_path / "task", flips=flips, workers=0).values for flips in (False, True)
        ]
        assert ("tta=true has no effect" in caplog.text) == (not mirrored)
        caplog.clear()
    for name in values[False][0]:
        np.testing.assert_array_equal(*(one[name] for one in values[False]))
        assert not np.array_equal(*(one[name] for one in values[True]))


def test_an_unfinished_fine_tuning_is_named(tmp_path, striped_task, caplog):
    spec, _ = striped_task(tmp_path / "task", cases=2)
    folder = model(tmp_path / "model", spec, 1)
    (folder / "folds.json").write_text(json.dumps({"folds": [{}, {}, {}]}))
    Predictor(folder)
    assert "has 1 of 3 folds" in caplog.text
