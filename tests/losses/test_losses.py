import math

import pytest
import torch
from torch.nn import functional as F

from viewalign.losses.consistency import cosine_consistency, gram_consistency, siamese_cosine
from viewalign.losses.contrastive import dense_nt_xent, global_nt_xent, view_nt_xent
from viewalign.losses.distillation import PrototypeTargets, sinkhorn_knopp, token_cross_entropy, view_cross_entropy
from viewalign.losses.reconstruction import masked_huber, masked_mse
from viewalign.losses.reduction import mean_per_view
from viewalign.losses.registration import local_ncc


def test_every_view_has_the_same_weight():
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    weight = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert float(mean_per_view(values, weight)) == pytest.approx((1.5 + 4.0 + 0.0) / 3)


def test_a_view_of_weight_0_has_no_gradient():
    values = torch.ones(2, 3, requires_grad=True)
    mean_per_view(values, torch.tensor([[0, 0, 0], [1, 0, 0]])).backward()
    assert values.grad.tolist() == [[0, 0, 0], [0.5, 0, 0]]


def test_masked_huber():
    prediction = torch.tensor([0.5, 3.0, 100.0, 0.0]).view(1, 1, 4, 1, 1)
    counts = torch.tensor([True, True, False, True]).view(1, 1, 4, 1, 1)
    expected = (0.5 * 0.5**2 + (3.0 - 0.5) + 0.0) / 3
    assert float(masked_huber(prediction, torch.zeros_like(prediction), counts)) == pytest.approx(expected)
    double = (0.5 * 0.5**2 + 2.0 * (3.0 - 1.0) + 0.0) / 3
    assert float(masked_huber(prediction, torch.zeros_like(prediction), counts, delta=2.0)) == pytest.approx(double)


@pytest.mark.parametrize(("angle", "loss"), [(0.0, 0.0), (60.0, 1.0), (90.0, 2.0), (180.0, 4.0)])
def test_cosine_consistency_by_angle(angle, loss):
    turned = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))]) * 7
    got = cosine_consistency(turned.expand(2, 5, 2), torch.tensor([3.0, 0.0]).expand(2, 5, 2), torch.ones(2, 5))
    assert float(got) == pytest.approx(loss, abs=1e-5)


def plain_nt_xent(student, teacher, subject, temperature):
    """NT-Xent row by row."""
    rows = [("s", v, b, student[v, b]) for v in range(2) for b in range(student.shape[1])]
    rows += [("t", v, b, teacher[v, b]) for v in range(2) for b in range(student.shape[1])]
    losses, hits = [], []
    for network, view, image, anchor in rows:
        scores = []
        for other_network, other_view, other_image, vector in rows:
            similarity = float(F.cosine_similarity(anchor, vector, dim=0)) / temperature
            if (other_network, other_view, other_image) == ("t" if network == "s" else "s", 1 - view, image):
                positive = similarity
            elif subject[other_image] != subject[image]:
                scores.append(similarity)
        losses.append(-positive + math.log(sum(math.exp(s) for s in [*scores, positive])))
        hits.append(positive > max(scores))
    return sum(losses) / len(losses), sum(hits) / len(hits)


@pytest.mark.parametrize("subjects", [[0, 1, 2, 3], [0, 0, 1, 2], [5, 5, 9, 9]])
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_nt_xent_agrees_with_a_loop(subjects, temperature):
    torch.manual_seed(len(subjects))
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    loss, accuracy = global_nt_xent(student, teacher, torch.tensor(subjects), temperature)
    expected = plain_nt_xent(student, teacher, subjects, temperature)
    assert float(loss) == pytest.approx(expected[0], abs=1e-9)
    assert float(accuracy) == pytest.approx(expected[1])


def test_nt_xent_of_equal_embeddings():
    same = torch.ones(2, 3, 4)
    loss, _ = global_nt_xent(same, same, torch.arange(3))
    assert float(loss) == pytest.approx(math.log(1 + 4 * 2), abs=1e-5)


def test_gradient_of_nt_xent():
    student = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: global_nt_xent(s, teacher, torch.arange(3)).loss, (student,))


def test_defaults_are_the_published_ones():
    torch.manual_seed(0)
    a, b, weight = torch.randn(2, 4, 6), torch.randn(2, 4, 6), torch.rand(2, 4)
    assert torch.equal(global_nt_xent(a, b, torch.arange(4)).loss, global_nt_xent(a, b, torch.arange(4), 0.5).loss)
    assert torch.equal(view_nt_xent(a, torch.arange(4)).loss, view_nt_xent(a, torch.arange(4), 0.5).loss)
    assert torch.equal(dense_nt_xent(a, b, weight), dense_nt_xent(a, b, weight, temperature=0.5, over_batch=False))
    assert torch.equal(view_cross_entropy(a, b.softmax(-1)), view_cross_entropy(a, b.softmax(-1), 0.1))
    assert torch.equal(token_cross_entropy(a, b, weight), token_cross_entropy(a, b, weight, 0.1))
    assert torch.equal(sinkhorn_knopp(a[0], 0.1), sinkhorn_knopp(a[0], 0.1, iterations=3))
    made = PrototypeTargets(4)
    assert (made.kind, made.momentum, made.iterations) == ("centering", 0.9, 3)
    image, target = torch.randn(2, 2, 1, 12, 11, 10)
    counts = torch.rand(2, 1, 12, 11, 10) < 0.8
    assert torch.equal(masked_huber(image, target, counts), masked_huber(image, target, counts, delta=1.0))
    assert torch.equal(local_ncc(image, target, counts), local_ncc(image, target, counts, window=9))


def test_similarities_are_float32_under_autocast():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 32), torch.randn(2, 4, 32)
    plain = global_nt_xent(student, teacher, torch.arange(4)).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(global_nt_xent(student, teacher, torch.arange(4)).loss, plain)


def similarity_losses(rows, others):
    """Every loss of similarities, of vectors (2, 4, C)."""
    weight, subject = torch.ones(2, 4), torch.arange(4)
    yield from (view_nt_xent(rows, subject).loss, global_nt_xent(rows, others, subject).loss)
    yield from (loss(rows, others, weight) for loss in (dense_nt_xent, cosine_consistency, gram_consistency))
    yield siamese_cosine(rows, others, same_views=True)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_vectors_of_16_bits_are_compared_in_float32(kind):
    """A network's last layer returns them under autocast."""
    rows, others = (torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(k)).to(kind) for k in (0, 1))
    for loss, expected in zip(
        similarity_losses(rows, others), similarity_losses(rows.float(), others.float()), strict=True
    ):
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)


def plain_dense(prediction, target, weight, temperature):
    """Dense NT-Xent row by row, for each pair."""
    losses = []
    for p, t, w in zip(prediction, target, weight, strict=True):
        rows = [("p", k, v) for k, v in enumerate(p)] + [("t", k, v) for k, v in enumerate(t)]
        total, count = 0.0, 0.0
        for network, position, anchor in rows:
            if w[position] == 0:
                continue
            scores, positive = [], None
            for other, where, vector in rows:
                similarity = float(F.cosine_similarity(anchor, vector, dim=0)) / temperature
                if where == position:
                    positive = similarity if other != network else positive
                elif w[where] > 0:
                    scores.append(similarity)
            total += float(w[position]) * (-positive + math.log(sum(math.exp(s) for s in [*scores, positive])))
            count += float(w[position])
        losses.append(total / count if count else 0.0)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dead", [(), (1, 4), tuple(range(6))])
def test_dense_nt_xent_agrees_with_a_loop(dead):
    torch.manual_seed(0)
    prediction, target = torch.randn(3, 6, 5, dtype=torch.float64), torch.randn(3, 6, 5, dtype=torch.float64)
    weight = torch.rand(3, 6, dtype=torch.float64) + 0.1
    weight[1, list(dead)] = 0
    got = dense_nt_xent(prediction, target, weight, 0.5)
    assert float(got) == pytest.approx(plain_dense(prediction, target, weight, 0.5), abs=1e-9)


def test_dense_nt_xent_with_negatives_of_the_batch():
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    weight = torch.ones(2, 4, dtype=torch.float64)
    joined = plain_dense(prediction.view(1, 8, 5), target.view(1, 8, 5), weight.view(1, 8), 0.5)
    assert float(dense_nt_xent(prediction, target, weight, 0.5, over_batch=True)) == pytest.approx(joined, abs=1e-9)


def test_dense_nt_xent_of_equal_vectors():
    same = torch.ones(2, 5, 3)
    assert float(dense_nt_xent(same, same, torch.ones(2, 5))) == pytest.approx(math.log(9), abs=1e-5)


def test_gram_consistency_ignores_positions():
    a = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    b = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]])
    # Gram of a is the identity; of b it is diag(2, 0): differences 1 and 1 on the diagonal, 0 elsewhere.
    assert float(gram_consistency(a, b, torch.ones(1, 2))) == pytest.approx(0.5)
    torch.manual_seed(0)
    x, y = torch.randn(2, 30, 8), torch.randn(2, 30, 8)
    plain = gram_consistency(x, y, torch.ones(2, 30))
    assert torch.allclose(gram_consistency(x, y[:, torch.randperm(30)], torch.ones(2, 30)), plain, atol=1e-6)
    assert not torch.allclose(
        cosine_consistency(x, y[:, torch.randperm(30)], torch.ones(2, 30)), cosine_consistency(x, y, torch.ones(2, 30))
    )


def test_gram_consistency_ignores_positions_of_weight_0():
    torch.manual_seed(0)
    x, y = torch.randn(1, 10, 4), torch.randn(1, 10, 4)
    weight = torch.ones(1, 10)
    weight[:, 6:] = 0
    clean = gram_consistency(x, y, weight)
    x[:, 6:], y[:, 6:] = 50.0, -3.0
    assert torch.allclose(gram_consistency(x, y, weight), clean, atol=1e-5)
    assert float(gram_consistency(x, y, torch.zeros(1, 10))) == 0.0


def test_gram_consistency_counts_positions_by_their_share_and_scales_to_all():
    torch.manual_seed(0)
    x, y, weight = torch.randn(2, 10, 4), torch.randn(2, 10, 4), torch.ones(2, 10)
    weight[0, 6:] = 0
    alone = gram_consistency(x[:1, :6], y[:1, :6], torch.ones(1, 6))
    assert torch.allclose(gram_consistency(x[:1], y[:1], weight[:1]), alone * (10 / 6) ** 2)
    assert torch.allclose(gram_consistency(x, y, 0.01 * weight), gram_consistency(x, y, weight))
    twice = torch.cat([x[:1, :6], x[:1, :3]], 1), torch.cat([y[:1, :6], y[:1, :3]], 1)
    double = torch.tensor([[2.0, 2, 2, 1, 1, 1]])
    assert torch.allclose(
        gram_consistency(*twice, torch.ones(1, 9)), gram_consistency(x[:1, :6], y[:1, :6], double) * (9 / 6) ** 2
    )
    weight[0] = 0
    assert torch.allclose(gram_consistency(x, y, weight), gram_consistency(x[1:], y[1:], weight[1:]) / 2)


@pytest.mark.parametrize("objective", [cosine_consistency, gram_consistency, dense_nt_xent])
def test_gradients_of_consistency(objective):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 4, 3, dtype=torch.float64)
    weight = torch.rand(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: objective(p, y, weight), (x,))


def test_masked_mse():
    prediction = torch.tensor([1.0, 3.0, 100.0]).view(1, 1, 3, 1, 1)
    counts = torch.tensor([True, True, False]).view(1, 1, 3, 1, 1)
    assert float(masked_mse(prediction, torch.zeros_like(prediction), counts)) == pytest.approx(5.0)


@pytest.mark.parametrize("same", [True, False])
def test_siamese_cosine_agrees_with_a_loop(same):
    torch.manual_seed(0)
    predictions, targets = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    pairs = [(v, w) for v in range(2) for w in range(2) if not (same and v == w)]
    by_hand = [
        1 - float(F.cosine_similarity(predictions[v, b], targets[w, b], dim=0).detach())
        for b in range(3)
        for v, w in pairs
    ]
    loss = siamese_cosine(predictions, targets, same_views=same)
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    loss.backward()
    assert predictions.grad.abs().max() > 0
    assert targets.grad is None
