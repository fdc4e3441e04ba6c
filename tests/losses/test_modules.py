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
    GramConsistencyLoss,
    MaskedReconstructionLoss,
    NTXentLoss,
)
from viewalign.losses.consistency import cosine_consistency, gram_consistency
from viewalign.losses.contrastive import dense_nt_xent
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


@pytest.mark.parametrize("name", viewalign.losses.__all__)
def test_the_examples_run(name):
    block = re.search(r"```python\n(.+?)```", inspect.getdoc(getattr(viewalign.losses, name)), re.DOTALL)
    scope = {"viewalign": viewalign, "torch": torch}
    exec(textwrap.dedent(block[1]), scope)
    assert scope["value"].ndim == 0
    assert scope["value"].isfinite()
