"""The linear probe of FOMO26 against one head after the other in NumPy, with gradients by hand."""

import math

import numpy as np
import pytest

from viewalign.evaluation import sgd_probe
from viewalign.evaluation.sgd_probe import SgdHead, best_head, fit_heads
from viewalign.utils.rng import make_rng


def cases(count=90, classes=3, width=5, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % classes
    return (rng.normal(size=(count, width)) + np.eye(classes, width)[truth]).astype(np.float32), truth


def reference(features, truth, classes, rate, weight, orders):
    """Train one head in float64: SGD with momentum 0.9, batches of 64, a learning rate along half a cosine to 0."""
    features, weight, bias = features.astype(np.float64), weight.astype(np.float64), np.zeros(classes)
    momentum = [np.zeros_like(weight), np.zeros_like(bias)]
    steps, step = sum(math.ceil(len(order) / 64) for order in orders), 0
    for order in orders:
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            logits = features[rows] @ weight.T + bias
            errors = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(classes)[truth[rows]]
            gradients = [errors.T @ features[rows] / len(rows), errors.mean(0)]
            now = rate * (1 + math.cos(math.pi * step / steps)) / 2
            momentum = [0.9 * old + new for old, new in zip(momentum, gradients, strict=True)]
            weight, bias = weight - now * momentum[0], bias - now * momentum[1]
            step += 1
    return weight, bias


def test_heads_are_those_of_training_one_after_the_other():
    features, truth = cases()
    heads = fit_heads(features, truth, 3, cases(30, seed=1), seed=7)
    rng = make_rng(7, "sgd probe")
    weights = [rng.normal(0.0, 0.01, (3, 5)) for _ in heads]
    orders = [rng.permutation(90) for _ in range(20)]
    assert [head.rate for head in heads] == list(sgd_probe.RATES)
    assert len(heads) == 13
    for head, weight in zip(heads, weights, strict=True):
        expected = reference(features, truth, 3, head.rate, weight, orders)
        np.testing.assert_allclose(head.weight, expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(head.bias, expected[1], rtol=1e-4, atol=1e-5)


def test_the_scale_of_features_matters():
    features, truth = cases()
    small, large = (fit_heads(features * scale, truth, 3, cases(30, seed=1), rates=[1e-3])[0] for scale in (0.1, 10.0))
    assert np.abs(large.weight * 10).max() > 5 * np.abs(small.weight * 0.1).max()


def test_probabilities_are_the_softmax_of_logits():
    head = SgdHead(0.1, np.array([[1.0], [0.0]], np.float32), np.array([0.0, 1.0], np.float32), 0.5)
    expected = np.exp([2.0, 1.0]) / np.exp([2.0, 1.0]).sum()
    np.testing.assert_allclose(head.probabilities(np.array([[2.0], [1e4]])), [expected, [1.0, 0.0]], atol=1e-12)


@pytest.mark.parametrize(("aurocs", "chosen"), [((0.5, 0.7, 0.7), 0.2), ((math.nan, 0.1), 0.2), ((math.nan,) * 2, 0.1)])
def test_the_best_head_has_the_highest_auroc_and_then_the_lowest_rate(aurocs, chosen):
    nothing = np.zeros((2, 1), np.float32), np.zeros(2, np.float32)
    heads = [SgdHead(0.1 * (k + 1), *nothing, auroc) for k, auroc in enumerate(aurocs)]
    assert best_head(heads).rate == pytest.approx(chosen)
