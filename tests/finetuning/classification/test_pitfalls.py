"""What went wrong, without any error, in code that people fine-tuned with before: each would be caught here."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from task_fixtures import trained_by

from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.evaluation.embedding import Pooling
from viewalign.evaluation.encoders import build_encoder, read_pretrained
from viewalign.finetuning.classification.finetune import finetune
from viewalign.finetuning.classification.models import Predictor
from viewalign.finetuning.classification.network import GlobalNetwork, predictions_from_outputs
from viewalign.finetuning.classification.training import FoldTraining, augment, predict_sample
from viewalign.networks.registry import build_backbone
from viewalign.tasks.cases import prepare_cases
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Preprocessor, Sample
from viewalign.tasks.spec import TaskSpec
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.sampling import ViewSamplingConfig

pytestmark = pytest.mark.slow

SIZE = (16, 16, 16)
SPEC = TaskSpec.model_validate({"name": "x", "kind": "binary", "channels": [{"name": "a"}], "classes": ["n", "y"]})
STILL = ["augment.p_rotation=0", "augment.p_scale=0", "augment.photometric.p_contrast=0",
         "augment.photometric.p_gamma=0", "augment.photometric.p_gamma_inverted=0", "augment.photometric.p_blur=0",
         "augment.photometric.p_low_resolution=0", "augment.photometric.p_noise=0",
         "augment.photometric.p_brightness=0"]  # fmt: skip


def training_of(folder, *settings, count=6):
    rng = np.random.default_rng(0)
    cases = [TaskCase(f"c{k}", f"c{k}", {}, target=k % 2) for k in range(count)]
    whole = np.ones((1, *SIZE), dtype=bool)
    samples = {c.case: Sample(rng.normal(size=(1, *SIZE)).astype(np.float32), whole, np.array([True])) for c in cases}
    backbone, _ = build_encoder(read_pretrained("untrained:resenc-xs"), SIZE, 1)
    network = GlobalNetwork(backbone, 2, "average", 0.0, [0.0, 0.0])
    given = trained_by(None, ["epochs=2", "batch=3", *settings])
    return FoldTraining(network, cases, samples, SPEC, given, 0, folder)


def test_training_sees_the_whole_field_of_view(tmp_path):
    """A crop that lacks the lesion would still be called positive."""
    training = training_of(tmp_path, *STILL)
    images, valid = training._batch(training.cases[:3], 0, 0)
    expected = torch.stack([torch.from_numpy(training.samples[c.case].image) for c in training.cases[:3]])
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    assert valid.all()


def test_training_and_prediction_resample_alike(tmp_path, striped_task, head, write_image):
    """One resampled to 1 mm, the other did not."""
    spec, cases = striped_task(tmp_path / "task", cases=6)
    for k, case in enumerate(cases):
        write_image(case.images["t1"], head(k, (10, 22, 18)), spacing=(1.0, 1.0, 2.0))
    settings = trained_by(None, ["epochs=1", "batch=3", "folds=2", "draws=100", "patch_size=16", "spacing=[1,1,1]"])
    finetune(tmp_path / "task", "untrained:resenc-xs", tmp_path / "out", settings)
    predictor = Predictor(tmp_path / "out")
    assert predictor.preprocessor.settings.spacing == (1.0, 1.0, 1.0)
    trained, _ = prepare_cases(cases, predictor.preprocessor)
    again = predictor.preprocessor(cases[0].images)
    np.testing.assert_array_equal(trained["c00"].image, again.image)
    unsampled = Preprocessor(spec.channels, SIZE, PrepareSettings(spacing=None))(cases[0].images)
    assert unsampled.valid.sum() < again.valid.sum()  # ten slices of 2 mm are twenty of 1 mm


def test_an_age_above_a_hundred_can_be_predicted():
    """A sigmoid times 100 could not."""
    age = TaskSpec.model_validate({"name": "age", "kind": "regression", "channels": [{"name": "t1"}]})
    assert predictions_from_outputs(torch.tensor([[4.0]]), age, 60.0, 12.5).item() == pytest.approx(110.0)


@pytest.mark.parametrize("pool", ["average", "multistage", "attention"])
def test_pooling_leaves_no_token_out(pool):
    """The first was thrown away as if it were a class token."""
    backbone = build_backbone("primus-xs", SIZE, 1)
    tokens = torch.randn(1, 64, 192, requires_grad=True)
    encoded = type("Encoded", (), {"tokens": tokens, "grid": (4, 4, 4), "maps": (), "dropped": False})()
    backbone.encode = lambda _: encoded
    pooled = Pooling(backbone, pool)(backbone, torch.zeros(1, 1, *SIZE), torch.ones(1, 1, *SIZE, dtype=torch.bool))
    torch.testing.assert_close(pooled, tokens.mean(1))
    pooled.sum().backward()
    assert (tokens.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", ["resenc-xs", "primus-xs"])
def test_the_untrained_network_is_as_its_library_makes_it(name):
    """A baseline whose layers were made a thousandth as large was no fair one."""
    ours, _ = build_encoder(read_pretrained(f"untrained:{name}"), SIZE, 1, seed=3)
    torch.manual_seed(3)
    theirs = build_backbone(name, SIZE, 1)
    theirs.drop_decoder()
    for (key, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), key
    wide = [p for p in ours.parameters() if p.ndim > 1 and p.shape[1] > 1]
    assert all(float(p.detach().std()) > 5e-3 for p in wide if p.numel() > 1000)


def test_a_seed_determines_everything(tmp_path):
    """Seeds came from the clock, or were not set."""
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        training = training_of(tmp_path / name, f"seed={seed}")
        training.run()
        runs[name] = training.losses
    assert runs["a"] == runs["b"] != runs["c"]


def test_a_resumed_fold_keeps_to_its_cases(tmp_path):
    """A new split at each start let a resumed run train on its validation cases."""
    training_of(tmp_path).run()
    with pytest.raises(UserError, match="cases"):
        training_of(tmp_path, count=5).run()


def test_gradients_are_clipped(tmp_path):
    """The limit was read and never passed to the trainer."""
    for clip, limited in (("1e-3", True), ("1e9", False)):
        training = training_of(tmp_path / clip, f"clip={clip}")
        training.network.head.weight.data.normal_()
        training._step(0, 0)
        norm = torch.stack([p.grad.norm() for p in training.network.parameters() if p.grad is not None]).norm()
        assert (float(norm) <= 1.01e-3) is limited


def test_corners_that_a_rotation_fills_are_not_valid():
    """Turning what was already cropped left corners of zeros among the image."""
    image, valid = torch.full((1, *SIZE), 3.0), torch.ones(1, *SIZE, dtype=torch.bool)
    turning = ViewSamplingConfig(size=SIZE, mirror=False, p_rotation=1.0, rotation_degrees=45.0, p_scale=0.0)
    nothing = IntensityConfig(
        p_brightness=0, p_contrast=0, p_gamma=0, p_gamma_inverted=0, p_low_resolution=0, p_blur=0, p_noise=0
    )
    moved, inside = augment(image, valid, np.array([True]), np.random.default_rng(1), turning, nothing)
    assert 0.3 < float(inside.float().mean()) < 1.0
    assert float(moved[0][inside[0]].min()) > 1.4  # voxels at the rim are blended, the filled ones are not among them


def test_no_tracker_is_needed():
    """A tracker in the cloud was compulsory, for clinical data."""
    code = (
        "import sys\nsys.modules['wandb'] = sys.modules['mlflow'] = None\n"
        "import viewalign.finetuning.classification.finetune, viewalign.compat.fomo_submission\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mirroring_at_test_time_mirrors_the_mask_with_the_image():
    class Corner(torch.nn.Module):
        def forward(self, image, valid):
            return torch.where(valid, image, 0.0)[:, :, 0, 0, 0]

    rng = np.random.default_rng(0)
    image, valid = rng.normal(size=(1, 4, 5, 6)).astype(np.float32), rng.random((1, 4, 5, 6)) > 0.5
    value = TaskSpec.model_validate({"name": "x", "kind": "regression", "channels": [{"name": "a"}]})
    sample = Sample(image, valid, np.array([True]))
    corners = np.where(valid, image, 0.0)[0, ::3, ::4, ::5]
    assert 0 < valid[0, ::3, ::4, ::5].sum() < 8
    found = predict_sample(Corner(), sample, value, (0.0, 1.0), flips=True)
    np.testing.assert_allclose(found, [corners.mean()], rtol=1e-6)
    np.testing.assert_allclose(predict_sample(Corner(), sample, value, (0.0, 1.0)), [corners[0, 0, 0]])
