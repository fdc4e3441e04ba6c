"""The public losses are the functions that pretraining uses, and the examples of their docstrings run."""

import inspect
import re
import textwrap

import pytest
import torch

import viewalign
from viewalign.losses import (
    CosineConsistencyLoss,
    DenseNTXentLoss,
    DINOLoss,
    GramAnchoringLoss,
    GramConsistencyLoss,
    IBOTLoss,
    KoLeoLoss,
    MaskedReconstructionLoss,
    NTXentLoss,
)
from viewalign.losses.consistency import cosine_consistency, gram_consistency
from viewalign.losses.contrastive import dense_nt_xent, view_nt_xent
from viewalign.losses.distillation import gram_anchoring, koleo, token_cross_entropy, view_cross_entropy
from viewalign.losses.reconstruction import masked_huber, masked_mse


def test_nt_xent_is_the_cross_entropy_over_other_images():
    first, second = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    logits = (rows @ rows.T / 0.2).fill_diagonal_(float("-inf"))
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(10).roll(5))
    assert NTXentLoss(0.2)(first, second) == pytest.approx(expected.item(), rel=1e-5)


def test_images_of_one_subject_are_no_negatives():
    first, second = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    assert NTXentLoss()(first, second, torch.zeros(4, dtype=torch.long)) == 0
    assert NTXentLoss()(first, second) > 0


def test_modules_are_the_functions():
    made = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 3, 7, 5, generator=made)
    weight, ones = torch.rand(3, 7, generator=made), torch.ones(3, 7)
    assert CosineConsistencyLoss()(a, b, weight) == cosine_consistency(a, b, weight)
    assert CosineConsistencyLoss()(a, b) == cosine_consistency(a, b, ones)
    assert GramConsistencyLoss()(a, b) == gram_consistency(a, b, ones)
    assert DenseNTXentLoss(0.3, over_batch=True)(a, b) == dense_nt_xent(a, b, ones, 0.3, True)
    x, y = torch.randn(2, 2, 1, 4, 4, 4, generator=made)
    hidden = torch.rand(2, 1, 4, 4, 4, generator=made) < 0.5
    assert MaskedReconstructionLoss(0.5)(x, y, hidden) == masked_huber(x, y, hidden, 0.5)
    assert MaskedReconstructionLoss(None)(x, y, hidden) == masked_mse(x, y, hidden)
    assert GramConsistencyLoss()(a, b, weight) == gram_consistency(a, b, weight)
    assert DenseNTXentLoss(0.3)(a, b, weight) == dense_nt_xent(a, b, weight, 0.3)
    targets = b.softmax(-1)
    assert DINOLoss(0.2)(a, targets, weight) == view_cross_entropy(a, targets, 0.2, weight)
    assert IBOTLoss(0.2)(a, targets, weight) == token_cross_entropy(a, targets, weight, 0.2)
    assert IBOTLoss(0.2)(a, targets) == token_cross_entropy(a, targets, ones, 0.2)
    assert KoLeoLoss()(a[0]) == koleo(a[0])
    assert GramAnchoringLoss()(a, b, weight) == gram_anchoring(a, b, weight)
    assert GramAnchoringLoss()(a, b) == gram_anchoring(a, b, ones)


def test_defaults_of_modules_are_those_of_the_functions():
    made = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 3, 7, 5, generator=made)
    ones, targets = torch.ones(3, 7), b.softmax(-1)
    assert NTXentLoss()(a[0], b[0]) == view_nt_xent(torch.stack([a[0], b[0]]), torch.arange(7)).loss
    assert DenseNTXentLoss()(a, b) == dense_nt_xent(a, b, ones)
    assert DINOLoss()(a, targets) == view_cross_entropy(a, targets)
    assert IBOTLoss()(a, targets) == token_cross_entropy(a, targets, ones)
    x, y = torch.randn(2, 2, 1, 4, 4, 4, generator=made)
    everywhere = torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)
    assert MaskedReconstructionLoss()(x, y, everywhere) == masked_huber(x, y, everywhere)


@pytest.mark.parametrize("name", viewalign.losses.__all__)
def test_the_examples_run(name):
    block = re.search(r"```python\n(.+?)```", inspect.getdoc(getattr(viewalign.losses, name)), re.DOTALL)
    scope = {"viewalign": viewalign, "torch": torch}
    exec(textwrap.dedent(block[1]), scope)
    assert scope["value"].ndim == 0
    assert scope["value"].isfinite()
