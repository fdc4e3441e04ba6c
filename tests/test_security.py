"""What hostile files can do: nothing. No pickle runs, no name becomes markup, no export tells whose data it saw."""

import getpass
import html.parser
import json
import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.formats import resolving
from viewalign.formats.files import load_checkpoint
from viewalign.report.page import write_report
from viewalign.report.segmentation import write_page as write_segmentation_page
from viewalign.training import checkpoints, pictures
from viewalign.transfer.embedding import Embeddings
from viewalign.transfer.tasks.fomo_submission import write_submission
from viewalign.transfer.tasks.manifest import TaskCase, write_manifest
from viewalign.transfer.tasks.models import read_model
from viewalign.transfer.tasks.spec import TaskSpec, write_spec
from viewalign.transfer.weights import read_source
from viewalign.volumes.itk import sitk
from viewalign.volumes.store import Store, store_from_arrays

MARKUP = "<img src=x onerror=alert(1)>\"'><script>alert(2)<_script>"
"""What a name may hold on a disk; a slash it cannot, and a parser takes the second tag for a script all the same."""
SMALL = {
    "steps": 2,
    "batch": 2,
    "views": {"size": (16, 16, 16)},
    "heads.width": 16,
    "runtime": {"workers": 0, "precision": "fp32"},
    "validate": {"every": 0},
}


class Planted:
    """Reading it with pickle makes a folder."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.mkdir, (str(self.trap),)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("jane_doe_clinic")
    arrays = {
        f"patient_jane_doe_{k}": np.random.default_rng(k).normal(size=(20, 20, 20)).astype(np.float32) for k in range(4)
    }
    store_from_arrays(root / "store", arrays)
    return viewalign.pretrain("cva-resenc-xs", root / "store", root / "run", **SMALL).folder.root


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """A fine-tuning on cases whose names must stay at home."""
    root = tmp_path_factory.mktemp("jane_doe_task")
    kinds = {"name": "made up", "kind": "binary", "channels": [{"name": "t1"}], "classes": ["no", "yes"]}
    spec, cases = TaskSpec.model_validate(kinds), []
    for k in range(6):
        image = root / f"jane_doe_{k}.nii.gz"
        array = np.random.default_rng(k).normal(5 + k % 2, 1, size=(20, 20, 20)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(image))
        cases.append(TaskCase(f"jane_doe_{k}", f"jane_doe_{k}", {"t1": image}, target=k % 2))
    write_spec(spec, root)
    write_manifest(cases, spec, root)
    return viewalign.finetune("classification", root, run, root / "tuned", epochs=1, folds=2, batch=2).folder


def planted_files(folder, trap):
    """Return hostile content under every kind of name: torch's two layouts, a bare pickle, numpy's object arrays."""
    folder.mkdir(exist_ok=True)
    bad = {"network_weights": {"encoder.a": torch.zeros(2)}, "init_args": Planted(trap)}
    torch.save(bad, folder / "new.pth")
    torch.save(bad, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "bare.pkl").write_bytes(pickle.dumps(bad))
    np.save(folder / "object.npy", np.array([Planted(trap)], dtype=object), allow_pickle=True)
    np.savez(folder / "object.npz", case=np.array([Planted(trap)], dtype=object), features=np.zeros((1, 2)), facts="{}")
    return sorted(folder.iterdir())


def _as(name):
    """Give a hostile file the name that a door looks for."""

    def place(file, folder):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        return target

    return place


def _encoder_folder(file, folder):
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "encoder.json").write_text(
        '{"format": "viewalign-encoder", "version": 1, "network": {"name": "resenc-xs", "channels": 1}, '
        '"size": [16, 16, 16]}'
    )
    return _as("export/encoder.safetensors")(file, folder).parent


def _model_folder(file, folder):
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text('{"format": "viewalign-task-model", "version": 1}')
    return _as("model.safetensors")(file, folder).parent


DOORS = {
    "load_checkpoint": (load_checkpoint, _as("checkpoint_final.pth")),
    "read_source, a file": (read_source, _as("checkpoint_final.pth")),
    "read_source, a folder": (lambda file: read_source(file.parent), _as("checkpoint_final.pth")),
    "read_source, safetensors": (read_source, _as("model.safetensors")),
    "a run's checkpoint": (lambda file: checkpoints.load(file.parent), _as("step_00000001/state.pt")),
    "an export": (viewalign.load_encoder, _encoder_folder),
    "init of an export": (read_source, _encoder_folder),
    "a task's model": (read_model, _model_folder),
    "embeddings": (Embeddings.read, _as("vectors.npz")),
    "a catalogue": (lambda file: viewalign.prepare(file, file.parent / "store", workers=0), _as("catalogue.json")),
    "a folder of images": (
        lambda file: viewalign.prepare(file.parent, file.parent.parent / "store", workers=0),
        _as("scans/image.nii.gz"),
    ),
    "a store": (lambda file: Store.open(file.parent), _as("store/index.npz")),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_unpickles(door, tmp_path):
    opened, place = DOORS[door]
    for number, file in enumerate(planted_files(tmp_path / "planted", tmp_path / "trap")):
        target = place(file, tmp_path / f"door{number}")
        with pytest.raises(UserError) as told:
            opened(target)
        assert len(str(told.value)) > 20
        assert not (tmp_path / "trap").exists(), f"{door} ran what {file.name} holds"


def test_doors_that_shrug_run_nothing_either(tmp_path):
    """Two readers answer a file that they cannot read with less instead of with a refusal."""
    for file in planted_files(tmp_path / "planted", tmp_path / "trap"):
        with pytest.raises(Exception):  # noqa: B017 (the page that asks tells any of them in its own words)
            pictures.read(file)["case"]
        assert resolving._family_in(file) is None
    assert not (tmp_path / "trap").exists()


def test_a_planted_pickle_beside_nnssl_s_images_is_left_alone(tmp_path):
    """A store in nnssl's layout has a .pkl an image; the catalogue's reader must not so much as open it."""
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "image.pkl").write_bytes(pickle.dumps(Planted(tmp_path / "trap")))
    image = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "image.nii.gz"))
    assert viewalign.prepare(folder, tmp_path / "store", workers=0).prepared == 1
    assert not (tmp_path / "trap").exists()


class Tags(html.parser.HTMLParser):
    """Collects what a browser would see of a page."""

    def __init__(self):
        super().__init__()
        self.scripts, self.handlers, self.images, self.data = 0, [], [], ""

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.images += [value for name, value in attrs if tag == "img" and name == "src"]

    def handle_data(self, data):
        self.data += data


def assert_harmless(page, scripts=0):
    tags = Tags()
    tags.feed(page)
    assert tags.scripts == scripts
    assert not tags.handlers
    assert "x" not in tags.images
    assert "onerror=alert(1)" in tags.data  # it is shown, as text


def hostile_images(folder):
    folder.mkdir()
    for k in range(3):
        image = np.random.default_rng(k).normal(size=(20, 20, 20)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "tame.nii.gz"))
        (folder / "tame.nii.gz").rename(folder / f"{MARKUP}{k}.nii.gz")
    (folder / f"{MARKUP}bad.nii.gz").write_bytes(b"no image")
    return folder


def test_names_with_markup_stay_text_from_index_to_report(tmp_path):
    folder = hostile_images(tmp_path / "scans")
    catalogue = tmp_path / "catalogue.json"
    done = CliRunner().invoke(app, ["index", str(folder), "-o", str(catalogue)])
    assert done.exit_code == 3, done.output
    assert_harmless((tmp_path / "catalogue.html").read_text())
    assert viewalign.prepare(catalogue, tmp_path / "store", workers=0).prepared == 3
    settings = {**SMALL, "log": {"tensorboard": False}}
    outcome = viewalign.pretrain("mae-resenc-xs", tmp_path / "store", tmp_path / f"run {MARKUP}", **settings)
    event = {"kind": "event", "event": "unreadable", "step": 1, "volume": 1, "reason": MARKUP}
    with outcome.folder.log.open("a") as log:
        log.write(json.dumps(event) + "\n")
    page = write_report(outcome.folder.root).read_text()
    own = page.count("<script>")
    assert own == 1
    assert_harmless(page, scripts=own)


def test_a_fine_tuning_s_page_shows_names_as_text(tmp_path):
    """Labels, splits and cases come from other people's files."""
    label = {"labels": {"a": [1]}, "dataset": MARKUP, "plans": MARKUP, "trainer": "T", "model": "m", "encoder": MARKUP}
    rest = {
        "patch": [8, 8, 8],
        "spacing": [1, 1, 1],
        "schedule": {"epochs": 1, "iterations": 1, "lr": 0.1, "optimizer": MARKUP, "warmup": 0, "frozen": 0},
        "results": [],
    }
    (tmp_path / "results.json").write_text(json.dumps({**label, **rest}))
    assert_harmless(write_segmentation_page(tmp_path).read_text())


def _machine():
    """Names of host and user, where they are too long to turn up in tensors by chance."""
    return [name for name in (socket.gethostname(), f"/{getpass.getuser()}/") if len(name) >= 6]


@pytest.mark.slow
def test_a_fine_tuning_tells_no_name_in_what_is_handed_on(run, tuned, tmp_path):
    """Every kind of export: of the run in both layouts, of its twin, of folds, of the challenge's container."""
    kinds = [
        viewalign.export_run(run, tmp_path / "student"),
        viewalign.export_run(run, tmp_path / "teacher", "teacher"),
    ]
    kinds += [folder for folder in sorted(tuned.glob("fold_*")) if folder.is_dir()]
    write_submission(tuned, tmp_path / "submission")
    kinds.append(tmp_path / "submission")
    secrets = {"jane_doe", str(run.parent), str(tuned.parent), str(Path.home()), str(tmp_path), *_machine()}
    for folder in kinds:
        files = [path for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
        assert files
        for file in files:
            content = file.read_bytes()
            found = [secret for secret in secrets if secret.encode() in content]
            assert not found, f"{file.relative_to(folder)} in {folder.name} holds {found}"


def test_a_checkpoint_holds_no_subject_and_no_place(run):
    newest = checkpoints.path_of(run / "checkpoints", checkpoints.steps(run / "checkpoints")[-1])
    for file in newest.iterdir():
        content = file.read_bytes()
        for secret in ("jane_doe", str(run.parent), *_machine()):
            assert secret.encode() not in content, (file.name, secret)
