"""Sentences for whoever watches a run that goes wrong: each once, while there is time to stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from viewalign.methods import health
from viewalign.training.state import TrainingState


class Alerts:
    """Reports figures that turned bad.

    Args:
        say: takes a sentence.
        precision: of the run; fp16 skips some steps by design.
    """

    def __init__(self, say: Callable[[str], object], precision: str) -> None:
        self._say, self._precision = say, precision
        self._reported = set[str]()

    def features(self, step: int, figures: Mapping[str, float]) -> None:
        """Look at the figures of the health panel."""
        for measure in health.MEASURES:
            value = figures.get(measure.name)
            if value is not None and measure.level(value) == "bad":
                self._report(step, measure, value)

    def loss(self, position: TrainingState, loss: float | None) -> None:
        """Look at the mean loss of a row of the log, and at how many steps were skipped so far."""
        if loss is not None:
            first = position.first_loss = loss if position.first_loss is None else position.first_loss
            if health.loss_level(first, loss) == "bad":
                self._report(position.step, health.LOSS_RISE, loss / max(abs(first), 1e-12))
        share = position.skipped / position.step
        unexpected = health.unexpected_skips(position.skipped, position.step, self._precision)
        if unexpected and health.SKIPPED_SHARE.level(share) == "bad":
            self._report(position.step, health.SKIPPED_SHARE, share)

    def _report(self, step: int, measure: health.Measure, value: float) -> None:
        if measure.name not in self._reported:
            self._reported.add(measure.name)
            self._say(f"Step {step}: {health.sentence(measure, value)}")
