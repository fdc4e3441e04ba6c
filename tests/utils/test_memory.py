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
from viewalign.training.doctor import _cpu_quota
from viewalign.utils import memory
from viewalign.utils.memory import is_out_of_memory, memory_bytes, reported_out_of_memory, stated

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


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        (
            "0::/system.slice/job_7/step_0\n",
            {"memory.max": "max", "system.slice/job_7/memory.max": "1000000"},
            1_000_000,
        ),
        ("0::/\n", {"memory.max": "2000000"}, 2_000_000),
        ("0::/../other\n", {"memory.max": "2000000"}, 2_000_000),
        ("4:memory:/slurm/job_7\n0::/\n", {"memory/slurm/job_7/memory.limit_in_bytes": "3000000"}, 3_000_000),
    ],
)
def test_the_limit_is_the_least_of_the_control_groups_around_the_process(tmp_path, monkeypatch, own, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    assert memory_bytes() == limit
    (tmp_path / "cpu.max").write_text("max 100000")
    assert _cpu_quota() is None
    (tmp_path / "cpu.max").write_text("150000 100000")
    assert _cpu_quota() == 1.5


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
