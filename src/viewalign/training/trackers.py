"""Where the rows of a run go besides `log.jsonl`: TensorBoard, and Weights & Biases or MLflow for those who ask."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from viewalign.config import Recipe, public_settings
from viewalign.errors import UserError
from viewalign.utils.overrides import iter_nested


class Tracker(Protocol):
    """Takes rows of a run."""

    def row(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Show one row."""

    def close(self) -> None:
        """Write out what is under way."""


class TensorBoardTracker:
    """TensorBoard's events file in a run's folder.

    It is written here and now: the writers of torch and tensorboard hand rows to a thread, which on a full disk dies
    with a traceback that no one can catch.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._file = (folder / f"events.out.tfevents.{time.time():.0f}.viewalign").open("ab", buffering=0)
        self._records: Any = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if step:  # what an earlier file has past this step is no longer so
            self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def row(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write the numbers of a row."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        shown = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(kind, values).items()]
        self._write(Event(step=step, summary=Summary(value=shown)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class WandbTracker:
    """A run on Weights & Biases; a resumed run goes on in the same one.

    The package's own variables say whose and where (`WANDB_ENTITY`, `WANDB_PROJECT`, `WANDB_RUN_ID`, `WANDB_MODE`).
    Figures and settings are sent, without paths; no image is.

    Args:
        folder: the run's, which keeps the id.
        settings: of the run.

    Raises:
        UserError: the package is not there, or refuses.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("log.wandb=true needs Weights & Biases: pip install 'viewalign[tracking]'.") from None
        try:
            self._run: Any = wandb.init(
                id=_kept_id(folder / "wandb_id", wandb.Settings().run_id),
                resume="allow",
                dir=str(folder),
                config=settings,
                settings=wandb.Settings(silent=True, disable_git=True, save_code=False),
            )
        except Exception as problem:
            raise UserError(
                f"Weights & Biases cannot be used: {problem}. `wandb login` once, or WANDB_MODE=offline, or leave out "
                "log.wandb."
            ) from None
        self._run.define_metric("*", step_metric="step")

    def row(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Send the numbers of a row."""
        self._run.log({"step": step, **numbers(kind, values)})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MlflowTracker:
    """A run on MLflow; a resumed run goes on in the same one.

    The package's own variables say where (`MLFLOW_TRACKING_URI`) and under which experiment
    (`MLFLOW_EXPERIMENT_NAME`). Figures and settings are sent, without paths; no image is. A server that does not answer
    is asked twice more (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`), not seven times over minutes as MLflow would, for it is
    training that waits.

    Args:
        folder: the run's, which keeps the id.
        settings: of the run; they are sent once, when it begins.

    Raises:
        UserError: the package is not there, or the server cannot be reached at the start.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # its makers are told of nothing unasked
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            import mlflow
        except ImportError:
            raise UserError("log.mlflow=true needs MLflow: pip install 'viewalign[tracking]'.") from None
        try:
            self._client: Any = mlflow.MlflowClient()
            self._id = self._begin(folder / "mlflow_id", settings)
        except Exception as problem:
            raise UserError(
                f"MLflow cannot be used: {problem}. Set MLFLOW_TRACKING_URI to a server or a folder that is there, or "
                "leave out log.mlflow."
            ) from None

    def _begin(self, kept: Path, settings: dict[str, Any]) -> str:
        """Return the id of the run: the one it began with, else a new one's, which is told of the settings."""
        if kept.is_file():
            identity = kept.read_text().strip()
            self._client.update_run(identity, status="RUNNING")
            return identity
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "viewalign")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        identity = str(self._client.create_run(experiment).info.run_id)
        for key, value in iter_nested(settings):
            self._client.log_param(identity, key, value)
        kept.write_text(identity)
        return identity

    def row(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Send the numbers of a row."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        shown = [Metric(name, value, now, step) for name, value in numbers(kind, values).items()]
        self._client.log_batch(self._id, metrics=shown)

    def close(self) -> None:
        """Say that the run has ended."""
        self._client.set_terminated(self._id)


def numbers(kind: str, values: dict[str, Any]) -> dict[str, float]:
    """Return what of a row can be drawn, by `kind/name`."""
    return {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}


def open_trackers(recipe: Recipe, folder: Path, step: int) -> list[Tracker]:
    """Open the boards that a recipe asks for."""
    opened: list[Tracker] = [TensorBoardTracker(folder, step)] if recipe.log.tensorboard else []
    for asked, board in ((recipe.log.wandb, WandbTracker), (recipe.log.mlflow, MlflowTracker)):
        opened += [board(folder, public_settings(recipe))] if asked else []
    return opened


def _kept_id(path: Path, given: str | None) -> str:
    """Return the id of the run: the one it began with, else the one that is given, else a new one."""
    if not path.is_file():
        path.write_text(given or uuid.uuid4().hex[:8])
    return path.read_text().strip()
