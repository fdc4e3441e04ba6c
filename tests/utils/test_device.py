"""What is computed on: a GPU where there is one, and a sentence where it is not."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from viewalign.errors import UserError
from viewalign.finetuning.classification.settings import load_training
from viewalign.recipes.files import TASK_RECIPES
from viewalign.utils.precision import choose_device, send


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(UserError, match="cuda"):
        choose_device("cuda")
    with pytest.raises(UserError, match="float64"):
        choose_device("mps")
    with pytest.raises(UserError, match="tpu"):
        choose_device("tpu")


@pytest.mark.parametrize("recipe", [None, *TASK_RECIPES.names()])
def test_no_recipe_of_a_task_is_bound_to_the_cpu(recipe: str | None) -> None:
    assert load_training(recipe).device == "auto"


def test_a_tensor_is_sent_without_waiting_and_pinned_for_a_gpu() -> None:
    values, gpu = mock.Mock(device=torch.device("cpu")), torch.device("cuda", 0)
    sent = send(values, gpu)
    values.pin_memory().to.assert_called_once_with(gpu, non_blocking=True)
    assert sent is values.pin_memory().to.return_value
    assert torch.equal(send(torch.arange(3), torch.device("cpu")), torch.arange(3))
