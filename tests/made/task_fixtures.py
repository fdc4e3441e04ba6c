"""Small tasks made by code."""

import csv
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from viewalign.data.readers.itk import sitk
from viewalign.finetuning.classification.settings import load_training
from viewalign.tasks.manifest import TaskCase, write_manifest
from viewalign.tasks.spec import TaskSpec, write_spec
from viewalign.utils.settings import read_words


def _write_image(path, array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None):
    """Write (D, H, W); geometry in the order (x, y, z)."""
    image = sitk.GetImageFromArray(np.asarray(array))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(np.asarray(direction, dtype=float).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def _head(seed=0, shape=(20, 22, 18), level=100.0):
    """Return a noisy ball in air."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    return (inside * (level + 10 * rng.normal(size=shape))).astype(np.float32)


def _striped_task(folder, kind="binary", cases=12, classes=("no", "yes"), channels=None):
    """A task whose answer is the contrast between the halves of a ball."""
    channels = channels or [{"name": "t1"}]
    spec = TaskSpec.model_validate(
        {
            "name": "made up",
            "kind": kind,
            "channels": channels,
            "classes": list(classes) if kind != "regression" else [],
        }
    )
    made = []
    for k in range(cases):
        step = k % len(classes) if kind != "regression" else k / cases
        images = {}
        for channel in spec.channels:
            array = _head(k)
            array[:, :, 9:] *= 1.0 + step
            images[channel.name] = _write_image(folder / "images" / f"c{k:02d}_{channel.name}.nii.gz", array)
        target = (
            (int(step), 1 - int(step)) if kind == "multilabel" else step if kind != "regression" else 40.0 + 50 * step
        )
        made.append(TaskCase(f"c{k:02d}", f"s{k:02d}", images, target=target))
    write_spec(spec, folder)
    write_manifest(made, spec, folder)
    return spec, made


@pytest.fixture
def task_folder(tmp_path):
    _striped_task(tmp_path / "task")
    return tmp_path / "task"


@pytest.fixture(scope="session")
def write_image():
    return _write_image


@pytest.fixture(scope="session")
def head():
    return _head


@pytest.fixture(scope="session")
def striped_task():
    return _striped_task


@pytest.fixture(scope="session")
def mark_as_test():
    """Make the first cases of a task its test cases; return their names."""

    def mark(folder, count):
        table = folder / "manifest.csv"
        rows = list(csv.DictReader(table.open()))
        for number, row in enumerate(rows):
            row["split"] = "test" if number < count else "train"
        with table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        return [row["case"] for row in rows[:count]]

    return mark


def trained_by(recipe=None, words=()):
    """Return the settings of a fine-tuning from a recipe and `key=value` words, as the command line reads them."""
    return load_training(recipe, read_words(words))


@contextmanager
def interrupted_after(epoch):
    """Interrupt the training of a fold when it reports an epoch, and require that the interrupt arrives."""

    def stop(text, *values):
        if "epoch" in text % values and values[1] == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("viewalign.finetuning.classification.training._log", SimpleNamespace(info=stop))
        with pytest.raises(KeyboardInterrupt):
            yield
