"""An export on the Hub and back: a local server simulates the Hub."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from local_server import local_server
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.data.fetch import hub
from viewalign.errors import UserError

pytest.importorskip("huggingface_hub")

pytestmark = pytest.mark.slow
ABOUT = ["hub=owner/model", "licence=cc-by-4.0", "cite=Our cohort, 2026"]
FILES = [
    "README.md",
    "adaptation_plan.json",
    "checkpoint_final.pth",
    "config.json",
    "encoder.json",
    "encoder.safetensors",
]


@pytest.fixture(scope="module")
def published(tiny_run, tmp_path_factory):
    """A run that was published with a licence; yields the server, the folder of the export, and a home for the Hub."""
    home = tmp_path_factory.mktemp("home")
    with local_server() as served, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # a protocol of the Hub's own
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / "token"))
        patch.setenv("HF_TOKEN", "hf_made_up")
        out = home / "export"
        told = CliRunner().invoke(
            app,
            ["export", str(tiny_run), "-o", str(out), *ABOUT],
        )
        assert told.exit_code == 0, told.output
        assert "hf:owner/model" in told.output
        yield served, out, home


def test_every_file_arrives_as_it_is_and_for_the_owner_alone(published):
    served, out, _ = published
    assert sorted(served.hub["owner/model"]) == FILES
    for name, content in served.hub["owner/model"].items():
        assert content == (out / name).read_bytes(), name
    assert served.made[0]["organization"] == "owner"
    assert seen_by(served.made[0]) == "private"


def seen_by(made):
    """Tell for whom a repository was made, in the words of old or new versions of huggingface_hub."""
    return made.get("visibility", "private" if made.get("private") else "public")


def test_what_lies_beside_an_export_stays_at_home(published, tmp_path):
    served, *_ = published
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "patients.csv").write_text("jane")
    hub.publish(tmp_path, "owner/other", ["README.md"], public=True, endpoint=served.url)
    assert list(served.hub["owner/other"]) == ["README.md"]
    assert seen_by(served.made[-1]) == "public"


@pytest.mark.parametrize("tiny_run", ["resenc", pytest.param("primus", marks=pytest.mark.long)], indirect=True)
def test_it_comes_back_by_its_name_and_computes_the_same(published, tmp_path):
    """In a separate process, with the local Hub and an empty cache; then again without the server."""
    served, out, _ = published
    code = (
        "import sys, torch, viewalign\n"
        "from viewalign.weights.reading import read_source\n"
        "source = read_source('hf:owner/model')\n"
        "torch.save({name: value for name, value in source.state.items()}, sys.argv[1])\n"
        "viewalign.load_encoder('hf:owner/model')\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_made_up"}
    for offline in ("0", "1"):
        command = [sys.executable, "-c", code, str(tmp_path / f"state{offline}.pth")]
        environment["HF_HUB_OFFLINE"] = offline
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    there = torch.load(tmp_path / "state0.pth", weights_only=True)
    again = torch.load(tmp_path / "state1.pth", weights_only=True)
    here = viewalign.load_encoder(out).backbone.state_dict()
    assert there.keys() == again.keys()
    matched = [name for name in there if f"net.{name}" in here or name in here]
    assert len(matched) > 20
    for name in matched:
        assert torch.equal(there[name], here.get(f"net.{name}", here.get(name))), name


def test_the_card_has_what_the_hub_and_a_reader_need(published):
    _, out, _ = published
    card = (out / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0"
    settings = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert settings["method"] == "cva"
    assert "data" not in settings
    assert "out" not in settings
    assert "| figure | value | verdict |" in body
    assert "Effective rank" in body
    assert "- Our cohort, 2026\n" in body
    assert "Its licence is cc-by-4.0." in body


def test_what_the_hub_refuses_is_a_sentence(published, tmp_path):
    served, _, _ = published
    (tmp_path / "README.md").write_text("card")
    served.closed.add("someone")
    with pytest.raises(UserError, match=r"someone/model.*hf auth login"):
        hub.publish(tmp_path, "someone/model", ["README.md"], public=False, endpoint=served.url)
    with pytest.raises(UserError, match="OWNER/NAME"):
        hub.publish(tmp_path, "no good name/x/y", ["README.md"], public=False, endpoint=served.url)
    with pytest.raises(UserError, match="owner/model"):
        hub.publish(tmp_path, "owner/model", ["README.md"], public=False, endpoint="http://127.0.0.1:9")


def test_a_licence_is_an_abbreviation(tiny_run, tmp_path):
    with pytest.raises(UserError, match=r"cc-by-4\.0"):
        viewalign.export_run(tiny_run, tmp_path / "export", licence="free for all\nevil: true")
    assert not list(tmp_path.iterdir())
