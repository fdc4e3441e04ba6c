"""Warnings during a run whose health measures are bad; each is given once."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from viewalign.methods import health
from viewalign.training.state import TrainingState

_log = logging.getLogger(__name__)


class Alerts:
    """Reports health measures that became bad.

    Args:
        precision: of the run; fp16 skips some steps by design.
        steps: of the run; measures that improve slowly are not evaluated in its first part.
    """

    def __init__(self, precision: str, steps: int = 0) -> None:
        self._precision, self._steps = precision, steps
        self._reported = set[str]()

    def measures(self, step: int, figures: Mapping[str, float]) -> None:
        """Check the health measures among the figures of the panel or of a log row."""
        for measure in health.MEASURES:
            value = figures.get(measure.name)
            if value is None or health.too_early(measure.name, step, self._steps):
                continue
            if measure.level(value) == "bad":
                self._report(step, measure, value)

    def loss(self, position: TrainingState, loss: float | None) -> None:
        """Check the mean loss of a log row, and the number of skipped steps."""
        if loss is not None:
            first = position.first_loss = loss if position.first_loss is None else position.first_loss
            rise = health.loss_rise(first, loss)
            if health.LOSS_RISE.level(rise) == "bad":
                self._report(position.step, health.LOSS_RISE, rise)
        share = position.skipped / position.step
        unexpected = health.unexpected_skips(position.skipped, position.step, self._precision)
        if unexpected and health.SKIPPED_SHARE.level(share) == "bad":
            self._report(position.step, health.SKIPPED_SHARE, share)

    def _report(self, step: int, measure: health.Measure, value: float) -> None:
        if measure.name not in self._reported:
            self._reported.add(measure.name)
            _log.warning("Step %d: %s", step, health.sentence(measure, value))
