"""Precision follows from the hardware: the same at every start and in every process."""

import warnings
from unittest import mock

import pytest
import torch

from viewalign.errors import UserError
from viewalign.training import launch
from viewalign.utils import precision as arithmetic
from viewalign.utils.precision import Choice, autocast, choose_device, choose_for_cpu, choose_for_gpu, cpu_units, settle


@pytest.fixture
def gpu(monkeypatch):
    """Let torch report a GPU of some compute capability."""

    def report(capability, name="Some GPU"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)

    return report


@pytest.mark.parametrize(
    ("name", "capability", "precision"),
    [
        ("P100", (6, 0), "fp16"),
        ("V100", (7, 0), "fp16"),
        ("T4", (7, 5), "fp16"),
        ("A100", (8, 0), "bf16"),
        ("RTX 4090", (8, 9), "bf16"),
        ("H100", (9, 0), "bf16"),
    ],
)
def test_gpus_by_capability(name, capability, precision, gpu):
    gpu(capability, name)
    choice = settle("auto", "cuda")
    assert choice == choose_for_gpu(name, capability)
    assert choice.precision == precision
    assert f"{name}, compute capability {capability[0]}.{capability[1]}" in choice.reason


@pytest.mark.parametrize(
    ("flags", "units", "precision"),
    [
        ("fpu avx2 avx512f", (), "fp32"),
        ("fpu avx512f avx512_bf16", ("AVX512-BF16",), "bf16"),
        ("avx512_bf16 amx_bf16 amx_tile", ("AMX-BF16", "AVX512-BF16"), "bf16"),
    ],
)
def test_cpus_by_their_flags(flags, units, precision, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t: {flags}\nbugs :\n")
    assert cpu_units(tmp_path / "cpuinfo") == units
    assert choose_for_cpu(units).precision == precision


def test_a_system_without_a_list_of_flags_computes_in_fp32(tmp_path):
    assert choose_for_cpu(cpu_units(tmp_path / "none")).precision == "fp32"


def test_no_clock_decides(monkeypatch):
    def refuse():
        raise AssertionError("a clock was read")

    for clock in ("time", "perf_counter", "monotonic"):
        monkeypatch.setattr(f"time.{clock}", refuse)
    assert settle("auto", "cpu") == settle("auto", "cpu")


def test_what_a_device_cannot_compute_in_is_rejected(gpu):
    with pytest.raises(UserError, match=r"runtime\.precision=fp16.*bf16 or fp32"):
        settle("fp16", "cpu")
    with pytest.raises(UserError, match=r"^precision=fp16"):
        settle("fp16", "cpu", key="precision")
    gpu((7, 0), "V100")
    with pytest.raises(UserError, match=r"bf16.*8\.0.*V100"):
        settle("bf16", "cuda")
    assert settle("fp16", "cuda") == Choice("fp16", "set in the recipe")


def test_a_rejected_precision_ends_pretraining_in_a_sentence(tiny):
    with pytest.raises(UserError, match=r"runtime\.precision=fp16"):
        launch.launch(tiny("runtime.precision=fp16"))


@pytest.fixture
def tiny():
    from viewalign.recipes.loading import load

    return lambda *settings: load("cva-resenc-xs", ["runtime.device=cpu", "batch=4", *settings])


def test_processes_that_choose_differently_are_rejected(tiny):
    with (
        mock.patch.object(launch.distributed, "gather_objects", return_value=["bf16", "fp16"]),
        pytest.raises(UserError, match=r"bf16 and fp16.*runtime\.precision"),
    ):
        launch.launch(tiny("runtime.precision=auto"))


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast(precision, expected):
    rows = torch.randn(4, 4)
    with autocast("cpu", precision):
        assert (rows @ rows).dtype == expected


def switches():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def _restore():
    before = switches()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_one_policy_for_products_and_convolutions(allowed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arithmetic.allow_tf32(allowed)
        assert switches() == (allowed, allowed)
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")  # Fabric reads it


def test_float32_is_float32_wherever_a_device_is_chosen(tiny):
    arithmetic.allow_tf32(True)
    choose_device("cpu")
    assert switches() == (False, False)
    launch.launch(tiny("runtime.tf32=true"))
    assert switches() == (True, True)
    launch.launch(tiny())
    assert switches() == (False, False)
