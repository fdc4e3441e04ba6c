"""Volumes that a run can no longer read: each is set aside once, and too many of them end the run."""

from __future__ import annotations

from viewalign.errors import UserError
from viewalign.processes import gather_objects
from viewalign.training.data import Samples


class Unreadable:
    """What this process could not read, and what all processes have set aside.

    Args:
        volumes: how many volumes the run has.
        allowed: the share of them that may be lost, `runtime.lost_share`.
    """

    def __init__(self, volumes: int, allowed: float) -> None:
        self._volumes, self._allowed = volumes, allowed
        self._met: dict[int, str] = {}
        self.aside = set[int]()

    def meet(self, samples: Samples) -> None:
        """Keep the numbers of volumes that could not be read for these samples, and why."""
        self._met.update(dict(pair for sample in samples for pair in sample.refused))

    def set_aside(self) -> list[tuple[int, str]]:
        """Set aside what any process has met; all call it together. Returns those that are new, with the reason."""
        met = {volume: why for part in gather_objects(self._met) for volume, why in part.items()}
        fresh = sorted((volume, why) for volume, why in met.items() if volume not in self.aside)
        self.aside.update(volume for volume, _ in fresh)
        return fresh

    def check(self) -> None:
        """End the run where too many are lost.

        Raises:
            UserError: more than the share that is allowed.
        """
        if len(self.aside) > self._allowed * self._volumes:
            raise UserError(
                f"{len(self.aside)} of {self._volumes} volumes cannot be read, more than "
                f"runtime.lost_share={self._allowed} allows. Prepare the store again."
            )
