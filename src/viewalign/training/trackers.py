"""Experiment trackers, which show the rows of a run's log: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import io
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from viewalign.config import Recipe, public_settings
from viewalign.errors import UserError
from viewalign.utils.extras import missing
from viewalign.utils.overrides import iter_nested


class Tracker(Protocol):
    """Receives the rows of a run's log."""

    def row(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Send one row."""

    def picture(self, step: int, image: NDArray[np.uint8]) -> None:
        """Show a grey image (rows, columns) of the volumes in training, if pictures may leave the folder."""

    def close(self) -> None:
        """Finish."""


class TensorBoardTracker:
    """TensorBoard's events file in a run's folder.

    It is written synchronously: the writers of torch and tensorboard use a thread, whose errors on a full disk cannot
    be caught.
    """

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any] | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._file = (folder / f"events.out.tfevents.{time.time():.0f}.viewalign").open("ab", buffering=0)
        self._records: Any = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if step:  # rows of an earlier file past this step are obsolete
            self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        if settings:
            self._text("settings", step, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def _text(self, tag: str, step: int, text: str) -> None:
        """Write a text, shown as it is."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # a block of code in Markdown
        content = TensorProto(dtype="DT_STRING", string_val=[indented.encode()], tensor_shape=shape)
        about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=content)])))

    def picture(self, step: int, image: NDArray[np.uint8]) -> None:
        """Write an image."""
        from PIL import Image
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        rows, columns = image.shape
        shown = Summary.Image(height=rows, width=columns, colorspace=1, encoded_image_string=stream.getvalue())
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag="views", image=shown)])))

    def row(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write a row."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        shown = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(kind, values).items()]
        if not shown:
            return
        self._write(Event(step=step, summary=Summary(value=shown)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class WandbTracker:
    """A run on Weights & Biases; a resumed run continues the same one.

    Its own environment variables configure it (`WANDB_ENTITY`, `WANDB_PROJECT`, `WANDB_RUN_ID`, `WANDB_MODE`). Figures
    and settings without paths and `sampling.weights` are sent, but no images.

    Args:
        folder: of the run, in which the id is stored.
        settings: of the run.

    Raises:
        UserError: the package is not installed, or cannot start a run.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise missing("log.wandb=true needs Weights & Biases", "tracking") from None
        try:
            self._run: Any = wandb.init(
                id=_stored_id(folder / "wandb_id", wandb.Settings().run_id),
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
        """Send a row."""
        self._run.log({"step": step, **numbers(kind, values)})

    def picture(self, step: int, image: NDArray[np.uint8]) -> None:
        """Send nothing: images of subjects do not leave the machine."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MlflowTracker:
    """A run on MLflow; a resumed run continues the same one.

    Its own environment variables configure it (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`). Figures and settings
    without paths and `sampling.weights` are sent, but no images. Requests are retried twice
    (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`) instead of MLflow's seven times over minutes, because training waits for them.

    Args:
        folder: of the run, in which the id is stored.
        settings: of the run; they are sent once, at the start.

    Raises:
        UserError: the package is not installed, or the server cannot be reached at the start.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            import mlflow
        except ImportError:
            raise missing("log.mlflow=true needs MLflow", "tracking") from None
        try:
            self._client: Any = mlflow.MlflowClient()
            self._id = self._begin(folder / "mlflow_id", settings)
        except Exception as problem:
            raise UserError(
                f"MLflow cannot be used: {problem}. Set MLFLOW_TRACKING_URI to a server or a folder that is there, or "
                "leave out log.mlflow."
            ) from None

    def _begin(self, stored: Path, settings: dict[str, Any]) -> str:
        """Return the id of the stored run, or of a new one with these settings."""
        if stored.is_file():
            identity = stored.read_text(encoding="utf-8").strip()
            self._client.update_run(identity, status="RUNNING")
            return identity
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "viewalign")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        identity = str(self._client.create_run(experiment).info.run_id)
        for key, value in iter_nested(settings):
            self._client.log_param(identity, key, value)
        stored.write_text(identity)
        return identity

    def row(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Send a row."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        shown = [Metric(name, value, now, step) for name, value in numbers(kind, values).items()]
        self._client.log_batch(self._id, metrics=shown)

    def picture(self, step: int, image: NDArray[np.uint8]) -> None:
        """Send nothing: images of subjects do not leave the machine."""

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._id)


def numbers(kind: str, values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a row by `kind/name`; facts and events are no curves."""
    if kind in ("data", "event"):
        return {}
    return {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}


def open_trackers(recipe: Recipe, folder: Path, step: int) -> list[Tracker]:
    """Open the trackers of a recipe."""
    opened: list[Tracker] = (
        [TensorBoardTracker(folder, step, public_settings(recipe))] if recipe.log.tensorboard else []
    )
    for enabled, tracker in ((recipe.log.wandb, WandbTracker), (recipe.log.mlflow, MlflowTracker)):
        opened += [tracker(folder, public_settings(recipe))] if enabled else []
    return opened


def _stored_id(path: Path, default: str | None) -> str:
    """Return the stored id of the run, else the default, else a new one."""
    if not path.is_file():
        path.write_text(default or uuid.uuid4().hex[:8])
    return path.read_text(encoding="utf-8").strip()
