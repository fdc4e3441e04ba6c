"""Preparing on the machines of a Dask cluster, which must see the same files under the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import viewalign
from viewalign.errors import UserError

_SECONDS_TO_CONNECT = 30


@dataclass(frozen=True)
class Cluster:
    """A cluster to hand jobs to.

    Attributes:
        executor: takes them.
        threads: tells how many jobs it runs at a time just now; a cluster may grow and shrink.
        workers: how many workers it had at the start.
    """

    executor: Executor
    threads: Callable[[], int]
    workers: int


@contextmanager
def dask_cluster(address: str, store: Path) -> Iterator[Cluster]:
    """Connect to a Dask scheduler.

    Args:
        address: such as `tcp://host:8786`, or the path of a scheduler file.
        store: made where it is not there; every worker must see it.

    Raises:
        UserError: Dask is not installed, no scheduler answers, or a worker has another viewalign or does not see the
            store.
    """
    client = _connect(address)
    try:
        store.mkdir(parents=True, exist_ok=True)
        facts: dict[str, tuple[str, bool]] = client.run(_look, str(store.absolute()))
        for worker, (version, sees) in sorted(facts.items()):
            if version != viewalign.__version__:
                raise UserError(
                    f"The worker {worker} has viewalign {version}, and this is {viewalign.__version__}. Install the "
                    "same version everywhere, for stores must not depend on who made them."
                )
            if not sees:
                raise UserError(f"The worker {worker} does not see {store.absolute()}. Give a folder that all share.")
        yield Cluster(client.get_executor(retries=0), lambda: sum(client.nthreads().values()), len(facts))
    finally:
        client.close()


def _connect(address: str) -> Any:
    try:
        import distributed
    except ImportError:
        raise UserError("--executor dask needs Dask: pip install 'viewalign[cluster]'.") from None
    library: Any = distributed  # not all of it is typed
    where: dict[str, Any] = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        return library.Client(**where, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as problem:
        raise UserError(
            f"No Dask scheduler answers at {address} ({problem}). Is it running, and is the port open?"
        ) from None


def _look(store: str) -> tuple[str, bool]:
    """Run on each worker: which version it has, and whether it sees the store."""
    import viewalign as theirs

    return theirs.__version__, Path(store).is_dir()
