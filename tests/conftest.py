"""What all tests share: where real data may lie, and a machine that is not fought over."""

import os
from pathlib import Path

import pytest
import torch

from viewalign.utils.progress import reset_progress

SHARED = Path(os.environ.get("VIEWALIGN_SHARED", Path(__file__).parents[1].parent / "shared")) / "data"


def pytest_configure(config):
    # Under pytest-xdist each worker gets its share of the cores: threads that wait for a core cost more than they give.
    if "OMP_NUM_THREADS" not in os.environ:
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


@pytest.fixture
def shared_data():
    """The folder of real volumes, or a skip where it is not there."""
    if not SHARED.is_dir():
        pytest.skip("the real volumes (shared/data beside the checkout) are not there")
    return SHARED


@pytest.fixture(autouse=True)
def _no_console():
    """Reset messages and progress to the state of a script after each test."""
    yield
    reset_progress()


pytest_plugins = ["run_fixtures", "task_fixtures", "nnssl_fixtures"]
"""Fixtures that several packages share; they stand in tests/made."""
