"""Memory that runs out is one sentence, on a GPU and on a CPU; everything else passes unchanged."""

import re
import weakref

import numpy as np
import pytest
import torch

import viewalign
from viewalign.errors import UserError
from viewalign.evaluation import embedding
from viewalign.finetuning.classification import finetune as tasks
from viewalign.finetuning.segmentation import finetune as segmentation
from viewalign.utils.memory import is_out_of_memory, reported_out_of_memory, stated

ON_GPU = torch.cuda.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 39.49 GiB of which 1.20 GiB is free."
)
ON_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ON_WINDOWS = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000 bytes.")
IN_CHILD = Exception("-- Process 1 terminated with the following error:\ntorch.OutOfMemoryError: CUDA out of memory. T")


@pytest.mark.parametrize("problem", [ON_GPU, ON_CPU, ON_WINDOWS, IN_CHILD, MemoryError(), MemoryError("Unable to")])
def test_what_stands_for_memory_that_ran_out(problem):
    assert is_out_of_memory(problem)


def test_the_errors_of_torch_and_numpy_themselves_are_recognised():
    for allocate in (lambda: torch.empty(2**46), lambda: np.zeros(2**50, np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("problem", [RuntimeError("shape mismatch"), ValueError("memory"), KeyboardInterrupt()])
def test_other_errors_pass(problem):
    assert not is_out_of_memory(problem)
    with pytest.raises(type(problem)), reported_out_of_memory("work was done", "Do less."):
        raise problem


def test_a_gpu_is_named_with_what_it_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (300_000_000, 42_400_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    assert stated(ON_GPU) == "2.50 GiB could not be allocated; NVIDIA A100 has 42.4 GB, of which 300.0 MB are free"
    assert "this process may use" in stated(ON_CPU)


def test_a_cpu_reports_what_this_process_may_use():
    assert re.fullmatch(r"4000000000 bytes could not be allocated; this process may use [\d.]+ GB", stated(ON_CPU))
    assert stated(MemoryError()).startswith("memory could not be allocated; ")


def fails(*_, **__):
    raise ON_CPU


def test_embedding_names_what_would_need_less(monkeypatch):
    monkeypatch.setattr(embedding, "Pooling", fails)
    with pytest.raises(UserError, match=r"^Out of memory.*patch_size.*device=cpu"):
        embedding.embed(torch.nn.Identity(), None, [])


def test_fine_tuning_names_what_would_need_less(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "read_spec", fails)
    with pytest.raises(UserError, match=r"^Out of memory.*accumulate=2.*precision=auto.*mode=lora"):
        tasks.finetune("task", "run", tmp_path, None)
    monkeypatch.setattr(segmentation, "_open", fails)
    with pytest.raises(UserError, match=r"^Out of memory.*patch_size.*batch"):
        segmentation.finetune(None, tmp_path, None)


def test_prediction_names_what_would_need_less(monkeypatch, tmp_path):
    monkeypatch.setattr("viewalign.finetuning.segmentation.predict.is_segmentation", fails)
    with pytest.raises(UserError, match=r"^Out of memory.*device=cpu"):
        viewalign.predict(tmp_path, tmp_path)


def test_no_tensor_is_kept_by_the_error():
    """The frames of what failed hold tensors; kept by the error, they would leave no memory for what follows."""
    kept = []

    def failing():
        activations = torch.zeros(8)
        kept.append(weakref.ref(activations))
        raise ON_GPU

    with pytest.raises(UserError) as caught, reported_out_of_memory("work was done", "Do less."):
        failing()
    assert caught.value.__suppress_context__
    assert kept[0]() is None
