"""DINO: its terms by hand, what the networks see, and what depends on the step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from viewalign.errors import UserError
from viewalign.methods.registry import build_method, requirements_of
from viewalign.methods.self_distillation import Schedules, gram_grid
from viewalign.networks.masking import to_voxels
from viewalign.networks.prototypes import PrototypeHead
from viewalign.recipes.loading import load
from viewalign.views.batch import build_views
from viewalign.views.samples import SampleReader
from viewalign.views.sampling import ViewSamplingConfig

SMALL = ["views.patch_size=[16,16,16]", "heads.width=16", "batch=4", "pretext.locals=2", "pretext.local_size=[8,8,16]"]
SMALL += ["pretext.prototypes=16", "pretext.bottleneck=8"]
RECIPES = ["dino-cva-resenc-xs", "dino-cva-primus-xs"]


def method_of(recipe, *settings):
    torch.manual_seed(0)
    network = f"network={recipe.split('-')[-2]}-xxs"
    return build_method(load(recipe, settings, common=[*SMALL, network]))


@pytest.fixture(scope="module")
def batch(bodies):
    every, size = np.arange(len(bodies)), (16, 16, 16)
    sampler = requirements_of(load("dino-resenc-xs", common=SMALL)).sampler
    reader = SampleReader(bodies, every, every, ViewSamplingConfig(size), 4, seed=1, sampler=sampler)
    return build_views([reader[k] for k in range(4)], size, None)


def at_step(batch, step):
    return replace(batch, sample=batch.sample % 4 + 4 * step)


def entropy_by_hand(target, logits):
    return -(target * torch.log_softmax(logits / 0.1, -1)).sum(-1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_terms_by_hand(recipe, batch):
    method = method_of(recipe, "pretext.positions=20", "pretext.koleo_weight=0.5", "pretext.alignment_weight=2")
    latents = method.forward_features(batch)
    result = method.compute_loss(batch, latents)
    views = torch.cat([latents["global"], latents["local"]])
    student, teacher = method.student.head(views), method.teacher.head(latents["teacher_global"])
    targets = torch.softmax(teacher / 0.04, -1)
    pairs = [(v, w) for v in range(4) for w in range(2) if v != w]
    by_hand = torch.stack([entropy_by_hand(targets[w], student[v]) for v, w in pairs]).mean()
    assert result.logs["dino"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    for term, rows in (("ibot", latents["masked"]), ("alignment", None)):
        name = {"ibot": "masked", "alignment": "aligned"}[term]
        if rows is None:
            local = latents["aligned_local"].transpose(0, 1).flatten(1, 2)
            rows = torch.cat([latents["aligned"].flip(0), local.expand(2, *local.shape)], dim=2)
        target = torch.softmax(method.teacher.position_head(latents[f"teacher_{name}"]) / 0.04, -1)
        errors, counts = entropy_by_hand(target, method.student.position_head(rows)), latents[f"{name}_valid"]
        means = [e[c].mean() if c.any() else e.sum() * 0 for e, c in
                 zip(errors.flatten(0, 1), counts.flatten(0, 1), strict=True)]  # fmt: skip
        assert result.logs[term].item() == pytest.approx(torch.stack(means).mean().item(), rel=1e-5)
    terms = {name: result.logs[name].item() for name in ("dino", "ibot", "koleo", "alignment")}
    expected = terms["dino"] + terms["ibot"] + 0.5 * terms["koleo"] + 2 * terms["alignment"]
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_student_sees_masked_views_and_predicts_what_is_there(recipe, batch):
    method = method_of(recipe).eval()
    before = method.forward_features(batch)
    block = method.student.backbone.block
    hidden = before["hidden"]
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.06)
    voxels = to_voxels(hidden.flatten(0, 1), batch.size, block).unflatten(0, batch.count)
    other = method.forward_features(replace(batch, views=torch.where(voxels, 5.0, batch.views)))
    assert torch.equal(other["global"], before["global"])
    assert torch.equal(other["masked"], before["masked"])
    assert not torch.equal(other["teacher_masked"], before["teacher_masked"])
    with torch.no_grad():
        _, dense = method.teacher.features(batch)
    rows = dense.flatten(2).transpose(1, 2).unflatten(0, batch.count)
    for view in range(2):
        for image in range(4):
            expected = rows[view, image][hidden[view, image]]
            assert torch.equal(before["teacher_masked"][view, image], expected)


def test_unmasked_student_and_teacher_are_equal_at_the_start(batch):
    method = method_of("dino-primus-xs", "pretext.ibot_weight=0").eval()
    latents = method.forward_features(batch)
    assert torch.equal(latents["global"], latents["teacher_global"])
    assert "masked" not in latents
    assert set(method.compute_loss(batch, latents).logs) == {
        *("loss", "dino", "koleo", "teacher_entropy", "prototype_usage")
    }


def test_teacher_follows_and_its_centres_are_in_the_checkpoint(batch):
    method = method_of("dino-resenc-xs", "teacher.momentum=0.5", "teacher.final_momentum=null")
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    method(batch).loss.backward()
    with torch.no_grad():
        method.student.head.prototypes += 1
    method.after_update(1)
    assert torch.allclose(method.teacher.head.prototypes, method.student.head.prototypes - 0.5)
    centres = [value for name, value in method.state_dict().items() if name.endswith("targets.center")]
    assert len(centres) == 2
    assert all(centre.abs().sum() > 0 for centre in centres)


def test_padding_and_validation_do_not_move_the_centres(batch):
    method = method_of("dino-resenc-xs")
    method.eval()(batch)
    method.after_update(1)
    assert not method.view_targets.center.any()
    method.train()(replace(batch, valid=torch.zeros_like(batch.valid)))
    method.after_update(2)
    assert not method.view_targets.center.any()
    assert not method.position_targets.center.any()


def test_prototypes_are_fixed_at_the_start(batch):
    method = method_of("dino-cva-resenc-xs", "pretext.freeze_steps=3")
    for step, moves in ((2, False), (3, True)):
        method.zero_grad()
        method(at_step(batch, step)).loss.backward()
        for head in (method.student.head, method.student.position_head):
            assert bool(head.prototypes.grad.any()) == moves
            assert head.layers[0].weight.grad.any()


def test_temperature_of_the_teacher(batch):
    schedules = Schedules(4, (0.04, 0.07), warmup=30)
    assert [schedules.teacher_temperature(step) for step in (0, 10, 30, 500)] == pytest.approx([0.04, 0.05, 0.07, 0.07])
    assert Schedules(4, (0.04, 0.07)).teacher_temperature(0) == 0.07
    assert [schedules.step(at_step(batch, step)) for step in (0, 7)] == [0, 7]
    assert schedules.step(at_step(batch, 7).part(2, 4)) == 7


def test_gram_anchoring_starts_and_renews_its_anchor(batch):
    settings = ["pretext.gram_weight=2", "pretext.gram_start=2", "pretext.gram_every=3"]
    method = method_of("dino-resenc-xs", *settings, "teacher.momentum=0", "teacher.final_momentum=null")
    assert "gram" not in method(at_step(batch, 1)).logs

    def change():
        with torch.no_grad():
            for parameter in method.student.backbone.parameters():
                parameter += 0.01
        method.after_update(1)

    def anchored():
        pairs = zip(method.anchor.parameters(), method.teacher.backbone.parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    for step, renewed in ((2, True), (3, False), (4, False), (5, True), (8, True)):
        change()
        result = method(at_step(batch, step))
        assert anchored() == renewed, step
        assert result.logs["gram"] > 0  # the student's views are masked
    change()
    method.eval()(at_step(batch, 11))
    assert not anchored()
    assert [gram_grid((n, 8, 8))[0] for n in (8, 20, 13, 24)] == [8, 10, 1, 12]


def test_cosines_of_the_head():
    torch.manual_seed(0)
    head = PrototypeHead(6, width=8, bottleneck=4, prototypes=5)
    rows = torch.randn(3, 6)
    logits, vectors = head(rows), head.layers(rows)
    for row in range(3):
        for k in range(5):
            a, b = vectors[row], head.prototypes[k]
            assert logits[row, k].item() == pytest.approx((a @ b / a.norm() / b.norm()).item(), rel=1e-4)


def test_layers_of_any_width_keep_the_scale():
    torch.manual_seed(0)
    for width in (16, 2048):
        head = PrototypeHead(64, width, bottleneck=8, prototypes=4)
        assert 0.05 < head.layers(torch.randn(64, 64)).std() < 1, width


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("pretext.local_size=[8,8,24]", r"pretext\.local_size"),
        ("pretext.local_size=[8,8,12]", r"pretext\.local_size"),
        ("pretext.extent=[1.2,0.8]", r"pretext\.extent"),
        ("pretext.teacher_temperature=[0,0.1]", r"pretext\.teacher_temperature"),
        ("masking.block=16", r"masking\.block"),
        ("masking.ratio=0", r"masking\.ratio"),
    ],
)
def test_settings_that_are_not_possible(setting, named):
    with pytest.raises(UserError, match=named):
        method_of("dino-resenc-xs", setting)


def test_a_loss_is_needed():
    with pytest.raises(UserError, match=r"pretext\.dino_weight"):
        method_of("dino-resenc-xs", "pretext.dino_weight=0", "pretext.ibot_weight=0")
