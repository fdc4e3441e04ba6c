"""ONNX answers as torch does: every kind, network and batch size, folds averaged, from the file alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.evaluation.encoders import build_encoder, read_pretrained
from viewalign.finetuning.classification import onnx as onnx_export
from viewalign.finetuning.classification.models import Predictor, write_model
from viewalign.finetuning.classification.network import GlobalNetwork, predictions_from_outputs
from viewalign.finetuning.classification.onnx import OnnxPredictor, export_onnx, open_session
from viewalign.tasks.preprocessing import Preprocessor

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
SIZE = (16, 24, 16)


def model(folder, spec, name, pool, folds=1):
    for fold in range(folds):
        backbone, _ = build_encoder(read_pretrained(f"untrained:{name}"), SIZE, len(spec.channels), seed=fold)
        network = GlobalNetwork(backbone, spec.outputs, pool, 0.3, [0.0] * spec.outputs)
        torch.manual_seed(fold)
        network.head.weight.data.normal_(std=0.2)
        scale = (61.4 + fold, 12.3) if spec.kind == "regression" else (0.0, 1.0)
        write_model(folder / f"fold_{fold}", network, name, spec, Preprocessor(spec.channels, SIZE), scale)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "pool"),
    [
        ("multiclass", "resenc-xxs", "multistage"),
        pytest.param("regression", "resenc-xxs", "average", marks=pytest.mark.long),
        pytest.param("multilabel", "primus-xxs", "attention", marks=pytest.mark.long),
        pytest.param("binary", "primus-xxs", "pretrained", marks=pytest.mark.long),
    ],
)
def test_every_batch_size_gives_what_torch_gives(tmp_path, striped_task, kind, name, pool):
    classes = ("a", "b", "c") if kind == "multiclass" else ("a", "b")
    channels = [{"name": "t1"}, {"name": "t2", "optional": True}]
    spec, cases = striped_task(tmp_path / "task", kind, 3, classes, channels)
    folder = model(tmp_path / "m", spec, name, pool, folds=2 if kind == "regression" else 1)
    written = export_onnx(folder, tmp_path / "onnx")
    session, torch_side = open_session(written.file), Predictor(folder)
    rng = np.random.default_rng(0)
    for count in (1, 2, 5):
        image = rng.normal(size=(count, 2, *SIZE)).astype(np.float32)
        valid = rng.random((count, 1, *SIZE)) > 0.3
        with torch.no_grad():
            parts = [
                predictions_from_outputs(m.network(torch.from_numpy(image), torch.from_numpy(valid)), spec, *m.scale)
                for m in torch_side.models
            ]
        (found,) = session.run(None, {"image": image, "valid": valid})
        np.testing.assert_allclose(found, torch.stack(parts).mean(0).numpy(), rtol=2e-4, atol=2e-5)
        assert count == 1 or np.ptp(found, axis=0).min() > 1e-4  # an answer that hung on nothing would agree too
    # from files, with the graph and nothing else
    shutil.move(folder, tmp_path / "gone")
    alone = OnnxPredictor(written.file)
    assert alone.spec == spec
    expected = Predictor(tmp_path / "gone")
    for flips in (False, True):
        np.testing.assert_allclose(
            alone.predict(cases[0], flips), expected.predict(cases[0], flips), rtol=2e-4, atol=2e-5
        )


@pytest.mark.long
def test_the_command_writes_a_graph_that_predict_takes(tmp_path, striped_task):
    spec, _ = striped_task(tmp_path / "task")
    folder = model(tmp_path / "m", spec, "resenc-xxs", "average")
    told = CliRunner().invoke(app, ["export", str(folder), "format=onnx", "-o", str(tmp_path / "x")])
    assert told.exit_code == 0, told.output
    assert "any batch size" in told.output
    facts = json.loads((tmp_path / "x" / "model.json").read_text())
    assert facts["inputs"]["image"]["shape"] == ["N", 1, *SIZE]
    assert Preprocessor.from_json(facts["preprocessing"]).fingerprint() == Predictor(folder).preprocessor.fingerprint()
    assert str(tmp_path) not in (tmp_path / "x" / "model.onnx").read_bytes().decode("latin-1")
    tables = []
    for source in (folder, tmp_path / "x" / "model.onnx"):
        arguments = ["predict", str(source), str(tmp_path / "task" / "manifest.csv"), "-o", str(tmp_path / "p.csv")]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        tables.append([line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]])
    assert [row[:4] for row in tables[0]] == [row[:4] for row in tables[1]]
    np.testing.assert_allclose(*(np.array([row[4:] for row in t], dtype=float) for t in tables), rtol=1e-4)


@pytest.mark.long
def test_large_weights_lie_beside_the_graph(tmp_path, striped_task, monkeypatch):
    spec, cases = striped_task(tmp_path / "task", cases=1)
    folder = model(tmp_path / "m", spec, "resenc-xxs", "average")
    monkeypatch.setattr(onnx_export, "_MAX_INLINE_BYTES", 0)
    written = export_onnx(folder, tmp_path / "x")
    graph = onnx.load(written.file, load_external_data=False).graph
    kept = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert len(kept) < len(graph.initializer)
    assert sum(len(tensor.raw_data) for tensor in kept) < 3_000  # sizes, axes and biases
    assert (tmp_path / "x" / "model.onnx.data").stat().st_size > 30_000
    (tmp_path / "x").rename(tmp_path / "moved")
    found = OnnxPredictor(tmp_path / "moved" / "model.onnx").predict(cases[0])
    np.testing.assert_allclose(found, Predictor(folder).predict(cases[0]), rtol=2e-4, atol=2e-5)


def test_what_is_no_model_is_rejected(tmp_path):
    with pytest.raises(UserError, match="model"):
        export_onnx(tmp_path, tmp_path / "x")
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a\.onnx"):
        OnnxPredictor(tmp_path / "a.onnx")


@pytest.mark.slow
def test_an_earlier_graph_stays_until_the_new_one_is_right(tmp_path, striped_task, monkeypatch):
    spec, _ = striped_task(tmp_path / "task", cases=1)
    folder = model(tmp_path / "m", spec, "resenc-xxs", "average")
    export_onnx(folder, tmp_path / "x")
    before = {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()}
    monkeypatch.setattr(onnx_export, "_difference", lambda *_: 1.0)
    with pytest.raises(UserError, match="nothing was written"):
        export_onnx(folder, tmp_path / "x")
    assert {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()} == before
