"""The training loop: read, build views, step, update; at intervals measure, save and validate."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from viewalign.config import Recipe, public_settings
from viewalign.errors import UserError
from viewalign.methods import health
from viewalign.methods.base import Method, StepResult
from viewalign.networks.backbone import Backbone
from viewalign.training import accumulate, optimizers, pictures
from viewalign.training.alerts import Alerts
from viewalign.training.data import DataModule, Samples, UnreadableVolumes
from viewalign.training.launch import Fabric
from viewalign.training.logs import PROGRESS, MetricAccumulator, RunLog
from viewalign.training.optimizers import Update, update_if_finite, volumes_of
from viewalign.training.pace import Pace
from viewalign.training.prefetch import Prefetcher
from viewalign.training.signals import StopRequest, StopWaitingError
from viewalign.training.state import TrainingState
from viewalign.training.trackers import open_trackers
from viewalign.utils.console import ProgressLine, duration
from viewalign.utils.distributed import gather_objects, sum_over_processes
from viewalign.utils.precision import autocast, gradient_scaler, read_later, send
from viewalign.utils.progress import shows_line
from viewalign.views.batch import ViewBatch
from viewalign.weights import checkpoints
from viewalign.weights.files import check_finite
from viewalign.weights.run_folder import RunFolder

_log = logging.getLogger(__name__)

Probe = Callable[[Backbone], dict[str, float]]
"""Evaluates the current encoder without changing it or any random generator."""
Page = Callable[[Path, bool], None]
"""Writes the page of a run's folder; with False only if the previous one is old enough. It raises nothing."""


class Trainer:
    """One process of a run.

    Args:
        fabric: device, precision and processes.
        method: the method to train; the loop uses only its interface.
        optimizer: over the method's parameters.
        feed: batches.
        recipe: settings of the loop.
        folder: the run's folder.
        facts: facts about the run's data for the log's first row.
        preparation: preprocessing of the store's images, for exports.
    """

    def __init__(
        self,
        fabric: Fabric,
        method: Method,
        optimizer: torch.optim.Optimizer,
        feed: DataModule,
        recipe: Recipe,
        folder: RunFolder,
        facts: dict[str, Any],
        preparation: dict[str, Any],
    ) -> None:
        self.probe: Probe | None = None
        self.facts, self.preparation = facts, preparation
        self.fabric, self.method, self.feed, self.recipe, self.folder = fabric, method, feed, recipe, folder
        precision, kind = recipe.runtime.precision, fabric.device.type
        self.exact = precision == "fp64"
        self.autocast, self.scaler = partial(autocast, kind, precision), gradient_scaler(kind, precision)
        method = method.double() if self.exact else method
        # Not `fabric.setup`: its wrapper would cast the float64 affines of a batch to float32.
        self.wrapped = fabric.strategy.setup_module(fabric.to_device(method))
        self.optimizer = optimizer
        self.position, self.averages = TrainingState(), MetricAccumulator()
        self._pending: Update | None = None
        self._bad_steps, self._updates_before = "", 0
        self._stop = StopRequest()
        self._stop_requested: Callable[[], float] = lambda: 0.0
        self.unreadable = UnreadableVolumes(feed.volumes, recipe.runtime.lost_share)
        self.progress_line = ProgressLine(quiet=not (fabric.is_global_zero and shows_line()))
        self.alerts = Alerts(precision, recipe.steps)
        self.log: RunLog | None = None
        self.page: Page | None = None
        self._notes: list[tuple[str, dict[str, Any]]] = []

    def note(self, event: str, sentence: str) -> None:
        """Warn of something about the start, and write it as an event when the log is opened."""
        _log.warning("%s", sentence)
        self.remember(event, reason=sentence)

    def remember(self, event: str, **values: Any) -> None:
        """Write an event when the log is opened."""
        self._notes.append((event, values))

    def _show(self) -> None:
        if self.page is not None and self.fabric.is_global_zero:
            self.page(self.folder.root, False)

    def run(self, stop: StopRequest | None = None) -> bool:
        """Train to the last step; returns False if a signal ended the run early. The state is saved in both cases."""
        stop = self._stop = stop or self._stop
        if self.fabric.is_global_zero:
            opened = open_trackers(self.recipe, self.folder.root, self.position.step)
            self.log = RunLog(self.folder.log, self.position.step, opened)
        for event, values in self._notes:
            self._event(event, values)
        if self.position.step == 0:
            self._row("data", self.facts)
            self._probe()
        self._show()
        try:
            self._train(stop)
        finally:
            if self.log is not None:
                self.log.close()
        return self.position.step >= self.recipe.steps

    def _train(self, stop: StopRequest) -> None:
        """Run steps, each followed by what is due, until the last step or a signal."""
        source = self.feed.train(self.position.step, self.recipe.steps)
        batches = Prefetcher(stop.items(source), self._build, self.fabric.device)
        pace, self._updates_before = Pace(self.position.step), self.position.updates
        with self.progress_line, closing(source):
            while self.position.step < self.recipe.steps and not self._any(stop.signal is not None):
                stop.beat()
                try:
                    work = batches.take()
                except StopWaitingError:
                    break
                except UserError:
                    if self.fabric.world_size == 1:  # of several processes the others would wait for this one
                        self._save_before_error()
                    raise
                self._train_step(*work)
                batches.prepare()
                if self._due(self.recipe.log.every):
                    self._log_row(pace, batches.take_waited())
                with pace.apart():
                    self._do_what_is_due()
                self._check()
            self._finish()

    def _do_what_is_due(self) -> None:
        """Validate, probe and save where the schedule says so."""
        validate, kept = self.recipe.validate_, self.recipe.checkpoint.keep_every
        if self.feed.validation and validate.every and self._due(validate.every):
            self._validate(self.feed.validation())
            self._show()
        if validate.probe is not None and self._due(validate.probe.every):
            self._probe()
        if self._due(self.recipe.checkpoint.every) or (kept and self.position.step % kept == 0):
            self.save()
            self._show()

    def _check(self) -> None:
        """Stop a run that cannot continue, in all processes alike; its state is saved.

        Called only where everything due after the last step is done, so that a resumed run lacks nothing.

        Raises:
            UserError: too many volumes are unreadable, or too many steps in a row were skipped.
        """
        try:
            self.unreadable.check()
            if self._bad_steps:
                raise UserError(self._bad_steps)
        except UserError:
            self._save_before_error()
            raise

    def _save_before_error(self) -> None:
        """Save the steps of a run that ends with an error; older checkpoints stay, in case one of them is needed."""
        self._settle()
        if self.position.updates == self._updates_before:
            return
        with suppress(UserError):  # weights that are not finite; the error that ends the run is the one to report
            if self.save(prune=False):
                _log.warning("The state after step %d is saved; --resume resumes from it.", self.position.step)

    def _finish(self) -> None:
        if not self.save():
            raise UserError(
                f"The last checkpoint of {self.folder.root} could not be written. Free some space; "
                "--resume resumes from the previous one."
            )

    def last_words(self) -> str:
        """Return where the run can be resumed, for a run that hangs and is ended without saving."""
        saved = checkpoints.steps(self.folder.checkpoints)
        newest = f"The newest checkpoint is that of step {saved[-1]}" if saved else "There is no checkpoint yet"
        return (
            f"At step {self.position.step} of {self.recipe.steps}. {newest}, in {self.folder.checkpoints}; "
            "--resume resumes from it."
        )

    def _build(self, samples: Samples, plain: bool = False) -> ViewBatch:
        batch = self.feed.build(samples, plain)
        return batch.double() if self.exact else batch

    def _any(self, stop: bool) -> bool:
        """Return whether any process should stop; all end after the same step.

        With several processes this is the result of the previous step: reading the current one would wait for a GPU.
        """
        if self.fabric.world_size == 1:
            return stop
        before = self._stop_requested()
        self._stop_requested = read_later(sum_over_processes(send(torch.tensor(float(stop)), self.fabric.device)))
        return bool(before)

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return values
        return cast(Tensor, self.fabric.all_reduce(values, reduce_op="mean"))

    def _due(self, every: int) -> bool:
        return self.position.step % every == 0 or self.position.step == self.recipe.steps

    def _train_step(self, samples: Samples, batch: ViewBatch) -> None:
        """Run one step; if the loss or gradient is not finite, only the count of skipped steps changes."""
        self._note_unreadable(samples)
        position, settings = self.position, self.recipe.optim
        return_diagnostics = position.step % self.recipe.log.health_every == 0 or position.step == self.recipe.steps - 1
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        result = self._loss_and_gradients(batch, return_diagnostics)
        # After this step is queued, so that the GPU is busy while the CPU reads whether the previous update was made.
        self._settle()
        self._check()
        rate = optimizers.learning_rate(
            position.updates, self.recipe.steps, settings.lr, settings.warmup_steps, settings.power
        )
        optimizers.set_learning_rate(self.optimizer, rate)
        self.scaler.unscale_(self.optimizer)
        # Gradients are means over all processes, so every process gets the same result.
        norm = optimizers.clip_gradients(self.method, settings.clip)
        read = update_if_finite(self.method, self.optimizer, norm, position.updates + 1)
        self.scaler.update()
        self._pending = Update(read, rate, result.logs, batch)
        position.step += 1
        if return_diagnostics or norm.device.type == "cpu":
            self._settle()
        if return_diagnostics:
            self._examine(samples, result)

    def _settle(self) -> None:
        """Count the latest update, or its step as skipped; called before anything is written or saved."""
        if self._pending is None:
            return
        update, self._pending, position = self._pending, None, self.position
        norm = update.norm()
        if math.isfinite(norm):
            position.updates += 1
            position.skipped_in_a_row = 0
            figures = {"lr": torch.tensor(update.rate), "gradient_norm": torch.tensor(norm)}
            self.averages.add({**update.logs, **figures})
        else:
            self._skip(update.batch, norm)

    def _loss_and_gradients(self, batch: ViewBatch, return_diagnostics: bool) -> StepResult:
        parts = self.recipe.runtime.accumulate
        if parts > 1:
            return accumulate.step_in_parts(
                self.method, batch, parts, self.autocast, return_diagnostics, self.scaler.scale
            )
        with self.autocast():
            result: StepResult = self.wrapped(batch, return_diagnostics)
        self.fabric.backward(self.scaler.scale(result.loss))
        return result

    @torch.no_grad()
    def _evaluate(self, batch: ViewBatch, return_diagnostics: bool) -> StepResult:
        """Return a batch's result without gradient, computed in the same parts as in training."""
        parts = self.recipe.runtime.accumulate
        if parts > 1:
            return accumulate.evaluate_in_parts(self.method, batch, parts, self.autocast, return_diagnostics)
        with self.autocast():
            return cast(StepResult, self.wrapped(batch, return_diagnostics))

    def _skip(self, batch: ViewBatch, norm: float) -> None:
        position = self.position
        position.skipped += 1
        position.skipped_in_a_row += 1
        volumes, suspects = volumes_of(batch)
        self._event("skipped", {"gradient_norm": str(norm), "volumes": volumes, "not_finite": suspects})
        if position.skipped_in_a_row >= self.recipe.runtime.bad_steps:
            self._bad_steps = (
                f"{position.skipped_in_a_row} steps in a row had a loss or gradient that is not finite, the last with "
                f"{_named(suspects or volumes, self.feed.name_of)}. Inspect these volumes, lower optim.lr, or set "
                "runtime.precision=fp32."
            )

    def _examine(self, samples: Samples, result: StepResult) -> None:
        """Write the health panel's figures and refresh the report's pictures.

        Pictures show the same views without intensity transforms, which would hide details; every process
        takes part, because the heads' batch statistics need all of them.
        """
        if self.fabric.is_global_zero:
            figures = health.measure(result.features)
            self._row("health", figures)
            self.alerts.measures(self.position.step, figures)
        self.method.eval()
        batch = self._build(samples, plain=True)
        shown = self._evaluate(batch, return_diagnostics=True)
        if not self.fabric.is_global_zero:
            return
        terms = self.recipe.objectives
        arrays: dict[str, pictures.Array] = {}
        for place, number in enumerate(pictures.most_varied(samples)):
            one = pictures.snapshot(
                batch, number, samples[number], shown, terms.cells, terms.samples, self.position.step, self.feed.aligned
            )
            arrays |= {pictures.prefix(place) + name: array for name, array in one.items()}
        if self.log is not None:
            self.log.picture(self.position.step, pictures.montage(arrays))
        try:
            pictures.write(self.folder.pictures, arrays)
        except OSError as problem:
            _log.warning("The report's pictures could not be written (%s); training continues.", problem)

    def _validate(self, batches: Iterator[Samples]) -> None:
        """Compute the loss on held-out subjects, always on the same views and masks."""
        self._settle()
        self.method.eval()
        averages = MetricAccumulator()
        for samples in batches:
            self._stop.beat()
            self._note_unreadable(samples)
            averages.add(self._evaluate(self._build(samples), return_diagnostics=False).logs)
        means = averages.take(self._mean_over_processes)
        self._row("validation", means)
        position, before = self.position, (self.position.best_loss, self.position.best_step)
        if means.get("loss", math.inf) < position.best_loss:
            position.best_loss, position.best_step = means["loss"], position.step  # as the checkpoint shall state
            if not self.save():
                position.best_loss, position.best_step = before

    def _probe(self) -> None:
        """Evaluate the encoder on labelled cases in the main process; the others wait for it."""
        self._settle()
        if self.probe is None:
            return
        with self._stop.patience():
            if self.fabric.is_global_zero:
                figures = self.probe(self.method.encoder())
                self._row("probe", figures)
                text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
                _log.info("Step %d: probe of frozen features  %s", self.position.step, text)
            self.fabric.barrier()

    def _log_row(self, pace: Pace, waited: float) -> None:
        self._settle()
        if self.fabric.world_size > 1:
            self._exclude_unreadable()
        means = self.averages.take(self._mean_over_processes)
        self.alerts.loss(self.position, means.get("loss"))
        self.alerts.measures(self.position.step, means)
        steps, seconds = pace.take(self.position.step)
        rate = steps * self.recipe.batch / max(seconds, 1e-9)
        share = waited / max(seconds, 1e-9)
        left = pace.left(self.position.step, self.recipe.steps)
        self._row("train", {**means, "samples_per_second": round(rate, 3), "data_wait": round(share, 4)})
        terms = "  ".join(f"{name} {means[name]:.4f}" for name in _shown(means))
        text = (
            f"step {self.position.step}/{self.recipe.steps}  {terms}  {rate:.1f} volumes/s  "
            f"data wait {share:.0%}  {duration(left)} left"
        )
        PROGRESS.info("%s", text)
        self.progress_line.show(text, force=self.position.step >= self.recipe.steps)

    def _note_unreadable(self, samples: Samples) -> None:
        """Record unreadable volumes; a single process reports them at once, several with the next log row."""
        self.unreadable.meet(samples)
        if self.fabric.world_size == 1:
            self._exclude_unreadable()

    def _exclude_unreadable(self) -> None:
        """Report the excluded volumes; the result is the same in all processes."""
        for volume, reason in self.unreadable.exclude():
            self._settle()
            self._event("unreadable", {"volume": volume, "reason": reason})
            _log.warning("Volume %s of the store cannot be read and is excluded: %s", volume, reason)

    def _event(self, event: str, values: dict[str, Any]) -> None:
        self._row("event", {"event": event, **values})

    def _row(self, kind: str, values: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.row(kind, self.position.step, values)

    def save(self, prune: bool = True) -> bool:
        """Write a checkpoint; a full disk is reported, and the last good checkpoint is kept. Returns success.

        All processes return when the first one has written it: one that ends would end the others. With `prune`, those
        that `checkpoint` does not keep are removed.

        Raises:
            UserError: the weights are not finite.
        """
        self._stop.beat()
        state = self.state()
        check_finite(state["method"], f"The network after step {self.position.step}")
        written = self._write(state, prune) if self.fabric.is_global_zero else True
        with self._stop.patience():
            return self.fabric.broadcast(written)

    def _write(self, state: dict[str, Any], prune: bool) -> bool:
        folder, settings = self.folder.checkpoints, self.recipe.checkpoint
        try:
            if self.log is not None:
                self.log.settle()
            checkpoints.save(folder, self.position.step, state, self._stop.beat)
        except OSError as problem:
            step = self.position.step
            _log.warning("No checkpoint could be written at step %d (%s); the last one is kept.", step, problem)
            self._event("checkpoint_failed", {"reason": str(problem)})
            return False
        if prune:
            checkpoints.prune(folder, settings.keep_last, settings.keep_every, also=(self.position.best_step,))
        return True

    def state(self) -> dict[str, Any]:
        """Return the complete state for exact resuming; it contains no data of subjects and no path.

        All processes call it together: each has separate averages since the last log row.
        """
        self._settle()
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": asdict(self.position),
            "averages": gather_objects(self.averages.state()),
            "recipe": public_settings(self.recipe),
            "preparation": self.preparation,
            "data": self.feed.digest,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state.

        Raises:
            UserError: it does not belong to this method and recipe.
        """
        fabric = self.fabric
        try:
            check_finite(state["method"], f"The checkpoint of step {state['step']}")
            self.method.load_state_dict(state["method"])
            optimizers.load_state(self.optimizer, state["optimizer"])
            if state.get("scaler"):  # empty unless the precision was fp16
                self.scaler.load_state_dict(state["scaler"])
            self.position = TrainingState(**state["position"])
            self.averages.restore(state["averages"], fabric.global_rank, fabric.world_size, fabric.device)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as problem:
            reason = str(problem).splitlines() or [""]
            raise UserError(
                f"The checkpoint of step {state.get('step')} in {self.folder.checkpoints} does not fit this run "
                f"({type(problem).__name__}: {' '.join(reason)[:300]}). It was written by another version of viewalign "
                "(resume with that), or changed since: then rename its folder to resume from the previous one."
            ) from None


def _named(volumes: list[int], name_of: Callable[[int], str]) -> str:
    return f"volume{'s' if len(volumes) > 1 else ''} " + ", ".join(f"{name_of(k)} (number {k})" for k in volumes)


def _shown(means: dict[str, float]) -> list[str]:
    hidden = {"lr", "gradient_norm"}
    return [name for name in means if name not in hidden]
