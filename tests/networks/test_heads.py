import pytest
import torch
from torch.nn import functional as F

from viewalign.networks import heads, teacher


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_weighted_batch_norm_agrees_with_batch_norm():
    rows = torch.randn(50, 8)
    norm = heads.WeightedBatchNorm(8, affine=False)
    assert torch.allclose(norm(rows, torch.ones(50)), F.batch_norm(rows, None, None, training=True), atol=1e-5)
    assert not list(norm.buffers())
    norm.eval()
    assert torch.allclose(norm(rows, torch.ones(50)), F.batch_norm(rows, None, None, training=True), atol=1e-5)


def test_rows_of_weight_0_do_not_affect_statistics():
    rows = torch.randn(50, 8)
    weight = torch.ones(50)
    weight[30:] = 0
    norm = heads.WeightedBatchNorm(8)
    clean = norm(rows, weight)[:30]
    rows[30:] = 1e4
    assert torch.allclose(norm(rows, weight)[:30], clean, atol=1e-5)
    assert torch.allclose(clean, norm(rows[:30], torch.ones(30)), atol=1e-5)


def test_gradients_of_weighted_batch_norm():
    rows = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    norm = heads.WeightedBatchNorm(3).double()
    assert torch.autograd.gradcheck(
        lambda r: norm(r, torch.rand(6, generator=torch.Generator().manual_seed(0))), (rows,)
    )


def test_published_parameter_counts():
    published_resenc, published_primus = 10_688_512, 10_176_512
    two_hidden_norms = 2 * 2 * 2048
    assert count(heads.projector(1120, 2048, "batch")) == published_resenc + two_hidden_norms
    # Primus' published head also scales and shifts after its last norm, which ours does not.
    assert count(heads.projector(864, 2048, "batch")) == published_primus - 2 * 2048
    assert count(heads.predictor(2048, 512, "batch")) == 2_100_736


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_heads_return_float32_under_autocast(norm):
    head = heads.projector(16, 32, norm)
    rows = torch.randn(20, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(rows, torch.ones(20))
    assert out.dtype == torch.float32
    if norm == "batch":
        assert torch.allclose(out.mean(0), torch.zeros(32), atol=1e-5)


def test_teacher_is_a_moving_average():
    torch.manual_seed(0)
    student, follower = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = {
        n: 0.9 * p.detach() + 0.1 * dict(student.named_parameters())[n].detach() for n, p in follower.named_parameters()
    }
    follower.requires_grad_(False)
    teacher.update_ema(*teacher.pair_parameters(student, follower), 0.9)
    for name, value in follower.named_parameters():
        assert torch.allclose(value, expected[name])
        assert not value.requires_grad


def test_teacher_parameters_must_exist_in_the_student():
    with pytest.raises(ValueError, match="bias"):
        teacher.pair_parameters(torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(3, 2))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_pooled_vectors_are_embedded_in_float32(norm):
    """Batch normalisation over eight vectors would magnify the rounding of bfloat16."""
    torch.manual_seed(0)
    projector, predictor = heads.projector(16, 32, norm), heads.predictor(32, 8, norm)
    pooled, results = torch.randn(2, 4, 16), []
    for lowered in (False, True):
        rows = pooled.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            out = heads.embed(rows, lambda rows, weight: predictor(projector(rows, weight), weight))
        out.square().sum().backward()
        results.append([rows.grad, *(one.grad.clone() for one in projector.parameters())])
        projector.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
