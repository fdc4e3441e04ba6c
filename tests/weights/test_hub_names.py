"""Weights by an id of the Hugging Face Hub, and folders of its cache; without network access."""

import shutil

import httpx
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from viewalign.errors import UserError
from viewalign.weights import remote
from viewalign.weights.sources import read_weights


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    calls = []

    def download(repository, revision=None, allow_patterns=None, **_):
        calls.append((repository, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


@pytest.mark.parametrize(
    ("asked", "repository", "revision"),
    [
        ("hf:AnonRes/ResEncL-OpenMind-MAE", "AnonRes/ResEncL-OpenMind-MAE", None),
        ("hf:some.one/a_b-c@v1.0", "some.one/a_b-c", "v1.0"),
        ("https://huggingface.co/AnonRes/ResEncL-OpenMind-MAE", "AnonRes/ResEncL-OpenMind-MAE", None),
        ("https://huggingface.co/AnonRes/ResEncL-OpenMind-MAE/", "AnonRes/ResEncL-OpenMind-MAE", None),
    ],
)
def test_ids(asked, repository, revision, fetched, tmp_path):
    assert remote.locate(asked) == tmp_path
    assert fetched[0][:2] == (repository, revision)
    assert not any("bin" in pattern or "pkl" in pattern for pattern in fetched[0][2])


def test_a_path_is_never_an_id(tmp_path, fetched, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(remote.locate("owner/name")) == "owner/name"
    assert str(remote.locate("owner/missing")) == "owner/missing"
    with pytest.raises(UserError, match="hf:other/name"):
        remote.locate("other/name")
    assert not fetched


def test_a_folder_of_the_cache(tmp_path, nnssl_file):
    path, _ = nnssl_file("resenc-xs")
    cache = tmp_path / "models--owner--name"
    for revision in ("aaa", "bbb"):
        (cache / "snapshots" / revision).mkdir(parents=True)
    shutil.copy(path, cache / "snapshots" / "aaa" / "checkpoint_final.pth")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("aaa")
    assert read_weights(remote.locate(cache)).family == "resenc"
    (cache / "refs" / "main").unlink()
    assert remote.locate(cache).name in {"aaa", "bbb"}


def refusing(problem):
    def download(*_, **__):
        raise problem

    return download


def test_what_the_hub_refuses(monkeypatch):
    response = httpx.Response(401, request=httpx.Request("GET", "http://127.0.0.1"))
    for problem, sentence in [
        (LocalEntryNotFoundError("offline"), "not in the cache"),
        (RepositoryNotFoundError("none", response=response), "a/b.*private"),
        (OSError("disk full"), "disk full"),
    ]:
        monkeypatch.setattr("huggingface_hub.snapshot_download", refusing(problem))
        with pytest.raises(UserError, match=sentence):
            remote.locate("hf:a/b")
