"""Losses of self-distillation against slow references in NumPy, written as loops in float64."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from viewalign.losses import DINOLoss, GramAnchoringLoss, IBOTLoss, KoLeoLoss, PrototypeTargets, distillation
from viewalign.losses.distillation import (
    gram_anchoring,
    koleo,
    prototype_figures,
    sinkhorn_knopp,
    token_cross_entropy,
    view_cross_entropy,
)


def rows_of(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row):
    powers = np.exp(np.array(row) - np.max(row))
    return powers / powers.sum()


def sinkhorn_by_loops(logits, temperature, weight, iterations):
    """Scale prototypes, then rows, one number at a time."""
    table = [[math.exp(value / temperature) for value in row] for row in logits]
    for _ in range(iterations):
        for k in range(len(table[0])):
            total = sum(share * row[k] for share, row in zip(weight, table, strict=True))
            for row in table:
                row[k] /= total
        for row in table:
            total = sum(row)
            row[:] = [value / total for value in row]
    return np.array(table)


@pytest.mark.parametrize("weight", [[1.0] * 6, [1.0, 0.5, 0.0, 2.0, 1.0, 1.0]])
def test_sinkhorn_has_equal_marginals_and_is_the_limit_of_the_published_order(weight):
    logits = rows_of(6, 4, scale=0.3)
    got = sinkhorn_knopp(logits, 0.1, torch.tensor(weight), iterations=200).numpy()
    assert got == pytest.approx(sinkhorn_by_loops(logits.tolist(), 0.1, weight, 200), abs=1e-9)
    assert got.sum(1) == pytest.approx(np.ones(6), abs=1e-12)
    assert (got * np.array(weight)[:, None]).sum(0) == pytest.approx(np.full(4, sum(weight) / 4), abs=1e-9)


def test_sinkhorn_of_few_iterations():
    """After a softmax, which the published order does not have, each iteration is that of the loops."""
    logits = rows_of(5, 3)
    begun = np.log([softmax(row) for row in logits.numpy() / 0.2])
    got = sinkhorn_knopp(logits, 0.2, iterations=2).numpy()
    assert got == pytest.approx(sinkhorn_by_loops(begun.tolist(), 1.0, [1.0] * 5, 2), abs=1e-12)
    assert sinkhorn_knopp(logits, 0.2, iterations=0).numpy() == pytest.approx(np.exp(begun), abs=1e-12)


def test_sinkhorn_of_large_logits_is_finite():
    assert sinkhorn_knopp(rows_of(8, 16, scale=100).float(), 0.04).isfinite().all()


def test_dino_by_loops():
    student, logits = rows_of(5, 3, 7), rows_of(2, 3, 7, seed=1)
    weight = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 1, 0.0]])
    targets = torch.softmax(logits, -1)
    images = []
    for image in range(3):
        terms = []
        for view in range(5):
            for other in range(2):
                if view != other and weight[view, image]:
                    share = np.log(softmax(student[view, image].numpy() / 0.3))
                    terms.append(-(targets[other, image].numpy() * share).sum())
        images.append(np.mean(terms))
    assert view_cross_entropy(student, targets, 0.3, weight).item() == pytest.approx(np.mean(images), rel=1e-12)
    equal = view_cross_entropy(student, targets, 0.3)
    assert equal.item() == pytest.approx(view_cross_entropy(student, targets, 0.3, torch.ones(5, 3)).item())
    assert DINOLoss(0.3)(student, targets) == equal


def test_ibot_by_loops():
    student, targets = rows_of(2, 4, 6), torch.softmax(rows_of(2, 4, 6, seed=1), -1)
    weight = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]])
    views = []
    for view in range(2):
        terms = [
            -(targets[view, place].numpy() * np.log(softmax(student[view, place].numpy() / 0.1))).sum()
            for place in range(4)
            if weight[view, place]
        ]
        views.append(np.mean(terms))
    assert token_cross_entropy(student, targets, weight).item() == pytest.approx(np.mean(views), rel=1e-12)
    assert IBOTLoss()(student, targets) == token_cross_entropy(student, targets, torch.ones(2, 4))


def test_targets_have_no_gradient():
    student, targets = rows_of(2, 3, 5).requires_grad_(), rows_of(2, 3, 5, seed=1).requires_grad_()
    (view_cross_entropy(student, targets) + token_cross_entropy(student, targets, torch.ones(2, 3))).backward()
    assert targets.grad is None
    assert student.grad.abs().sum() > 0


def test_koleo_by_brute_force():
    rows = rows_of(7, 5).requires_grad_()
    unit = [row / np.linalg.norm(row) for row in rows.detach().numpy()]
    nearest = [min(np.linalg.norm(a - b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    loss = koleo(rows)
    assert loss.item() == pytest.approx(-np.mean(np.log(nearest)), rel=1e-6)
    assert KoLeoLoss()(rows) == loss
    assert torch.autograd.gradcheck(koleo, rows.detach().requires_grad_())


def test_koleo_of_one_and_of_equal_rows_is_finite():
    for rows in (rows_of(1, 4), torch.ones(3, 4)):
        rows.requires_grad_()
        loss = koleo(rows)
        loss.backward()
        assert loss.isfinite()
        assert rows.grad.isfinite().all()
    assert koleo(rows_of(1, 4)) == 0


def test_gram_anchoring_by_hand():
    student, anchor = rows_of(2, 3, 4), rows_of(2, 3, 4, seed=1)
    weight = torch.tensor([[1, 0.5, 1], [0, 1, 1]])

    def cosine(rows, i, j):
        a, b = rows[i].numpy(), rows[j].numpy()
        return (a @ b) / np.linalg.norm(a) / np.linalg.norm(b)

    views = []
    for n in range(2):
        pairs = [(i, j, float(weight[n, i] * weight[n, j])) for i in range(3) for j in range(3)]
        total = sum(w * (cosine(student[n], i, j) - cosine(anchor[n], i, j)) ** 2 for i, j, w in pairs)
        views.append(total / sum(w for _, _, w in pairs))
    assert gram_anchoring(student, anchor, weight).item() == pytest.approx(np.mean(views), rel=1e-6)
    turn, _ = torch.linalg.qr(rows_of(4, 4, seed=2))
    assert gram_anchoring(student, 3 * student @ turn, weight).item() == pytest.approx(0, abs=1e-20)
    assert GramAnchoringLoss()(student, anchor) == gram_anchoring(student, anchor, torch.ones(2, 3))


def test_centering():
    """The running mean is that of all rows so far, in training only, and only if the step was made."""
    targets, logits = PrototypeTargets(4, momentum=0.5).double(), rows_of(3, 4)
    weight = torch.tensor([1.0, 0.0, 3.0])
    assert torch.allclose(targets(logits, 0.1, weight), torch.softmax(logits / 0.1, 1))
    assert not targets.center.any()
    targets.update()
    mean = (logits[0] + 3 * logits[2]) / 4
    assert torch.allclose(targets.center, mean / 2)
    assert torch.allclose(targets(logits, 0.1), torch.softmax((logits - mean / 2) / 0.1, 1))
    targets.update(torch.tensor(0.0))
    assert torch.allclose(targets.center, mean / 2)
    targets(logits * float("nan"), 0.1)
    targets.update(torch.tensor(0.0))
    assert targets.center.isfinite().all()
    targets.eval()(logits, 0.1)
    targets.update()
    assert torch.allclose(targets.center, mean / 2)


def test_sinkhorn_targets_have_no_state():
    targets, logits = PrototypeTargets(4, "sinkhorn", iterations=2), rows_of(3, 4).float()
    assert torch.equal(targets(logits, 0.1), sinkhorn_knopp(logits, 0.1, iterations=2))
    targets.update()
    assert not targets.center.any()


def test_figures_of_targets():
    """Certain targets on different prototypes, on one prototype, and uniform ones."""
    for targets, entropy, usage in (
        (torch.eye(8)[:4], 0, 1),
        (torch.eye(8)[[0, 0, 0, 0]], 0, 1 / 4),
        (torch.full((4, 8), 1 / 8), 1, 1),
        (torch.eye(2)[[0, 1, 0, 1]], 0, 1),
    ):
        figures = prototype_figures(targets)
        assert figures["teacher_entropy"].item() == pytest.approx(entropy, abs=1e-6)
        assert figures["prototype_usage"].item() == pytest.approx(usage, rel=1e-6)


class Processes:
    """Two threads in place of two processes: sums and gathers wait for both."""

    def __init__(self, monkeypatch):
        self.barrier, self.parts, self.local = threading.Barrier(2), {}, threading.local()
        monkeypatch.setattr(distillation, "rank", lambda: self.local.rank)
        monkeypatch.setattr(distillation, "sum_over_processes", lambda part: sum(self.exchange(part)))
        monkeypatch.setattr(distillation, "gather_over_processes", lambda part: torch.cat(self.exchange(part)))

    def exchange(self, part):
        self.parts[self.local.rank] = part
        self.barrier.wait(timeout=60)
        both = [self.parts[0], self.parts[1]]
        self.barrier.wait(timeout=60)
        return both

    def run(self, function, *inputs):
        """Call a function in each thread with its half of the inputs."""

        def call(rank):
            self.local.rank = rank
            return function(*(rows.chunk(2)[rank] for rows in inputs))

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(call, (0, 1)))


def test_two_processes_equal_one(monkeypatch):
    logits, weight = rows_of(8, 5, scale=0.3), torch.tensor([1, 1, 0, 1, 2, 1, 1, 0.5])
    centred, targets = PrototypeTargets(5).double(), sinkhorn_knopp(logits, 0.1, weight)
    centred(logits, 0.1, weight)
    centred.update()
    figures, spread = prototype_figures(targets, weight), koleo(logits)
    two = Processes(monkeypatch)
    both = two.run(lambda rows, share: sinkhorn_knopp(rows, 0.1, share), logits, weight)
    assert torch.allclose(torch.cat(both), targets)
    assert torch.allclose(torch.stack(two.run(koleo, logits)).mean(), spread)
    for part in two.run(prototype_figures, targets, weight):
        assert {name: value.item() for name, value in part.items()} == pytest.approx(
            {name: value.item() for name, value in figures.items()}
        )

    def centre(rows, share):
        mine = PrototypeTargets(5).double()
        mine(rows, 0.1, share)
        mine.update()
        return mine.center

    for center in two.run(centre, logits, weight):
        assert torch.allclose(center, centred.center)
