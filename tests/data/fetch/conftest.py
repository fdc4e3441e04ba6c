from __future__ import annotations

from collections.abc import Iterator

import pytest
from local_server import Served, local_server


@pytest.fixture
def served() -> Iterator[Served]:
    with local_server() as served:
        yield served
