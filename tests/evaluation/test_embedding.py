"""Embeddings: deterministic, and padding is ignored."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.evaluation.embedding import Embeddings, Pooling, embed, intensity_statistics
from viewalign.evaluation.encoders import build_encoder, encoder_and_preprocessor, read_pretrained
from viewalign.tasks.manifest import read_manifest
from viewalign.tasks.preprocessing import sample_tensors
from viewalign.tasks.spec import read_spec
from viewalign.utils.pooling import masked_mean
from viewalign.weights.reading import network_of

pytestmark = pytest.mark.slow


def test_a_run_becomes_an_encoder_of_any_channels_and_size(tiny_run):
    start = read_pretrained(tiny_run)
    assert start.network == network_of(start.source)
    one, _ = build_encoder(start, start.size, 1)
    three, fitted = build_encoder(start, start.size, 3)
    assert fitted.encoder_share == 1.0
    image = torch.randn(1, 1, *start.size)
    for a, b in zip(
        *(Pooled(net)(x) for net, x in ((one, image), (three, image.expand(1, 3, -1, -1, -1)))), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    other, fitted = build_encoder(start, (24, 32, 16), 1)
    assert fitted.encoder_share == 1.0
    assert other.encode(torch.randn(1, 1, 24, 32, 16)) is not None


class Pooled:
    def __init__(self, backbone):
        self.backbone, self.pooling = backbone.eval(), Pooling(backbone, "multistage")

    @torch.no_grad()
    def __call__(self, images):
        return list(self.pooling(self.backbone, images, torch.ones_like(images[:, :1], dtype=torch.bool)))


def test_padding_is_ignored_by_pooling():
    features = torch.randn(2, 5, 4, 4, 4)
    valid = torch.ones(2, 1, 8, 8, 8, dtype=torch.bool)
    valid[0, :, :, 4:] = False
    got = masked_mean([features], valid)
    torch.testing.assert_close(got[0], features[0, :, :, :2].mean((1, 2, 3)))
    torch.testing.assert_close(got[1], features[1].mean((1, 2, 3)))


@pytest.mark.parametrize("pool", ["average", "multistage", "attention", "pretrained"])
@pytest.mark.parametrize("name", ["resenc-xxs", "primus-xxs"])
def test_poolings_return_their_width(name, pool):
    backbone, _ = build_encoder(read_pretrained(f"untrained:{name}"), (16, 16, 16), 1)
    pooling = Pooling(backbone, pool)
    rows = pooling(backbone, torch.randn(2, 1, 16, 16, 16), torch.ones(2, 1, 16, 16, 16, dtype=torch.bool))
    assert rows.shape == (2, pooling.width)


def test_embedding_is_deterministic(task_folder, tmp_path):
    spec = read_spec(task_folder)
    cases = read_manifest(task_folder, spec)[:3]
    encoder = encoder_and_preprocessor("untrained:resenc-xxs", spec, (16, 16, 16), "none", "multistage")
    first, second = (embed(*encoder, cases, with_maps=True) for _ in range(2))
    np.testing.assert_array_equal(first.features, second.features)
    assert first.maps.shape[:2] == (3, 8)
    first.write(tmp_path / "e.npz")
    again = Embeddings.read(tmp_path / "e.npz")
    np.testing.assert_array_equal(again.features, first.features)
    assert again.facts == first.facts
    other = encoder_and_preprocessor("untrained:resenc-xxs", spec, (16, 16, 24), "none", "multistage")
    assert embed(*other, cases).facts["preprocessing_fingerprint"] != first.facts["preprocessing_fingerprint"]
    with pytest.raises(UserError, match="embeddings"):
        Embeddings.read(task_folder / "task.yaml")


@pytest.mark.parametrize("network", ["resenc-xxs", "primus-xxs"])
def test_channels_are_encoded_one_after_the_other(network, striped_task, tmp_path):
    spec, cases = striped_task(tmp_path, cases=2, channels=[{"name": "t1"}, {"name": "t2"}])
    chosen = (f"untrained:{network}", spec, (16, 16, 16), "none", "multistage")
    backbone, preprocessor = encoder_and_preprocessor(*chosen, channels="separate")
    found = embed(backbone, preprocessor, cases, with_maps=True)
    assert found.features.shape[1] == 2 * Pooling(backbone, "multistage").width
    for case, row in zip(cases, found.features, strict=True):
        image, valid = sample_tensors(preprocessor(case.images), "cpu")
        with torch.no_grad():
            parts = [Pooling(backbone, "multistage")(backbone, image[:, k : k + 1], valid)[0] for k in range(2)]
        torch.testing.assert_close(torch.from_numpy(row), torch.cat(parts))
    stacked = embed(*encoder_and_preprocessor(*chosen), cases, with_maps=True)
    assert found.features.shape[1] == 2 * stacked.features.shape[1]
    assert found.maps.shape[1] == 2 * stacked.maps.shape[1]


def test_pretrained_pooling_needs_its_view_size(tiny_run):
    start = read_pretrained(tiny_run)
    spec = read_spec_of_one()
    encoder_and_preprocessor(str(tiny_run), spec, start.size, "pretraining", "pretrained")
    if start.network.startswith("primus"):
        with pytest.raises(UserError, match="pool=pretrained"):
            encoder_and_preprocessor(str(tiny_run), spec, (32, 32, 32), "pretraining", "pretrained")


def read_spec_of_one():
    from viewalign.tasks.spec import TaskSpec

    return TaskSpec.model_validate({"name": "x", "kind": "regression", "channels": [{"name": "t1"}]})


def test_statistics_need_no_network(task_folder):
    spec = read_spec(task_folder)
    _, prepare = encoder_and_preprocessor("untrained:resenc-xxs", spec, (16, 16, 16), "none", "multistage")
    case = read_manifest(task_folder, spec)[0]
    row = intensity_statistics(prepare(case.images))
    assert np.isfinite(row).all()
    assert row.shape == (17,)


@pytest.mark.long
def test_the_commands(task_folder, tmp_path):
    (task_folder / "images" / "c03_t1.nii.gz").write_bytes(b"broken")
    run = CliRunner().invoke
    told = run(app, ["embed", "untrained:resenc-xxs", str(task_folder), "-o", str(tmp_path / "e.npz"), "patch_size=16"])
    assert told.exit_code == 3, told.output
    assert len(Embeddings.read(tmp_path / "e.npz").cases) == 11
    out = tmp_path / "p.json"
    small = ["patch_size=16", "folds=2", "draws=100", "shots=2", "learners=linear", "names=fresh"]
    told = run(app, ["probe", str(task_folder), "untrained:resenc-xxs", *small, "-o", str(out)])
    assert told.exit_code == 3, told.output
    held = json.loads(out.read_text())
    assert set(held["features"]) == {"fresh, linear", "intensity statistics, linear"}
    assert held["excluded"][0][0] == "c03"
    assert held["evaluated"] == 11


@pytest.mark.parametrize("network", ["resenc-xxs", "primus-xxs"])
def test_an_invalid_field_of_view_is_reported_as_size(network):
    with pytest.raises(UserError, match=r"^size = \[18, 16, 16\].*multiple"):
        build_encoder(read_pretrained(f"untrained:{network}"), (18, 16, 16), 1)
