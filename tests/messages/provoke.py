"""The most important user errors, each provoked once. `python tests/messages/provoke.py` rewrites the stored ones."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import yaml
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.errors import UserError, report_os_errors
from viewalign.finetuning.segmentation import dataset
from viewalign.methods.registry import build_method
from viewalign.networks.registry import build_backbone
from viewalign.recipes.loading import load
from viewalign.tasks.manifest import read_manifest
from viewalign.tasks.spec import read_spec
from viewalign.utils import precision
from viewalign.utils.locks import lock_folder
from viewalign.utils.memory import reported_out_of_memory
from viewalign.weights.reading import read_source

STORED = Path(__file__).with_name("messages.txt")


def command(*words: str) -> Callable[[Path], object]:
    """Return a call of the command line; `FOLDER` in a word is replaced by the case's folder."""

    def run(folder: Path) -> object:
        result = CliRunner().invoke(app, [word.replace("FOLDER", str(folder)) for word in words], prog_name="viewalign")
        if isinstance(result.exception, UserError):
            raise result.exception
        return result

    return run


def written(name: str, text: str, then: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return a call that writes a file and passes its path on."""

    def run(folder: Path) -> object:
        (folder / name).write_text(text)
        return then(folder / name)

    return run


def memory_runs_out(_: Path) -> None:
    with reported_out_of_memory("cases were embedded", "Use a smaller patch_size, or device=cpu."):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")


def disk_is_full(folder: Path) -> None:
    with report_os_errors():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "state.pt"))


def permission_is_missing(folder: Path) -> None:
    with report_os_errors():
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder / "scan.nii.gz"))


def folder_is_in_use(folder: Path) -> None:
    with mock.patch("viewalign.utils.locks._PATIENCE", 0.0), lock_folder(folder), lock_folder(folder):
        pass


def pickled_weights(folder: Path) -> object:
    torch.save({"network_weights": {"a": torch.zeros(2)}, "trainer_name": print}, folder / "model.pth")
    return read_source(folder / "model.pth")


def foreign_weights(folder: Path) -> object:
    torch.save({"network_weights": {"layer1.weight": torch.zeros(2)}, "trainer_name": "x"}, folder / "model.pth")
    return read_source(folder / "model.pth")


def task_with_wrong_rows(folder: Path) -> object:
    spec = {"name": "infarct", "kind": "binary", "classes": ["no", "yes"], "channels": [{"name": "t1"}]}
    (folder / "task.yaml").write_text(yaml.safe_dump(spec))
    rows = ["case,subject,image.t1,target", "a,p,a.nii.gz,maybe", "b,p,,yes", "c,q,c.nii.gz,"]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return read_manifest(folder, read_spec(folder))


def dataset_without_labels(folder: Path) -> object:
    root = folder / "Dataset042_Balls"
    (root / "imagesTr").mkdir(parents=True)
    tree = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(tree))
    return dataset.find("42", folder)


def based_on_itself(folder: Path) -> object:
    (folder / "mine.yaml").write_text(f"base: {folder / 'mine.yaml'}\n")
    return load(str(folder / "mine.yaml"))


CASES: dict[str, Callable[[Path], object]] = {
    "a misspelt setting": lambda at: load("cva-resenc-xs", ["optim.learningrate=1"]),
    "a value out of range": lambda at: viewalign.prepare(at, at / "store", spacing=-1),
    "a setting without effect": lambda at: load("mae-resenc-xs", ["heads.width=8"]),
    "a misspelt recipe": lambda at: load("cva-resnet-xs"),
    "a misspelt study": lambda at: viewalign.study("geometry-labtop", at),
    "an unknown method": lambda at: build_method(load("cva-resenc-xs", ["method=byol"])),
    "an unknown network": lambda at: build_backbone("resnet", (32, 32, 32)),
    "a view size that the network rejects": lambda at: build_backbone("resenc-xs", (32, 28, 32)),
    "a batch without negatives": lambda at: build_method(load("simclr-resenc-xs", ["batch=1"])),
    "a recipe that is not YAML": written("mine.yaml", "a: [", lambda file: load(str(file))),
    "a recipe that is based on itself": based_on_itself,
    "a flag that is a setting": command("prepare", "FOLDER", "-o", "store", "--spacing", "1.5"),
    "an unexpected argument": command("verify", "FOLDER", "more"),
    "no store": lambda at: viewalign.pretrain("cva-resenc-xs", at / "store", at / "run"),
    "no run": command("report", "FOLDER"),
    "no images": lambda at: viewalign.index(at, at / "catalogue.json"),
    "no catalogue": lambda at: viewalign.prepare(at / "catalogue.json", at / "store"),
    "no weights": lambda at: viewalign.load_encoder(at / "run"),
    "no task": lambda at: read_spec(at / "task"),
    "no trained model": lambda at: viewalign.predict(at, at),
    "no nnU-Net dataset of this number": lambda at: dataset.find("43", at),
    "a dataset without labels": dataset_without_labels,
    "a table with wrong rows": task_with_wrong_rows,
    "predictions without references": lambda at: viewalign.evaluate(at / "predictions", at / "references"),
    "weights that are pickled": pickled_weights,
    "weights of another network": foreign_weights,
    "memory that runs out": memory_runs_out,
    "a full disk": disk_is_full,
    "a file without permission": permission_is_missing,
    "a folder that is in use": folder_is_in_use,
    "fp16 without a GPU": lambda at: precision.settle("fp16", "cpu"),
    "an unknown device": lambda at: precision.choose_device("tpu"),
}
"""User errors by name; each call gets an empty folder and raises a `UserError`."""


def message(name: str, folder: Path) -> str:
    """Return a case's message, without parts that differ between machines, and without long lists of names."""
    try:
        CASES[name](folder)
    except UserError as problem:
        text = str(problem).replace(str(folder.resolve()), "FOLDER").replace(str(folder), "FOLDER")
        text = text.replace(f"{socket.gethostname()}, process {os.getpid()}", "HOST, process N")
        text = re.sub(r"may use [\d.]+ [GM]B", "may use N GB", text)
        return re.sub(r"(Recipes|Studies) are .*?, or the path", r"\1 are …, or the path", text)
    raise AssertionError(f"{name}: no error")


def stored() -> dict[str, str]:
    """Return the stored messages by case."""
    parts = re.split(r"^## (.*)$", STORED.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def rewrite() -> None:
    """Store the current messages."""
    found = []
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found.append(f"## {name}\n{message(name, Path(folder))}\n")
    STORED.write_text("\n".join(found), encoding="utf-8")


if __name__ == "__main__":
    rewrite()
