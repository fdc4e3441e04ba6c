import math

import pytest
import torch
from torch.nn import functional as F

from viewalign.objectives.consistency import cosine_consistency
from viewalign.objectives.contrastive import global_nt_xent
from viewalign.objectives.means import mean_per_view
from viewalign.objectives.reconstruction import masked_huber


def test_views_count_alike_whatever_counts_in_them():
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    weight = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert float(mean_per_view(values, weight)) == pytest.approx((1.5 + 4.0 + 0.0) / 3)


def test_a_view_of_nothing_has_no_gradient_and_no_nan():
    values = torch.ones(2, 3, requires_grad=True)
    mean_per_view(values, torch.tensor([[0, 0, 0], [1, 0, 0]])).backward()
    assert values.grad.tolist() == [[0, 0, 0], [0.5, 0, 0]]


def test_huber_by_hand():
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
    """NT-Xent one row at a time, as its definition says."""
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
def test_nt_xent_agrees_with_a_plain_loop(subjects, temperature):
    torch.manual_seed(len(subjects))
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    loss, accuracy = global_nt_xent(student, teacher, torch.tensor(subjects), temperature)
    expected = plain_nt_xent(student, teacher, subjects, temperature)
    assert float(loss) == pytest.approx(expected[0], abs=1e-9)
    assert float(accuracy) == pytest.approx(expected[1])


def test_nt_xent_of_equal_embeddings_is_the_log_of_the_candidates():
    same = torch.ones(2, 3, 4)
    loss, _ = global_nt_xent(same, same, torch.arange(3))
    assert float(loss) == pytest.approx(math.log(1 + 4 * 2), abs=1e-5)


def test_nt_xent_gradient_reaches_the_student():
    student = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: global_nt_xent(s, teacher, torch.arange(3)).loss, (student,))


def test_similarities_are_never_lowered_to_bfloat16():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 32), torch.randn(2, 4, 32)
    plain = global_nt_xent(student, teacher, torch.arange(4)).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(global_nt_xent(student, teacher, torch.arange(4)).loss, plain)
