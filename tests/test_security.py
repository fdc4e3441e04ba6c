"""What hostile files can do: nothing. No pickle runs, no name becomes markup, no export identifies subjects."""

import csv
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
from local_server import local_server
from markupsafe import escape
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.compat.fomo_submission import write_submission
from viewalign.data.fetch import hub
from viewalign.data.readers.itk import sitk
from viewalign.data.store import Store, store_from_arrays
from viewalign.errors import UserError
from viewalign.evaluation.embedding import Embeddings
from viewalign.evaluation.folders import evaluate_folder
from viewalign.evaluation.predictions import read_predictions, write_predictions
from viewalign.evaluation.segmentation_metrics import Rules
from viewalign.finetuning.classification.models import read_model
from viewalign.finetuning.classification.onnx import open_session
from viewalign.finetuning.segmentation import package as packaging
from viewalign.finetuning.segmentation import plans as nnunet
from viewalign.reports.run import write_report
from viewalign.reports.segmentation import write_page as write_segmentation_page
from viewalign.reports.task import write_page as write_task_page
from viewalign.tasks.manifest import TaskCase, write_manifest
from viewalign.tasks.spec import TaskSpec, write_spec
from viewalign.training import pictures
from viewalign.weights import checkpoints, nnssl_runs, remote
from viewalign.weights import files as nnunet_models
from viewalign.weights.files import load_checkpoint
from viewalign.weights.reading import read_source

MARKUP = "<img src=x onerror=alert(1)>\"'><script>alert(2)<_script>"
"""What a name may hold on a disk; a slash it cannot, and a parser takes the second tag for a script all the same."""
SMALL = {
    "steps": 2,
    "batch": 2,
    "views": {"patch_size": (16, 16, 16)},
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
    weights = {"weights": {"arrays__arrays__patient_jane_doe_0": 2.0}}
    return viewalign.pretrain("cva-resenc-xs", root / "store", root / "run", **SMALL, sampling=weights).folder.root


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
        '{"format": "viewalign-encoder", "version": 1, "network": {"name": "resenc-xxs", "channels": 1}, '
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
    """Two readers return less for an unreadable file instead of rejecting it."""
    for file in planted_files(tmp_path / "planted", tmp_path / "trap"):
        with pytest.raises(Exception):  # noqa: B017 (the page that asks tells any of them in its own words)
            pictures.read(file)["case"]
        assert nnssl_runs._family_in(file) is None
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
        self.scripts += tag == "script" and "type" not in dict(attrs)  # a browser does not run data
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


@pytest.mark.parametrize("place", ["../weights.bin", "absolute", "link.bin", "short.bin"])
def test_an_onnx_graph_reads_no_file_outside_its_folder(tmp_path, place):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    folder, outside = tmp_path / "model", tmp_path / "weights.bin"
    folder.mkdir()
    outside.write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(outside)
    (folder / "short.bin").write_bytes(bytes(8))
    weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=str(outside) if place == "absolute" else place)
    ends = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="onnxruntime"):
        open_session(folder / "model.onnx")


@pytest.mark.slow
def test_names_with_markup_stay_text_from_index_to_report(tmp_path):
    folder = hostile_images(tmp_path / "scans")
    catalogue = tmp_path / "catalogue.json"
    done = CliRunner().invoke(app, ["index", str(folder), "-o", str(catalogue)])
    assert done.exit_code == 3, done.output
    assert_harmless((tmp_path / "catalogue.html").read_text())
    assert viewalign.prepare(catalogue, tmp_path / "store", workers=0).prepared == 3
    settings = {**{key: SMALL[key] for key in SMALL if key != "heads.width"}, "log": {"tensorboard": False}}
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
        "schedule": {"epochs": 1, "iterations": 1, "lr": 0.1, "optimizer": MARKUP, "warmup_epochs": 0, "frozen": 0},
        "results": [],
    }
    (tmp_path / "results.json").write_text(json.dumps({**label, **rest}))
    assert_harmless(write_segmentation_page(tmp_path).read_text(), scripts=1)


def _machine():
    """Names of host and user, where they are too long to turn up in tensors by chance."""
    return [name for name in (socket.gethostname(), f"/{getpass.getuser()}/") if len(name) >= 6]


@pytest.mark.slow
def test_files_of_a_fine_tuning_for_others_contain_no_names(run, tuned, tmp_path):
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


def test_the_page_of_a_task_shows_names_as_text(tmp_path):
    """Names of task, classes, units, cases and subjects come from the author of the manifest."""
    kinds = {"name": MARKUP, "kind": "binary", "channels": [{"name": MARKUP}], "classes": ["no", MARKUP]}
    spec = TaskSpec.model_validate(kinds)
    cases = [TaskCase(f"{MARKUP}{k}", f"{MARKUP}s{k}", {}, target=k % 2) for k in range(12)]
    run = tmp_path / f"run {MARKUP}"
    run.mkdir()
    write_spec(spec, run)
    answers = {case.case: (str(k % 3), np.array([0.4, 0.6])) for k, case in enumerate(cases)}
    write_predictions(run / "predictions.csv", cases, answers, spec)
    told = {"network": MARKUP, "encoder": MARKUP, "held_out": {"cases": 12, "values": {"auroc": 0.5}, "intervals": {}}}
    (run / "metrics.json").write_text(json.dumps(told))
    (run / "refused.json").write_text(json.dumps([[MARKUP, MARKUP]]))
    assert_harmless(write_task_page(run).read_text(), scripts=1)


def test_tables_of_predictions_hold_no_formulas(tmp_path):
    """Names come from the author of the manifest, and tables are opened in spreadsheets."""
    kinds = {"name": "x", "kind": "binary", "channels": [{"name": "a"}], "classes": ["=no", "+yes"]}
    spec = TaskSpec.model_validate(kinds)
    cases = [TaskCase(f"=1+{k}", f"@s{k}", {}, target=k % 2) for k in range(4)]
    write_spec(spec, tmp_path)
    answers = {case.case: ("0", np.array([0.4, 0.6])) for case in cases}
    write_predictions(tmp_path / "predictions.csv", cases, answers, spec)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        cells = [text for row in csv.reader(file) for text in row]
    assert "'=1+0" in cells
    assert not [text for text in cells if text.startswith(("=", "+", "@"))]
    read = read_predictions(tmp_path)
    assert (read.cases, read.subjects) == (tuple(c.case for c in cases), tuple(c.subject for c in cases))


def test_scores_of_a_segmentation_show_names_as_text(tmp_path):
    """Cases by their file names, classes as dataset.json has them; the page is fed with a real evaluation."""
    pytest.importorskip("monai")
    folders = {name: tmp_path / name for name in ("guess", "truth", "images")}
    for folder in folders.values():
        folder.mkdir()
        for k in range(2):
            array = np.zeros((12, 12, 12), np.uint8)
            array[3:8, 3:8, 3 : 8 + k] = 1
            name = f"{MARKUP}{k}_0000.nii.gz" if folder.name == "images" else f"{MARKUP}{k}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "tame.nii.gz"))
            (tmp_path / "tame.nii.gz").rename(folder / name)
    rules = Rules({MARKUP: (1,)}, {MARKUP: 1.0})
    evaluate_folder(folders["guess"], folders["truth"], rules).write(tmp_path / "run" / "evaluation" / "fold-0")
    row = {"name": MARKUP, "fold": 0, "evaluation": "evaluation/fold-0", "predictions": str(folders["guess"])}
    row |= {"references": str(folders["truth"]), "images": str(folders["images"])}
    label = {"labels": {MARKUP: [1]}, "dataset": MARKUP, "plans": MARKUP, "trainer": MARKUP, "model": "m"}
    schedule = {"epochs": 1, "iterations": 1, "lr": 0.1, "optimizer": MARKUP, "warmup_epochs": 0, "frozen": 0}
    tree = {**label, "encoder": MARKUP, "patch": [8, 8, 8], "spacing": [1, 1, 1], "schedule": schedule}
    (tmp_path / "run" / "results.json").write_text(json.dumps({**tree, "results": [row]}))
    page = write_segmentation_page(tmp_path / "run").read_text()
    assert_harmless(page, scripts=1)
    assert str(escape(f"{MARKUP}1")) in page


def test_a_comparison_s_page_shows_names_as_text(tmp_path):
    pytest.importorskip("monai")
    for who, wide in (("a", 8), ("b", 9)):
        for name, width in (("guess", wide), ("truth", 8)):
            folder = tmp_path / who / name
            folder.mkdir(parents=True)
            for k in range(3):
                array = np.zeros((12, 12, 12), np.uint8)
                array[3:8, 3:8, 2 + k : width] = 1
                sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{k}.nii.gz"))
        rules = Rules({MARKUP: (1,)}, {MARKUP: 1.0})
        evaluate_folder(tmp_path / who / "guess", tmp_path / who / "truth", rules).write(tmp_path / f"{who} {MARKUP}")
    scores = [str(tmp_path / f"{who} {MARKUP}") for who in "ab"]
    done = CliRunner().invoke(app, ["compare", *scores, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert_harmless(page, scripts=1)
    assert str(escape(f"a {MARKUP}")) in page


PLAN = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": {"nonlin": "torch.nn.LeakyReLU", "conv_op": "torch.nn.modules.conv.Conv3d", "dropout_op": None},
    "_kw_requires_import": ["conv_op", "nonlin", "dropout_op"],
}


def nnunet_model(folder, architecture, checkpoint):
    """Lay out a trained model as nnU-Net does."""
    (folder / "fold_0").mkdir(parents=True)
    plans = {"plans_name": "p", "configurations": {"3d_fullres": {"architecture": architecture}}}
    (folder / "plans.json").write_text(json.dumps(plans))
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "rind": 1}, "file_ending": ".nii.gz"}
    private = {"training": [{"image": "./imagesTr/jane_doe_1.nii.gz"}], "description": "of Jane_Doe's clinic"}
    (folder / "dataset.json").write_text(json.dumps({**description, **private}))
    (folder / "dataset_fingerprint.json").write_text(json.dumps({"cases": ["jane_doe_1"]}))
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def good_checkpoint(folder):
    """What nnU-Net's trainer saves, as far as it matters here."""
    told = {"configuration": "3d_fullres", "plans": {"dataset_name": "jane_doe"}, "fold": 0}
    return {
        "network_weights": {"encoder.a": torch.zeros(2)},
        "init_args": {**told, "device": torch.device("cpu")},
        "trainer_name": "ViewalignTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "_best_ema": np.float64(0.5),
        "logging": {"lrs": [np.float32(0.1), 1e-3], "where": str(folder)},
    }


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    array = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "images" / "a_0000.nii.gz"))
    return tmp_path / "images"


def test_nnunet_is_handed_no_model_that_it_would_run(tmp_path, images):
    """Its own reader unpickles checkpoints; ours looks at them first, as data."""
    pytest.importorskip("nnunetv2")
    hostile = {**good_checkpoint(tmp_path), "logging": Planted(tmp_path / "trap")}
    model = nnunet_model(tmp_path / "model", PLAN, hostile)
    with pytest.raises(UserError, match="pickled"):
        viewalign.predict(model, images, tmp_path / "masks", device="cpu")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"network_class_name": "subprocess.Popen"},
        {"network_class_name": "dynamic_network_architectures.architectures.unet.os.system"},
        {"arch_kwargs": {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": "exit"}}},
        {"arch_kwargs": {"conv_op": "torch.nn.modules.conv.math.sin"}},
        {"arch_kwargs": {"norm_op": "os.system"}, "_kw_requires_import": ["norm_op"]},
        {"arch_kwargs": {"nonlin": "torch.nn.Module.__init__"}},
    ],
)
def test_nnunet_is_handed_no_plan_that_names_code(change, tmp_path, images):
    """A plan names the classes that nnU-Net imports and calls, with arguments of the plan's choice."""
    pytest.importorskip("nnunetv2")
    model = nnunet_model(tmp_path / "model", {**PLAN, **change}, good_checkpoint(tmp_path))
    with pytest.raises(UserError, match=r"plans\.json"):
        viewalign.predict(model, images, tmp_path / "masks", device="cpu")


def test_a_good_model_of_nnunet_passes(tmp_path):
    nnunet_models.check_model(nnunet_model(tmp_path / "model", PLAN, good_checkpoint(tmp_path)), [0])


def test_a_package_for_nnunet_contains_no_case_and_no_path(tmp_path):
    secrets = [str(tmp_path), "jane_doe", "Jane_Doe", str(Path.home()), *_machine()]
    plan = {**PLAN, "arch_kwargs": {**PLAN["arch_kwargs"]}}
    model = nnunet_model(tmp_path / "model", plan, good_checkpoint(tmp_path))
    tree = json.loads((model / "plans.json").read_text())
    tree |= {"pretrain_info": {"checkpoint_path": str(tmp_path / "encoder.pth")}, "dataset_name": "Dataset004_X"}
    tree[nnunet.BLOCK] = {"version": 1, "schedule": {}, "encoder": {"file": "encoder.pth", "source": str(tmp_path)}}
    (model / "plans.json").write_text(json.dumps(tree))
    (tmp_path / "run").mkdir()
    results = {"model": str(model), "dataset": "Dataset004_X", "results": [{"fold": 0}]}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    (package,) = packaging.export_model(tmp_path / "run", tmp_path / "package")
    files = [path for path in package.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"plans.json", "dataset.json", "checkpoint_final.pth"}
    for file in files:
        found = [secret for secret in secrets if secret.encode() in file.read_bytes()]
        assert not found, f"{file.name} holds {found}"


def test_a_hostile_repository_on_the_hub_runs_nothing_and_writes_nothing_outside(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    planted = {file.name: file.read_bytes() for file in planted_files(tmp_path / "planted", tmp_path / "trap")}
    with local_server() as served:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "deep" / "cache"))
        for number, name in enumerate(("new.pth", "old.pth")):
            files = {"checkpoint_final.pth": planted[name], "evil.pkl": planted["bare.pkl"], "run.py": b"import os"}
            served.hub[f"owner/bad{number}"] = files
            folder = hub.cached(f"owner/bad{number}", None, remote.WANTED, served.url)
            assert [path.name for path in folder.iterdir()] == ["checkpoint_final.pth"]
            with pytest.raises(UserError, match=r"pickled|cannot be read"):
                read_source(folder)
        assert not [path for path in tmp_path.rglob("*") if path.name in {"evil.pkl", "run.py"}]
        served.hub["owner/climber"] = {"../../../../escaped.json": b"{}", "encoder.json": b"{}"}
        with pytest.raises(UserError):
            hub.cached("owner/climber", None, remote.WANTED, served.url)
    assert not (tmp_path / "trap").exists()
    assert not list(tmp_path.rglob("escaped.json"))
