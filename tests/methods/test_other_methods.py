"""Inputs, labels and losses of the methods other than CVA against reference values."""

import numpy as np
import pytest
import torch
from run_fixtures import tiny_network
from scipy.ndimage import gaussian_filter, map_coordinates

from viewalign.errors import UserError
from viewalign.losses.registration import local_ncc
from viewalign.methods.registry import build_method, requirements_of
from viewalign.networks.masking import to_voxels
from viewalign.recipes.loading import load
from viewalign.utils.pooling import masked_mean
from viewalign.views.batch import ViewBatch, build_views
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.layouts import box_overlaps
from viewalign.views.resampling import cell_centres, map_grid
from viewalign.views.samples import SampleReader
from viewalign.views.sampling import ViewSamplingConfig

SMALL = ["views.patch_size=[16,16,16]", "heads.width=32", "batch=4"]


class Identity(torch.nn.Module):
    def forward(self, rows, weight):
        return rows


def method_of(recipe, *settings):
    torch.manual_seed(0)
    return build_method(load(recipe, settings, common=[*SMALL, tiny_network(recipe)]))


def batch_of(bodies, recipe, *settings, size=(16, 16, 16), **config):
    every = np.arange(len(bodies))
    sampler = requirements_of(load(recipe, settings, common=[*SMALL, tiny_network(recipe)])).sampler
    reader = SampleReader(bodies, every, every, ViewSamplingConfig(size, **config), 4, seed=1, sampler=sampler)
    return build_views([reader[k] for k in range(4)], size, None)


@pytest.mark.parametrize("recipe", ["mae-resenc-xs", "mae-primus-xs", "simmim-primus-xs", "spark-resenc-xs"])
def test_masked_losses(recipe, bodies):
    method = method_of(recipe, "objectives.reconstruction=mse", "objectives.reconstruction_weight=2")
    batch = batch_of(bodies, recipe, size=(16, 16, 16))
    result = method(batch, return_diagnostics=True)
    image, hidden = result.pictures["reconstruction"], result.pictures["mask"]
    assert hidden.float().mean((1, 2, 3, 4)).tolist() == pytest.approx([0.75] * 4)
    by_hand = [(image[k] - batch.targets[0, k])[hidden[k] & batch.valid[0, k]].square().mean() for k in range(4)]
    assert float(result.logs["reconstruction"]) == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    assert float(result.logs["loss"]) == pytest.approx(2 * float(result.logs["reconstruction"]), rel=1e-6)


@pytest.mark.parametrize("recipe", ["mae-resenc-xs", "mae-primus-xs", "simmim-primus-xs", "spark-resenc-xs"])
def test_masked_voxels_do_not_reach_the_network(recipe, bodies):
    """The mask of the loss is that of the network: voxels of masked blocks do not affect the restored image."""
    method, batch = method_of(recipe).eval(), batch_of(bodies, recipe)
    before = method.forward_features(batch)
    hidden = to_voxels(before["mask"].flatten(0, 1), batch.size, method.backbone.block).unflatten(0, batch.count)
    other = ViewBatch(**{**vars(batch), "views": torch.where(hidden, 50.0, batch.views)})
    assert torch.equal(method.forward_features(other)["image"], before["image"])
    seen = ViewBatch(**{**vars(batch), "views": torch.where(hidden, batch.views, 50.0)})
    assert not torch.equal(method.forward_features(seen)["image"], before["image"])


def test_mae_without_masking_is_an_autoencoder(bodies):
    result = method_of("mae-resenc-xs", "masking.ratio=0")(batch_of(bodies, "mae-resenc-xs"), return_diagnostics=True)
    assert not result.pictures["mask"].any()
    assert float(result.logs["loss"]) > 0


def test_mae_has_one_view_and_no_teacher():
    method = method_of("mae-primus-xs")
    assert not [name for name, _ in method.named_parameters() if "teacher" in name]
    assert requirements_of(load("mae-primus-xs")).sampler.__name__ == "sample_one"


def test_genesis_restores_the_clean_view(bodies):
    method, batch = method_of("genesis-resenc-xs"), batch_of(bodies, "genesis-resenc-xs")
    result = method(batch, return_diagnostics=True)
    inputs, image = result.pictures["input"], result.pictures["reconstruction"]
    assert not torch.equal(inputs, batch.views[0])
    by_hand = torch.stack([(image[k] - batch.targets[0, k])[batch.valid[0, k]].square().mean() for k in range(4)])
    assert float(result.logs["loss"]) == pytest.approx(float(by_hand.mean()), rel=1e-5)
    untouched = method_of("genesis-resenc-xs", *(f"pretext.p_{name}=0" for name in ("shuffle", "nonlinear", "paint")))
    assert torch.equal(untouched.corrupt(batch), batch.views[0])


def test_fusion_uses_pairs_of_volumes(bodies):
    method, batch = method_of("fusion-resenc-xs"), batch_of(bodies, "fusion-resenc-xs")
    labels, valid, fused = method.fuse(batch)
    assert labels.shape == (2, 16, 16, 16)
    for k in range(2):
        weight = labels[k] / 4
        expected = weight * batch.views[0, 2 * k, 0] + (1 - weight) * batch.views[0, 2 * k + 1, 0]
        assert torch.allclose(fused[k, 0], expected, atol=1e-6)
        assert torch.equal(valid[k], batch.valid[0, 2 * k] & batch.valid[0, 2 * k + 1])
    result = method(batch)
    assert float(result.logs["loss"]) == pytest.approx(
        float(result.logs["dice_loss"] + result.logs["cross_entropy"]), rel=1e-6
    )


def test_rotation_labels(bodies):
    method = method_of("swinunetr-resenc-xs", "pretext.cut=0")
    batch = batch_of(bodies, "swinunetr-resenc-xs", mirror=False)
    inputs, aim, valid, turns = method.copies(batch)
    assert inputs.shape == (8, 1, 16, 16, 16)
    assert set(turns.tolist()) <= {0, 1, 2, 3}
    assert len(set(turns.tolist())) > 1
    for number, turn in enumerate(turns.tolist()):
        for made, source in ((inputs, batch.views), (aim, batch.targets), (valid, batch.valid)):
            assert torch.equal(torch.rot90(made[number], -turn, (2, 3)), source[0, number % 4])


def test_cutouts_contain_noise_or_the_other_volume(bodies):
    method = method_of("swinunetr-resenc-xs")
    batch = batch_of(bodies, "swinunetr-resenc-xs", mirror=False)
    inputs, aim, _, turns = method.copies(batch)
    changed = inputs != aim
    assert 0.02 < float(changed.float().mean()) < 0.6
    partners = torch.stack([torch.rot90(batch.views[0, (k % 4) ^ 1], int(t), (2, 3)) for k, t in enumerate(turns)])
    assert (changed & (inputs == partners)).any()
    assert (changed & (inputs != partners)).any()


def test_swinunetr_loss_is_the_sum_of_its_tasks(bodies):
    logs = method_of("swinunetr-resenc-xs")(batch_of(bodies, "swinunetr-resenc-xs", mirror=False)).logs
    parts = sum(float(logs[name]) for name in ("reconstruction", "rotation", "contrastive"))
    assert float(logs["loss"]) == pytest.approx(parts, rel=1e-6)
    with pytest.raises(UserError, match=r"views\.patch_size"):
        method_of("swinunetr-resenc-xs", "views.patch_size=[16,16,24]")


def test_voco_loss_of_perfect_features(bodies):
    """If a view's features were its overlaps with an orthogonal grid, VoCo's loss would be near its floor."""
    settings = ["views.patch_size=[8,8,16]", "pretext.grid=[2,2,1]", "pretext.targets=2", "pretext.min_valid=0"]
    method = method_of("voco-resenc-xs", *settings)
    batch = batch_of(bodies, "voco-resenc-xs", *settings, size=(8, 8, 16))
    assert batch.count == (6, 4)
    weight = box_overlaps(batch.to_volume, batch.size, 2)
    features = torch.cat([weight.transpose(0, 1), torch.eye(4, dtype=weight.dtype)[:, None].expand(4, 4, 4)])
    method.projector = Identity()
    good = method.compute_loss(batch, {"pooled": features.float()}).logs
    bad = method.compute_loss(batch, {"pooled": features.flip(2).float()}).logs
    worst = method.compute_loss(batch, {"pooled": torch.ones(6, 4, 4)}).logs
    assert float(good["orthogonality"]) == pytest.approx(0, abs=1e-6)
    assert float(good["overlap_error"]) < 0.25
    assert float(good["loss"]) < min(float(bad["loss"]) + 1e-9, float(worst["loss"]))


def test_simclr_needs_other_subjects(bodies):
    with pytest.raises(UserError, match="batch = 1"):
        method_of("simclr-resenc-xs", "batch=1")
    result = method_of("simclr-resenc-xs")(batch_of(bodies, "simclr-resenc-xs"))
    assert 0 < float(result.logs["loss"]) < 3 * np.log(7)


NESTED = ["pretext.local_size=[16,8,8]", "pretext.locals=2"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pcrlv2-resenc-xs", "pcrlv2-primus-xs"])
def test_pcrlv2_loss(recipe, bodies):
    method, batch = method_of(recipe, *NESTED), batch_of(bodies, recipe, *NESTED)
    assert (batch.count, batch.local.count, batch.local.size) == ((2, 4), (2, 4), (16, 8, 8))
    latents = method.forward_features(batch)
    logs = {name: float(value) for name, value in method.compute_loss(batch, latents).logs.items()}
    assert logs["loss"] == pytest.approx(sum(value for name, value in logs.items() if name != "loss"), rel=1e-5)
    scales = range(len(method.images))
    assert len(scales) == (3 if "resenc" in recipe else 2)
    coarse, among, across = [], [], []
    for scale in scales:
        image, block = latents[f"image{scale}"], 2**scale
        errors = []
        for view in range(2):
            for k in range(4):
                target, valid = batch.targets[view, k, 0], batch.valid[view, k, 0]
                total, weight = 0.0, 0.0
                for cell in np.ndindex(*image.shape[3:]):
                    place = tuple(slice(block * n, block * (n + 1)) for n in cell)
                    fraction = float(valid[place].float().mean())
                    if fraction:
                        mean = target[place][valid[place]].mean()
                        total += fraction * float((image[view, k, 0][cell].detach() - mean) ** 2)
                        weight += fraction
                errors.append(total / weight)
        coarse.append(np.mean(errors))
        large, small = (method.projectors[scale](latents[f"{n}{scale}"].flatten(0, 1), torch.ones(8)) for n in SIZES)
        mine, theirs = (method.predictors[scale](one, torch.ones(8)).view(2, 4, -1) for one in (large, small))
        large = large.view(2, 4, -1)
        among += [1 - torch.cosine_similarity(mine[v], large[1 - v], dim=1).mean() for v in range(2)]
        across += [1 - torch.cosine_similarity(theirs[v], large[w], dim=1).mean() for v in range(2) for w in range(2)]
    assert logs["reconstruction"] == pytest.approx(coarse[0], rel=1e-4)
    assert logs["coarse_reconstruction"] == pytest.approx(np.mean(coarse[1:]), rel=1e-4)
    assert logs["global_distance"] == pytest.approx(float(sum(among)) / len(among), rel=1e-4)
    assert logs["local_distance"] == pytest.approx(float(sum(across)) / len(across), rel=1e-4)


SIZES = ("large", "small")


def test_pcrlv2_compares_every_local_view(bodies):
    """Each local view affects the loss, and only through its comparison with large ones."""
    method, batch = method_of("pcrlv2-resenc-xs", *NESTED), batch_of(bodies, "pcrlv2-resenc-xs", *NESTED)
    before = method(batch).logs
    for view in range(2):
        views = batch.local.views.clone()
        views[view] = views[view].roll(3, -1) ** 2
        local = ViewBatch(**{**vars(batch.local), "views": views})
        after = method(ViewBatch(**{**vars(batch), "local": local})).logs
        assert not torch.equal(after["local_distance"], before["local_distance"])
        for name in ("reconstruction", "coarse_reconstruction", "global_distance"):
            assert torch.equal(after[name], before[name])


def test_pcrlv2_restores_the_view_before_noise_and_blur(bodies):
    """The target is not the augmented view."""
    settings = [*NESTED, "views.photometric.p_noise=1"]
    recipe = load("pcrlv2-resenc-xs", settings, common=SMALL)
    every = np.arange(len(bodies))
    reader = SampleReader(
        bodies, every, every, ViewSamplingConfig((16, 16, 16)), 4, seed=1, sampler=requirements_of(recipe).sampler
    )
    batch = build_views([reader[k] for k in range(4)], (16, 16, 16), IntensityConfig(p_noise=1.0))
    assert not torch.equal(batch.views, batch.targets)
    method = method_of("pcrlv2-resenc-xs", *NESTED)
    result = method(batch, return_diagnostics=True)
    error = (result.pictures["reconstruction"] - batch.targets.flatten(0, 1)).square()
    valid = batch.valid.flatten(0, 1)
    by_hand = torch.stack([one[counts].mean() for one, counts in zip(error, valid, strict=True)]).mean()
    assert float(result.logs["reconstruction"]) == pytest.approx(float(by_hand), rel=1e-5)


def test_pcrlv2_rejects_impossible_layouts():
    for setting, sentence in (
        ("pretext.local_size=[32,16,16]", r"pretext\.local_size"),
        ("pretext.local_size=[12,8,8]", r"pretext\.local_size.*multiple of 8"),
        ("pretext.local_size=[8,8,8]", "single voxel"),
        ("pretext.extent=[1.2,0.8]", r"pretext\.extent"),
    ):
        with pytest.raises(UserError, match=sentence):
            method_of("pcrlv2-resenc-xs", setting)


def test_voco_without_a_pair_to_compare_reports_the_largest_error(bodies):
    """An error of 0 would look like perfect predictions."""
    method, batch = method_of("voco-resenc-xs"), batch_of(bodies, "voco-resenc-xs")
    assert 0 < float(method(batch).logs["overlap_error"]) < 1
    outside = ViewBatch(**{**vars(batch), "valid": torch.zeros_like(batch.valid)})
    assert float(method(outside).logs["overlap_error"]) == 1


def test_gvsl_s_roughness_does_not_depend_on_the_grid_of_the_field(bodies):
    method, batch = method_of("gvsl-resenc-xs", *PLAIN), batch_of(bodies, "gvsl-resenc-xs", mirror=False)
    latents = method.forward_features(batch)
    for grid in ((16, 16, 16), (8, 8, 8), (2, 4, 8)):
        field = (0.1 * cell_centres(grid, batch.size, torch.zeros(1))).movedim(-1, 0).expand(1, 4, 3, *grid)
        rough = method.compute_loss(batch, {**latents, "field": field}).logs["roughness"]
        assert float(rough) == pytest.approx(0.01 / 3, rel=1e-4)


def test_gvsl_needs_a_window_with_a_middle():
    with pytest.raises(UserError, match=r"pretext\.window"):
        method_of("gvsl-resenc-xs", "pretext.window=2")


PLAIN = [f"pretext.p_{name}=0" for name in ("elastic", "shuffle", "nonlinear", "paint")]


@pytest.mark.parametrize("recipe", ["gvsl-resenc-xs", "gvsl-primus-xs"])
def test_gvsl_starts_at_the_identity(recipe, bodies):
    method, batch = method_of(recipe, *PLAIN), batch_of(bodies, recipe, mirror=False)
    latents = method.forward_features(batch)
    partners = (batch.targets * batch.valid)[0, [1, 0, 3, 2]]
    assert torch.allclose(latents["moved"][0], partners, atol=1e-4)
    assert not latents["field"].any()
    logs = {name: float(value) for name, value in method.compute_loss(batch, latents).logs.items()}
    assert logs["loss"] == pytest.approx(logs["reconstruction"] + logs["dissimilarity"] + logs["roughness"], rel=1e-6)
    error = (latents["image"][0] - batch.targets[0]).square()
    by_hand = torch.stack([error[k][batch.valid[0, k]].mean() for k in range(4)]).mean()
    assert logs["reconstruction"] == pytest.approx(float(by_hand), rel=1e-5)
    assert logs["dissimilarity"] == pytest.approx(
        float(local_ncc(partners, batch.targets[0], batch.valid[0])), rel=1e-3
    )


def test_gvsl_applies_the_field_and_then_the_affine(bodies):
    """With known outputs of the heads the registered image agrees with scipy."""
    method, batch = method_of("gvsl-resenc-xs", *PLAIN), batch_of(bodies, "gvsl-resenc-xs", mirror=False)
    with torch.no_grad():
        method.affine_head.layers[2].bias.copy_(torch.linspace(-0.2, 0.2, 12))
        method.field_head.layers[4].bias.copy_(torch.tensor([1.5, -0.5, 0.25]))
        latents = method.forward_features(batch)
    affine = method.affine_head(torch.zeros(1, method.affine_head.layers[0].in_features), batch.size)
    partners, where = batch.targets[0, [1, 0, 3, 2], 0] * batch.valid[0, [1, 0, 3, 2], 0], np.indices(batch.size)
    predicted = 0.5 * np.tanh(np.linspace(-0.2, 0.2, 12))
    linear, middle = np.eye(3) + predicted[:9].reshape(3, 3), 7.5
    places = where.reshape(3, -1).T + np.array([1.5, -0.5, 0.25])
    places = (places - middle) @ linear.T + middle + predicted[9:] * 16
    assert affine.shape == (1, 3, 4)
    for k in range(4):
        moved = map_coordinates(partners[k].numpy(), places.T, order=1, mode="grid-constant").reshape(batch.size)
        assert np.abs(latents["moved"][0, k, 0].detach().numpy() - moved).max() < 1e-4


@pytest.mark.slow
def test_gvsl_learns_a_shift(bodies):
    """Pairs of views of one volume, two voxels apart: both shifts are predicted to within a voxel."""
    settings = [*PLAIN, "pretext.window=7"]
    method, batch = method_of("gvsl-resenc-xs", *settings), batch_of(bodies, "gvsl-resenc-xs", mirror=False)
    rng = np.random.default_rng(0)
    volumes = [gaussian_filter(rng.normal(size=(24, 24, 24)), 1.5) for _ in range(2)]
    pairs = [one[4:20, 4:20, 4 + shift : 20 + shift] / one.std() for one in volumes for shift in (0, 2)]
    views = torch.from_numpy(np.stack(pairs)).float()[None, :, None]
    batch = ViewBatch(**{**vars(batch), "views": views, "targets": views, "valid": torch.ones_like(batch.valid)})
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(60):
        result = method(batch)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(float(result.logs["dissimilarity"]))
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        encoded = method.backbone.encode(views[0])
        vectors = masked_mean(method.backbone.maps(encoded), batch.valid[0])
        affine, field = method.register(vectors, method.backbone.finest(encoded), batch.size)
    grid = (8, 8, 8)
    predicted = map_grid(affine, grid, batch.size, field) - cell_centres(grid, batch.size, field)
    middle = predicted[:, 2:6, 2:6, 2:6].mean((1, 2, 3))
    # Voxel x of the first view is voxel x - 2 of the second.
    assert middle[:, 2].tolist() == pytest.approx([-2, 2, -2, 2], abs=1)
    assert middle[:, :2].abs().max() < 0.5


def test_gvsl_deforms_views_targets_and_validity_alike(bodies):
    method = method_of("gvsl-resenc-xs", "pretext.p_elastic=1")
    batch = batch_of(bodies, "gvsl-resenc-xs", mirror=False)
    deformed = method.clean_views(batch)
    assert torch.equal(deformed.views, deformed.targets)
    assert not torch.allclose(deformed.views, batch.views, atol=0.05)
    assert (deformed.views[~deformed.valid] == 0).all()
    assert 0.5 < float(deformed.valid.float().mean()) <= float(batch.valid.float().mean())
    assert torch.equal(method.clean_views(batch).views, deformed.views)
    unchanged = method_of("gvsl-resenc-xs", "pretext.p_elastic=0").clean_views(batch)
    assert torch.equal(unchanged.views, batch.views)


@pytest.mark.parametrize("recipe", ["mae-resenc-xs", "mae-primus-xs", "simmim-primus-xs", "spark-resenc-xs"])
def test_masked_modelling_of_nothing_is_rejected(recipe):
    """A ratio whose rounding masks no block, a view that is one block, and no weight: each has a loss of 0."""
    with pytest.raises(UserError, match=r"masking\.ratio=0\.001.*views\.patch_size=\[16, 16, 16\].*blocks"):
        method_of(recipe, "masking.ratio=0.001")
    with pytest.raises(UserError, match=r"objectives\.reconstruction_weight"):
        method_of(recipe, "objectives.reconstruction_weight=0")
    if "resenc" in recipe:
        with pytest.raises(UserError, match=r"1 block of \[16, 16, 16\].*masking\.block"):
            method_of(recipe, "masking.block=16")


def test_spark_rejects_unsupported_masks():
    with pytest.raises(UserError, match="powers of two"):
        method_of("spark-resenc-xs", "masking.block=6")
    with pytest.raises(UserError, match="powers of two"):
        method_of("spark-resenc-xs", "masking.ratio=0")
