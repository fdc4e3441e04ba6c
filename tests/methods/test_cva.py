import copy

import pytest
import torch
from run_fixtures import tiny_network

from viewalign.errors import UserError
from viewalign.losses.consistency import cosine_consistency
from viewalign.methods.registry import build_method
from viewalign.methods.rng import block_masks
from viewalign.networks import masking
from viewalign.recipes.loading import load
from viewalign.views.alignment import find_correspondences
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import common_grid, resize

SMALL = ["views.patch_size=[16,16,16]", "heads.width=32", "heads.predictor_width=16", "batch=4"]


def method_of(recipe="cva-resenc-xs", *settings):
    torch.manual_seed(0)
    return build_method(load(recipe, settings, common=[*SMALL, tiny_network(recipe)]))


@pytest.mark.parametrize("recipe", ["cva-resenc-xs", "cva-primus-xs"])
@pytest.mark.parametrize("order", ["project_first", "align_first"])
def test_a_step_has_all_terms_and_gradients(recipe, order, make_batch):
    method = method_of(recipe, f"objectives.order={order}")
    result = method(make_batch(), return_diagnostics=True)
    assert set(result.logs) == {"loss", "reconstruction", "consistency", "contrastive", "cosine", "contrast_accuracy"}
    logs = {name: float(value) for name, value in result.logs.items()}
    assert logs["loss"] == pytest.approx(
        5 * logs["reconstruction"] + logs["consistency"] + 0.1 * logs["contrastive"], rel=1e-5
    )
    assert logs["cosine"] == pytest.approx(1 - logs["consistency"] / 2, abs=1e-5)
    result.loss.backward()
    assert [n for n, p in method.student.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in method.teacher.parameters())
    assert result.features["encoder"].shape[0] == result.features["projected"].shape[0] > 100
    assert result.pictures["reconstruction"].shape == (8, 1, 16, 16, 16)


def test_masks_of_no_block_are_rejected():
    """They would make a plain autoencoder without a message."""
    for settings in (["masking.block=16"], ["masking.ratio=0.05"], ["masking.ratio=0.05", "masking.whole=0.5"]):
        with pytest.raises(UserError, match=r"masks no block"):
            method_of("cva-resenc-xs", *settings)
    for settings in (["masking.ratio=0"], ["masking.block=16", "objectives.reconstruction_weight=0"]):
        method_of("cva-resenc-xs", *settings)


def test_a_step_is_reproducible_and_depends_on_the_sample(make_batch):
    method, batch = method_of(), make_batch()
    assert torch.equal(method(batch).loss, method(batch).loss)
    other = ViewBatch(**{**vars(batch), "sample": batch.sample + 1})
    assert not torch.equal(method(batch).loss, method(other).loss)


def test_padding_is_not_in_the_loss(make_batch):
    """Targets of padded voxels do not affect the loss."""
    method, batch = method_of(), make_batch(size=(32, 32, 32), batch=4)
    assert not batch.valid.all()
    before = method(batch).logs
    dirty = torch.where(batch.valid, batch.targets, torch.full_like(batch.targets, 1e3))
    after = method(ViewBatch(**{**vars(batch), "targets": dirty})).logs
    assert float(after["reconstruction"]) == pytest.approx(float(before["reconstruction"]), rel=1e-6)


def test_reconstruction_loss(make_batch):
    """Huber over masked valid voxels, per view and then over views, recomputed from the pictures."""
    method, batch = method_of(), make_batch(size=(16, 16, 16))
    result = method(batch, return_diagnostics=True)
    image, hidden = result.pictures["reconstruction"], result.pictures["mask"]
    losses = []
    for view in range(8):
        target, valid = batch.targets.flatten(0, 1)[view], batch.valid.flatten(0, 1)[view]
        error = (image[view] - target).abs()[hidden[view] & valid]
        losses.append(torch.where(error < 1, 0.5 * error**2, error - 0.5).mean())
    assert float(result.logs["reconstruction"]) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert hidden.float().mean((1, 2, 3, 4)).tolist() == pytest.approx([0.75] * 8)


def test_views_that_stay_whole_are_restored_as_without_masking(make_batch):
    batch = make_batch()
    one, none = method_of("cva-resenc-xs", "masking.whole=1"), method_of("cva-resenc-xs", "masking.ratio=0")
    assert torch.equal(one(batch).loss, none(batch).loss)
    masked = method_of()(batch, return_diagnostics=True).pictures["mask"]
    some = method_of("cva-resenc-xs", "masking.whole=0.5")(batch, return_diagnostics=True)
    whole = ~some.pictures["mask"].flatten(1).any(1)
    assert 0 < whole.sum() < 8
    assert torch.equal(some.pictures["mask"][~whole], masked[~whole])
    # Each view counts as much: the masked voxels of masked ones, all valid voxels of whole ones.
    error = (some.pictures["reconstruction"] - batch.targets.flatten(0, 1)).abs()
    huber = torch.where(error < 1, 0.5 * error**2, error - 0.5)
    counts = batch.valid.flatten(0, 1) & (masked | whole.view(-1, 1, 1, 1, 1))
    views = [values[count].mean() for values, count in zip(huber, counts, strict=True)]
    assert float(some.logs["reconstruction"]) == pytest.approx(float(torch.stack(views).mean()), rel=1e-5)


def test_a_share_of_whole_views_over_many_samples(make_batch):
    batch = make_batch()
    shares = []
    for first in range(0, 400, 4):
        samples = ViewBatch(**{**vars(batch), "sample": torch.arange(first, first + 4)})
        shares.append((~block_masks(samples, 0, (4, 4, 4), 0.75, 0.3).hidden.any(1)).float().mean())
    assert abs(float(torch.stack(shares).mean()) - 0.3) < 4 * (0.3 * 0.7 / 800) ** 0.5


def test_a_primus_restores_whole_views_too(make_batch):
    batch = make_batch()
    one, none = method_of("cva-primus-xs", "masking.whole=1"), method_of("cva-primus-xs", "masking.ratio=0")
    assert torch.allclose(one(batch).loss, none(batch).loss, rtol=1e-5)
    some = method_of("cva-primus-xs", "masking.whole=0.5")
    result = some(batch, return_diagnostics=True)
    assert 0 < (~result.pictures["mask"].flatten(1).any(1)).sum() < 8
    result.loss.backward()
    assert all(p.grad is not None for p in some.student.parameters() if p.requires_grad)
    # The same views in another batch, as another process may have them.
    part = some.forward_features(batch.part(2, 3))
    assert torch.allclose(some.forward_features(batch)["pooled"][:, 2:3], part["pooled"], atol=1e-5)


def test_teacher_equals_student_at_the_start(make_batch):
    """Without masking, a teacher equal to the student has equal features."""
    method = method_of("cva-resenc-xs", "masking.ratio=0", "teacher.momentum=0")
    batch = make_batch(mirror=False, p_rotation=0, p_scale=0)
    same = ViewBatch(
        **{
            **vars(batch),
            "views": batch.views[:1].expand(2, -1, -1, -1, -1, -1),
            "to_volume": batch.to_volume[:1].expand(2, -1, -1, -1),
            "valid": batch.valid[:1].expand(2, -1, -1, -1, -1, -1),
        }
    )
    images, valid = same.views.flatten(0, 1), same.valid.flatten(0, 1)
    student, teacher = method.student.features(images, valid), method.teacher.features(images, valid)
    assert torch.allclose(student.pooled, teacher.pooled, atol=1e-5)
    for a, b in zip(student.dense, teacher.dense, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("consistency", ["nt_xent", "gram"])
@pytest.mark.parametrize("order", ["project_first", "align_first"])
def test_variants_of_consistency(consistency, order, make_batch):
    method = method_of("cva-resenc-xs", f"objectives.consistency={consistency}", f"objectives.order={order}")
    result = method(make_batch())
    result.loss.backward()
    assert torch.isfinite(result.loss.detach())
    assert -1 <= float(result.logs["cosine"]) <= 1
    assert method.student.predictor.layers[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("recipe", ["cva-resenc-xs", "cva-primus-xs"])
@pytest.mark.parametrize("order", ["project_first", "align_first"])
@pytest.mark.parametrize("projector", ["pooled", "none"])
@pytest.mark.parametrize("dense", ["encoder", "decoder"])
def test_consistency_without_heads(recipe, order, projector, dense, make_batch):
    """Aligning the backbone's features with the public functions gives the same consistency."""
    settings = [f"heads.projector={projector}", f"objectives.order={order}", f"objectives.dense={dense}"]
    method, batch = method_of(recipe, *settings), make_batch()
    logs = method.eval()(batch).logs
    maps = []
    hidden = method.forward_features(batch)["mask"].flatten(0, 1)
    seen = masking.BlockMask(hidden, int((~hidden[0]).sum()))
    for branch, mask in ((method.student, seen), (method.teacher, None)):
        encoded = branch.backbone.encode(batch.views.flatten(0, 1), mask)
        maps.append(branch.backbone.dense(encoded) if dense == "encoder" else branch.backbone.decode(encoded))
    if order == "project_first":
        grid = common_grid([tuple(one.shape[2:]) for one in maps[0]])
        maps = [[torch.cat([resize(one, grid) for one in network], 1)] for network in maps]
    grids = [tuple(one.shape[2:]) for one in maps[0]]
    found = find_correspondences(batch.to_volume[0], batch.to_volume[1], batch.size, grids, batch.valid)
    mine, theirs = (found.read(network) for network in maps)
    losses = [cosine_consistency(mine[view], theirs[1 - view], found.weight) for view in (0, 1)]
    assert float(logs["consistency"]) == pytest.approx(float(sum(losses)) / 2, rel=1e-4)
    assert (method.student.projector is None) == (projector == "none")


@pytest.mark.parametrize("recipe", ["cva-resenc-xs", "cva-primus-xs"])
def test_decoder_features_have_separate_heads(recipe, make_batch):
    method = method_of(recipe, "objectives.dense=decoder")
    method(make_batch()).loss.backward()
    assert [n for n, p in method.student.named_parameters() if p.requires_grad and p.grad is None] == []
    assert method.student.dense_projector.layers[0].in_features == sum(method.encoder().decoder_channels)
    assert method.student.projector.layers[0].in_features == method.encoder().pooled_channels
    assert method.teacher.dense_projector is not None
    assert method.teacher.dense_predictor is method.teacher.predictor is None


def test_forward_without_targets_skips_the_teacher(make_batch):
    method, batch = method_of(), make_batch()
    both, mine = method.forward_features(batch), method.forward_features(batch, targets=False)
    assert {*both} - {*mine} == {"teacher_pooled", "teacher_dense"}
    for name, value in mine.items():
        assert torch.equal(value, both[name]), name


def test_the_teacher_runs_only_if_needed(make_batch):
    off = ["objectives.consistency_weight=0", "objectives.contrastive_weight=0"]
    alone, batch = method_of("cva-resenc-xs", *off), make_batch()
    assert "teacher_pooled" not in alone.forward_features(batch)
    assert "teacher_pooled" in alone.forward_features(batch, return_diagnostics=True), "diagnostics use it"
    assert {*alone(batch).logs} == {"loss", "reconstruction"}
    for weight in off:
        assert "teacher_pooled" in method_of("cva-resenc-xs", weight).forward_features(batch)


def test_stochastic_depth_belongs_to_the_image(make_batch):
    method, batch = method_of("cva-primus-xs", "network.drop_path=0.5", "masking.ratio=0"), make_batch()
    method.train()
    together, alone = method.forward_features(batch), method.forward_features(batch.part(2, 3))
    assert torch.allclose(together["pooled"][:, 2:3], alone["pooled"], atol=1e-5)
    method.eval()
    still = method.forward_features(batch)
    assert torch.allclose(still["teacher_pooled"], together["teacher_pooled"], atol=1e-6)
    assert not torch.allclose(still["pooled"], together["pooled"], atol=1e-3)
    assert torch.allclose(still["pooled"], still["teacher_pooled"], atol=1e-5), "no mask, equal weights"


@pytest.mark.parametrize("order", ["project_first", "align_first"])
def test_anisotropic_cells_on_thin_views(order, make_batch):
    settings = [*SMALL, "views.patch_size=[24,24,8]", "objectives.cells=[7,7,2]", f"objectives.order={order}"]
    method = build_method(load("cva-resenc-xs", settings))
    result = method(make_batch(size=(24, 24, 8)), return_diagnostics=True)
    result.loss.backward()
    assert torch.isfinite(result.loss.detach())
    assert 0 < result.features["projected"].shape[0] <= 4 * 7 * 7 * 2


@pytest.mark.parametrize("order", ["project_first", "align_first"])
def test_thin_views_with_one_cell_at_the_bottleneck(order, make_batch):
    method = build_method(load("cva-resenc-xs", [*SMALL, "views.patch_size=[24,24,8]", f"objectives.order={order}"]))
    result = method(make_batch(size=(24, 24, 8)))
    result.loss.backward()
    assert torch.isfinite(result.loss.detach())


def test_terms_of_weight_0_are_not_computed(make_batch):
    settings = ["objectives.consistency_weight=0", "objectives.contrastive_weight=0"]
    logs = method_of("cva-resenc-xs", *settings)(make_batch()).logs
    assert set(logs) == {"loss", "reconstruction"}


def test_the_teacher_is_updated(make_batch):
    method = method_of("cva-resenc-xs", "teacher.momentum=0.9")
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    before = copy.deepcopy(method.teacher.state_dict())
    method(make_batch()).loss.backward()
    optimizer.step()
    method.after_update(1)
    student = method.student.state_dict()
    for name, value in method.teacher.state_dict().items():
        assert torch.allclose(value, 0.9 * before[name] + 0.1 * student[name], atol=1e-6), name


@pytest.mark.slow
def test_the_loss_decreases(make_batch):
    method, batch = method_of("cva-resenc-xs", "objectives.order=align_first"), make_batch()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(20):
        result = method(batch)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        method.after_update(step)
        losses.append(float(result.loss.detach()))
    assert losses[-1] < 0.75 * losses[0]


def test_impossible_settings_are_rejected():
    off = [f"objectives.{name}_weight=0" for name in ("reconstruction", "consistency", "contrastive")]
    with pytest.raises(UserError, match=r"objectives\.reconstruction_weight"):
        build_method(load("cva-resenc-xs", off))
    with pytest.raises(UserError, match="batch = 1"):
        method_of("cva-resenc-xs", "batch=1")
    with pytest.raises(UserError, match="'byol'"):
        method_of("cva-resenc-xs", "method=byol")
    with pytest.raises(UserError, match="multiple of 8"):
        build_method(load("cva-resenc-xs", ["views.patch_size=[20,16,16]"]))


def test_small_batches_use_layer_norm():
    assert method_of("cva-resenc-xs", "batch=3").student.projector.norm == "layer"
    assert method_of("cva-resenc-xs", "batch=4").student.projector.norm == "batch"
