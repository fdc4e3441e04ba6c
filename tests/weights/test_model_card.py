"""The model card states the orientation of images."""

import pytest

from viewalign.weights import model_card

FACTS = {
    "network": {"name": "resenc-xs", "channels": 1},
    "method": "cva",
    "viewalign_version": "1",
    "encoder_parameters": 10,
    "size": [32, 32, 32],
    "steps": 1,
    "batch": 4,
    "data": {},
    "weights": "student",
}


@pytest.mark.parametrize(
    ("plans", "sentence"),
    [
        (None, "axes in LPS order"),
        ({"transpose_forward": [0, 1, 2]}, "axes as in the files, the array as (z, y, x), since"),
        ({"transpose_forward": [2, 0, 1]}, "transposed to [2, 0, 1]"),
    ],
)
def test_axes_are_those_of_the_data(plans, sentence):
    preparation = {"spacing": [1.0, 1.0, 1.0], "normalise": "zscore", "nnssl_plans": plans}
    assert sentence in model_card.render({**FACTS, "preparation": preparation}, "export", "MAE", "arXiv:1")


def test_the_card_names_the_method_that_trained():
    preparation = {"spacing": [1.0, 1.0, 1.0], "normalise": "zscore"}
    card = model_card.render({**FACTS, "preparation": preparation}, "export", "SimCLR", "arXiv:2002.05709")
    assert "with SimCLR (arXiv:2002.05709)" in card
    assert "Consistent View" not in card
