"""Data loading of a run: split of subjects, batches from any step, workers, unreadable volumes."""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing.process
import multiprocessing.queues
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from viewalign.config import Recipe
from viewalign.errors import ExcludedImageError, UserError
from viewalign.training.signals import leave_signals_to_the_run
from viewalign.utils.distributed import gather_objects
from viewalign.utils.rng import make_rng
from viewalign.utils.text import counted
from viewalign.views.batch import ViewBatch
from viewalign.views.samples import Sample, SampleReader, StepSampler, VolumeSource

_FEWEST, _MOST, _NONE_BELOW = 5, 200, 20
_POLL = 10
"""Seconds after which a loader that waits for a batch checks whether its workers are alive."""
_TIME_LIMIT = 1800
"""Longest time in seconds to read a batch; then the run ends instead of waiting forever."""
_SOCKET_NAME = 30
"""Number of characters that Python appends to its temporary folder for a socket's address, rounded up."""
_SOCKET_ADDRESS = 104
"""Largest number of characters of a socket's address; Linux allows a few more."""
_REVIVALS = 10
"""Deaths of workers in a row without a step after which the run stops."""
_LOST = (ConnectionError, EOFError, FileNotFoundError)
"""Errors of receiving a batch from a worker that dies at that moment."""

Samples = list[Sample]


@dataclass(frozen=True)
class Split:
    """Volume numbers for training and validation; no subject is in both."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


@dataclass(frozen=True)
class DataModule:
    """Source of batches.

    Attributes:
        train: yields the samples of steps [first, last).
        validation: yields the held-out samples, always the same; None without held-out subjects.
        build: builds views from samples on the training device; the flag disables intensity transforms.
        volumes: number of training volumes.
        name_of: returns the id of a volume by its number.
        aligned: whether features of pairs of views are compared at corresponding positions.
        digest: of images and split, see `digest_of`.
    """

    train: Callable[[int, int], Generator[Samples]]
    validation: Callable[[], Generator[Samples]] | None
    build: Callable[[Samples, bool], ViewBatch]
    volumes: int
    name_of: Callable[[int], str] = str
    aligned: bool = True
    digest: dict[str, str] = field(default_factory=dict)


def number_subjects(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the subject number of each volume; subjects are numbered 0, 1, … by sorted name."""
    _, numbers = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    return numbers.astype(np.int64).reshape(-1)


def split_by_subject(subjects: NDArray[np.int64], share: float, seed: int) -> Split:
    """Hold out a fraction of the subjects, at least 5 and at most 200; none if there are fewer than 20."""
    everyone = np.unique(subjects)
    every = np.arange(len(subjects))
    if share == 0 or len(everyone) < _NONE_BELOW:
        return Split(every, every[:0])
    count = int(np.clip(round(share * len(everyone)), _FEWEST, _MOST))
    held_out = make_rng(seed, "split").permutation(everyone)[:count]
    outside = np.isin(subjects, held_out)
    return Split(every[~outside], every[outside])


def split_of(names: Sequence[str], held_out: AbstractSet[str] | None, share: float, seed: int) -> Split:
    """Hold out the validation subjects of the dataset, or a fraction of all subjects if it has none.

    Args:
        names: subject of each volume.
        held_out: validation subjects of the dataset.
        share: of the subjects; 0 holds out none, even if the dataset has some.
        seed: of the run.
    """
    if held_out is None or share == 0:
        return split_by_subject(number_subjects(names), share, seed)
    outside = np.array([name in held_out for name in names], dtype=bool)
    every = np.arange(len(names))
    return Split(every[~outside], every[outside])


def only(split: Split, admitted: NDArray[np.bool_]) -> Split:
    """Return the split without volumes that are not admitted; the held-out subjects do not depend on them."""
    return Split(split.train[admitted[split.train]], split.validation[admitted[split.validation]])


def digest_of(ids: Sequence[str], subjects: NDArray[np.int64], split: Split) -> dict[str, str]:
    """Return digests of the images of a store by their ids, and of what is trained on and held out; no name is in them.

    Args:
        ids: of all images.
        subjects: subject number of each image.
        split: the volumes that are used.
    """
    numbers = [array.astype("<i8").tobytes() for array in (subjects, split.train, split.validation)]
    lengths = f"{len(split.train)} {len(split.validation)}".encode()
    return {
        "images": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        "split": hashlib.sha256(b"".join([lengths, *numbers])).hexdigest(),
    }


def check_same(state: Mapping[str, Any], now: Mapping[str, str], recipe: Recipe) -> None:
    """Check that a resumed run has the images and the held-out subjects that it was started with.

    Args:
        state: of the checkpoint. Earlier versions wrote no digest (`data`), and nothing is checked, as for a run that
            is finished.
        now: digest of the store.
        recipe: of the run.

    Raises:
        UserError: they differ.
    """
    before, store, out = state.get("data"), recipe.data, recipe.out
    changed = [name for name in now if before is not None and before.get(name) != now[name]]
    if changed and state["step"] < recipe.steps:
        what = "images" if "images" in changed else "training or held-out subjects"
        raise UserError(
            f"{out} cannot be resumed with the store {store}, which has other {what} than at the start of the run: it "
            "would train on subjects that were held out so far. Resume with the store of the start (viewalign pretrain "
            f"{out}/config.yaml STORE --resume); take images that were added out of this one (exclude=FILE or --prune "
            f"of prepare); or start a new run on it with init={out}."
        )


def count_small(source: VolumeSource, chosen: NDArray[np.int64], size: tuple[int, int, int]) -> int:
    """Count the volumes that are smaller than a view on some axis, whose views are padded."""
    return sum(any(n < s for n, s in zip(source.shape(int(k)), size, strict=True)) for k in chosen)


def batches(
    reader: SampleReader, first: int, last: int, batch: int, workers: int, pin: bool, rank: int = 0, world: int = 1
) -> Generator[Samples]:
    """Yield the samples of steps [first, last) for one process.

    If a worker dies, new ones continue at the same step: samples are functions of their number.

    Raises:
        UserError: volumes cannot be read, or workers die repeatedly.
    """
    step, deaths = first, 0
    if workers:
        use_short_socket_folder()
    while step < last:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This DataLoader will create")  # runtime.workers is the user's choice
                loader = DataLoader(
                    reader,
                    batch_sampler=StepSampler(step, last, batch, rank, world),
                    collate_fn=list,
                    num_workers=workers,
                    pin_memory=pin,
                    worker_init_fn=_init_worker,
                    timeout=_POLL if workers else 0,
                )
                reading = iter(loader)
            with _worker_deaths_only_while_reading():
                for samples in _within_limit(reading, step):
                    yield samples
                    step, deaths = step + 1, 0
        except ExcludedImageError as problem:
            reason = str(problem).strip().splitlines()[-1].removeprefix("viewalign.errors.ExcludedImageError: ")
            raise UserError(f"Training cannot continue: {reason}") from None
        except (RuntimeError, *_LOST) as problem:
            deaths += 1
            if not (workers and ("DataLoader worker" in str(problem) or isinstance(problem, _LOST))):
                raise
            if deaths > _REVIVALS:
                raise UserError(
                    f"Workers died {counted(deaths, 'time')} in a row before step {step + 1} ({_first_line(problem)}). "
                    f"The usual causes are too little memory{_shared_memory()}: lower runtime.workers (0 needs no "
                    "shared memory), or provide more."
                ) from problem


def _within_limit(reading: Iterator[Samples], step: int) -> Iterator[Samples]:
    """Yield batches with a time limit; a loader's own limit is not usable: it checks its workers only afterwards.

    Raises:
        UserError: a batch takes too long.
    """
    begin = time.monotonic()
    while True:
        try:
            samples = next(reading, None)
        except RuntimeError as problem:
            if "timed out after" not in str(problem):
                raise
            if time.monotonic() - begin < _TIME_LIMIT:
                continue
            raise UserError(
                f"No batch was read within {_TIME_LIMIT} s before step {step + 1}. The file system of the store does "
                "not respond, or the readers were suspended. The last checkpoint is kept; resume with --resume."
            ) from None
        if samples is None:
            return
        yield samples
        begin, step = time.monotonic(), step + 1


def use_short_socket_folder() -> None:
    """Create the readers' sockets in another temporary folder if $TMPDIR is too long for a socket's address.

    Batches are sent through sockets whose addresses are paths. A reader that cannot create one would never respond.

    Raises:
        UserError: no other folder is writable.
    """
    config: dict[str, Any] = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    used = config.get("tempdir") or f"{tempfile.gettempdir()}/pymp-12345678"
    if len(os.fsencode(used)) + _SOCKET_NAME <= _SOCKET_ADDRESS:
        return
    for folder in ("/tmp", "/var/tmp"):
        with suppress(OSError):
            config["tempdir"] = tempfile.mkdtemp(prefix="pymp-", dir=folder)  # readers inherit this
            atexit.register(shutil.rmtree, config["tempdir"], ignore_errors=True)
            return
    raise UserError(
        f"TMPDIR={tempfile.gettempdir()} is too long: readers create sockets there, whose addresses may have at most "
        f"{_SOCKET_ADDRESS} characters. Set TMPDIR to a shorter folder, or runtime.workers=0."
    )


def _shared_memory() -> str:
    """Return the size of the shared memory through which workers pass batches on, as a cause of their death."""
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return ""
    return f", and too little shared memory (/dev/shm has {size / 1e9:.2g} GB here; docker run --shm-size=8g)"


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


@contextmanager
def _worker_deaths_only_while_reading() -> Iterator[None]:
    """Keep torch's handler of SIGCHLD from raising at any point of a step.

    The loader also checks its workers whenever it waits for a batch, and a death is handled there. Other handlers of
    ended children are still called, and the handler is restored afterwards.
    """
    previous = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):
            previous(number, frame)

    signal.signal(signal.SIGCHLD, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)


def _init_worker(worker: int) -> None:  # noqa: ARG001
    """Leave signals to the run, print nothing when the run has ended, and end if a batch cannot be passed on."""
    leave_signals_to_the_run()
    sys.excepthook = _report_worker_error
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(problem: Exception, batch: object) -> None:  # noqa: ARG001
    """End the worker: Python would drop the batch, for example if /dev/shm is full, and the run would wait for it."""
    print(f"A worker cannot pass on a batch: {problem}", file=sys.stderr, flush=True)
    os._exit(1)


def _report_worker_error(kind: type[BaseException], problem: BaseException, trace: TracebackType | None) -> None:
    """Suppress the error of a worker's thread after the run was killed while it received a batch."""
    if not issubclass(kind, _LOST):
        sys.__excepthook__(kind, problem, trace)


def worker_count(setting: int | str, on_gpu: bool, cores: int, processes: int = 1, allowed: int | None = None) -> int:
    """Return the number of workers per process: on a GPU its share of the cores; on a CPU 1 if a core is free.

    Args:
        setting: a number, which is returned, or `auto`.
        on_gpu: whether the process computes on a GPU.
        cores: of the machine.
        processes: of the run on this machine.
        allowed: cores that this process may use, fewer under SLURM or in a container.
    """
    if isinstance(setting, int):
        return setting
    allowed = cores if allowed is None else allowed
    if on_gpu:
        return max(1, min(12, cores // processes, allowed))
    return 1 if min(cores, allowed) > 2 else 0


class UnreadableVolumes:
    """Volumes that this process could not read, and those that all processes have excluded.

    Args:
        volumes: number of training volumes.
        allowed: fraction of them that may be excluded, `runtime.lost_share`.
    """

    def __init__(self, volumes: int, allowed: float) -> None:
        self._volumes, self._allowed = volumes, allowed
        self._met: dict[int, str] = {}
        self.aside = set[int]()

    def meet(self, samples: Samples) -> None:
        """Record the volumes that could not be read for these samples, and why."""
        self._met.update(dict(pair for sample in samples for pair in sample.excluded))

    def exclude(self) -> list[tuple[int, str]]:
        """Exclude the volumes that any process has recorded, in all processes; returns the new ones with the reason."""
        met = {volume: why for part in gather_objects(self._met) for volume, why in part.items()}
        fresh = sorted((volume, why) for volume, why in met.items() if volume not in self.aside)
        self.aside.update(volume for volume, _ in fresh)
        return fresh

    def check(self) -> None:
        """Check the fraction of excluded volumes.

        Raises:
            UserError: more than the allowed share.
        """
        if len(self.aside) > self._allowed * self._volumes:
            raise UserError(
                f"{len(self.aside):,} of {counted(self._volumes, 'volume')} cannot be read, more than "
                f"runtime.lost_share={self._allowed} allows. Prepare the store again."
            )
