"""The progress of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class TrainingState:
    """The progress of a run; all of it is in every checkpoint.

    Attributes:
        step: steps done, skipped ones included; the next sample numbers follow from it.
        updates: optimizer steps done; schedule and teacher follow these.
        skipped: steps skipped because their loss or gradient was not finite.
        skipped_in_a_row: of these, the latest unbroken run.
        first_loss: the mean loss of the log's first row.
        best_loss, best_step: the lowest validation loss and where it was.
    """

    step: int = 0
    updates: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    first_loss: float | None = None
    best_loss: float = math.inf
    best_step: int = -1
