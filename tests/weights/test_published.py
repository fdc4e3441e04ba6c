"""One line loads an encoder of every layout, wherever it is, and gives what its own network computes."""

import re

import numpy as np
import pytest
import torch
from local_server import local_server
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.data.fetch import hub
from viewalign.errors import UserError
from viewalign.evaluation.encoders import read_pretrained
from viewalign.methods.registry import build_method
from viewalign.networks.registry import PRIMUS, RESENC, build_backbone
from viewalign.recipes.loading import load
from viewalign.weights import client_forms, published, remote
from viewalign.weights.encoder import Encoder
from viewalign.weights.files import sha256_of
from viewalign.weights.initial import load_initial
from viewalign.weights.published import ENCODERS, PublishedEncoder, list_encoders
from viewalign.weights.reading import read_located, read_source

pytestmark = pytest.mark.slow

SIZE = (16, 16, 24)
MANY = PublishedEncoder("hf:owner/model", "", "MAE", "made up", None, "z-score", "", "")


def shaken(network):
    torch.manual_seed(2)
    backbone = build_backbone(network, SIZE).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone


def nnunet_root(state):
    """What nnU-Net 2.8 saves: NumPy scalars in the log, and its plans."""
    configuration = {
        "spacing": [1.0, 0.5, 0.5],
        "patch_size": list(SIZE),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "x.ResidualEncoderUNet", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    plans = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}
    return {
        "network_weights": state,
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": {}},
        "logging": {"mean_fg_dice": [np.float64(0.5)]},
        "_best_ema": np.float64(0.5),
        "trainer_name": "nnUNetTrainer",
        "optimizer_state": {},
    }


def gardening(state):
    """The names of gardening_tools' ResidualEncoderUNet inside Lightning's checkpoint."""
    renamed = {
        re.sub(r"\.norm\.", ".norm_op.", name).replace("encoder.stem.convs.0.", "encoder.stem.conv1."): value
        for name, value in state.items()
        if name.startswith("encoder.")
    }
    weights = {f"model._orig_mod.{name}": value for name, value in renamed.items()}
    return {"epoch": 3, "pytorch-lightning_version": "2.5", "state_dict": weights, "hyper_parameters": {"lr": 1e-4}}


def nnssl_root(backbone, network, trainer):
    from viewalign.weights import adaptation_plan

    plan = adaptation_plan.adaptation_plan(network, 1, SIZE, (1.0, 1.0, 1.0), False, trainer)
    state = client_forms.network_state(backbone)
    if trainer.startswith("BaseEvaMAE"):
        state = client_forms.whole_primus(backbone, SIZE)
    if trainer == "SimMIMEvaTrainer":
        state = {f"encoder.{name}": value for name, value in state.items()}
    if trainer == "VoCoTrainer":
        state = {name: value for name, value in state.items() if name.startswith("encoder.")}
    root = adaptation_plan.checkpoint(state, plan, 1000, [])
    return {**root, "init_args": {"plan": {}, "fold": "all"}, "logging": {"train_losses": [0.5]}, "_best_ema": 0.5}


LAYOUTS = {
    "nnssl": ("resenc-xs", lambda b: nnssl_root(b, "resenc-xs", "BaseMAETrainer")),
    "nnssl-encoder-alone": ("resenc-xs", lambda b: nnssl_root(b, "resenc-xs", "VoCoTrainer")),
    "nnssl-primus": ("primus-xs", lambda b: nnssl_root(b, "primus-xs", "BaseEvaMAETrainer_BS8")),
    "nnssl-simmim": ("primus-xs", lambda b: nnssl_root(b, "primus-xs", "SimMIMEvaTrainer")),
    "latentcampus": ("primus-xs", lambda b: nnssl_root(b, "primus-xs", "AlignedMAEFTLR3EvaTrainer")),
    "nnunet": ("resenc-xs", lambda b: nnunet_root(client_forms.network_state(b))),
    "fomo26": ("resenc-xs", lambda b: gardening(client_forms.network_state(b))),
    "fomo25": ("resenc-xs", client_forms.fomo_state),
}


@pytest.fixture
def made(tmp_path):
    def write(layout, name="checkpoint_final.pth"):
        network, root = LAYOUTS[layout]
        backbone = shaken(network)
        (tmp_path / layout).mkdir(exist_ok=True)
        torch.save(root(backbone), tmp_path / layout / name)
        return tmp_path / layout / name, Encoder(backbone, SIZE, {})

    return write


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A Hub and a Zenodo on this machine, and an empty cache."""
    cached = hub.cached
    with local_server() as served:
        monkeypatch.setattr(hub, "cached", lambda *args, **more: cached(*args, **more, endpoint=served.url))
        monkeypatch.setattr(remote, "_ZENODO", served.url)
        monkeypatch.setenv("VIEWALIGN_CACHE", str(tmp_path / "cache"))
        yield served


def same_features(got, wanted):
    images = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        pairs = list(zip(got(images).maps, wanted(images).maps, strict=True))
    return all((a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1) for a, b in pairs)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_each_layout_loads_by_one_line(layout, made):
    file, wanted = made(layout)
    encoder = viewalign.load_encoder(file)
    assert same_features(encoder, wanted)
    assert encoder.facts["network"] == LAYOUTS[layout][0]
    assert encoder.size == ((64, 64, 64) if layout.startswith("fomo") else SIZE)  # not in FOMO's files
    assert same_features(viewalign.load_encoder(file.parent), wanted)


def test_what_was_assumed_or_converted_is_a_warning(made):
    file, _ = made("nnssl-primus")
    with pytest.warns(UserWarning, match="rotary channels exchanged"):
        encoder = viewalign.load_encoder(file)
    assert "rotary channels exchanged" in encoder.facts["notes"][0]
    with pytest.warns(UserWarning, match="normalised by CTNormalization, which is not known here"):
        viewalign.load_encoder(made("nnunet")[0])


def test_nnunet_s_plans_have_voxel_size_and_patch(made):
    source = read_source(made("nnunet")[0])
    assert source.size == SIZE
    assert read_pretrained(made("nnunet")[0]).preparation.spacing == (1.0, 0.5, 0.5)
    assert source.plan["key_to_encoder"] == "encoder.stages"


def test_a_network_that_is_not_of_this_package_is_rejected(made):
    file, _ = made("nnssl")
    root = torch.load(file, weights_only=True)
    name = "encoder.stages.1.blocks.0.conv1.conv.weight"
    root["network_weights"] = {
        key: value[..., :1] if key.replace("all_modules.0", "conv").endswith(name) else value
        for key, value in root["network_weights"].items()
    }
    torch.save(root, file)
    with pytest.raises(UserError, match="0 missing, 1 of another shape"):
        viewalign.load_encoder(file)


@pytest.mark.parametrize("layout", ["nnssl-primus", "fomo26"])
def test_a_public_name_is_fetched_once_verified_and_taken_from_the_cache(layout, made, served, monkeypatch):
    file, wanted = made(layout, "last.ckpt" if layout == "fomo26" else "checkpoint_final.pth")
    network = LAYOUTS[layout][0]
    entry = PublishedEncoder(
        f"hf:owner/model/{file.name}" if layout == "fomo26" else "hf:owner/model",
        *(network, "MAE", "made up", None, "z-score", "", ""),
        sha256=sha256_of(file),
        order=None if network == "resenc-xs" else "hdw",
        size=SIZE,
    )
    monkeypatch.setitem(ENCODERS, "made-up", entry)
    served.hub["owner/model"] = {file.name: file.read_bytes(), "README.md": b"card", "evil.pkl": b"x"}
    first = viewalign.load_encoder("made-up")
    assert same_features(first, wanted)
    fetched = len(served.asked)
    assert not any("evil" in path for path, _ in served.asked)
    assert read_pretrained("made-up").size == SIZE
    fitted = viewalign.transfer_encoder(build_backbone(network, SIZE), "made-up", SIZE)
    assert fitted.encoder_share == 1.0
    recipe = load(f"mae-{network.split('-')[0]}-xs", ["views.patch_size=[16,16,24]"])
    assert load_initial(build_method(recipe), "made-up", SIZE).encoder_share == 1.0
    assert len(served.asked) == fetched
    served.hub.clear()
    monkeypatch.setenv("VIEWALIGN_OFFLINE", "1")
    assert same_features(viewalign.load_encoder("made-up"), wanted)
    monkeypatch.setitem(ENCODERS, "made-up", PublishedEncoder(**{**entry.__dict__, "sha256": "0" * 64}))
    with pytest.raises(UserError, match="is not the known file of made-up"):
        viewalign.load_encoder("made-up")


def test_a_public_encoder_of_unknown_view_size_has_no_plan(made, monkeypatch):
    file, _ = made("fomo25")
    monkeypatch.setitem(ENCODERS, "made-up", PublishedEncoder(**{**MANY.__dict__, "network": "resenc-xs"}))
    assert not read_located("made-up", file).plan
    monkeypatch.setitem(ENCODERS, "made-up", PublishedEncoder(**{**MANY.__dict__, "size": SIZE}))
    assert not read_located("made-up", file).plan


def test_nothing_is_fetched_offline(served, monkeypatch):
    served.hub["owner/model"] = {"checkpoint_final.pth": b"x"}
    served.add_record(42, {"a.pth": b"x"})
    monkeypatch.setenv("VIEWALIGN_OFFLINE", "1")
    with pytest.raises(UserError, match="it is not in the cache"):
        remote.locate("hf:owner/model")
    with pytest.raises(UserError, match="downloads are off"):
        remote.locate("zenodo:42")
    assert not served.asked


def test_a_record_of_zenodo_and_one_file_of_several(made, served):
    file, wanted = made("nnssl")
    served.add_record(42, {"a.pth": file.read_bytes(), "b.pth": file.read_bytes()}, title="MAE")
    with pytest.raises(UserError, match=r"contains 2 files of weights; name one of them: a\.pth, b\.pth"):
        viewalign.load_encoder("zenodo:42")
    assert same_features(viewalign.load_encoder("zenodo:42/b.pth"), wanted)
    assert len(served.asked) == 3  # the record once, each file once
    with pytest.raises(UserError, match=r"nope\.pth; there are a\.pth, b\.pth"):
        viewalign.load_encoder("zenodo:42/nope.pth")


def test_one_file_of_a_record_comes_alone(made, served, tmp_path):
    file, wanted = made("nnssl")
    served.add_record(42, {"a.pth": b"other", "b.pth": file.read_bytes()}, title="MAE")
    assert same_features(viewalign.load_encoder("zenodo:42/b.pth"), wanted)
    assert not any("a.pth" in path for path, _ in served.asked)
    with pytest.raises(UserError, match=r"a\.pth"):
        viewalign.load_encoder("zenodo:42/a.pth")


def test_one_file_of_a_repository_of_several(made, served):
    file, wanted = made("nnssl")
    content = {f"resenc/team-{k}/fold_all/last.pth": file.read_bytes() for k in "ab"}
    served.hub["owner/teams"] = content
    assert same_features(viewalign.load_encoder("hf:owner/teams/resenc/team-b/fold_all/last.pth"), wanted)
    assert not any("team-a" in path for path, _ in served.asked)
    for name, message in (
        ("../x.pth", "not a file of weights"),
        ("x.py", "not a file of weights"),
        ("x.pth", "no x.pth"),
    ):
        with pytest.raises(UserError, match=message):
            remote.locate(f"hf:owner/teams/{name}")


def test_names_that_are_not_there_and_collections(monkeypatch):
    with pytest.raises(UserError, match="did you mean 'openmind-mae-resenc-l'"):
        viewalign.load_encoder("openmind-mae-resencl")
    with pytest.raises(UserError, match="There are no weights at my-run"):
        viewalign.load_encoder("my-run")
    told = CliRunner().invoke(app, ["encoders", "openmind-mae-resencl"])
    assert "did you mean 'openmind-mae-resenc-l'" in str(told.exception)
    monkeypatch.setitem(ENCODERS, "many", MANY)
    with pytest.raises(UserError, match="write hf:owner/model/FILE"):
        viewalign.load_encoder("many")


@pytest.mark.parametrize("name", ENCODERS)
def test_every_entry_states_what_is_needed(name):
    entry = list_encoders()[name]
    assert entry.source.startswith(("hf:", "zenodo:"))
    assert entry.network in {"", *RESENC, *PRIMUS}
    assert (entry.order is not None) == entry.network.startswith("primus")
    assert entry.sha256 == "" or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert entry.tried
    told = CliRunner().invoke(app, ["encoders", name])
    assert told.exit_code == 0
    assert entry.source in told.stdout


def test_the_list_and_the_switch(monkeypatch):
    monkeypatch.setenv("VIEWALIGN_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    told = CliRunner().invoke(app, ["--offline", "encoders"])
    assert all(name in told.stdout for name in published.ENCODERS)
    assert remote.is_offline()
