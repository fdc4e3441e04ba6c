from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import Served, local_server

from viewalign.data.fetch.hub import Selection
from viewalign.errors import UserError
from viewalign.weights.remote import ZenodoRecord, fetch_weights, find_weights

WEIGHT = random.Random(0).randbytes(5000)


@pytest.fixture
def served() -> Iterator[Served]:
    with local_server() as served:
        yield served


def test_weights_of_zenodo(served: Served, tmp_path: Path) -> None:
    served.add_record(42, {"a.pth": WEIGHT, "b.json": b"{}"}, title="MAE", license={"id": "cc-by-4.0"})
    found = find_weights("zenodo:42", zenodo=served.url)
    assert isinstance(found, ZenodoRecord)
    assert (found.title, found.licence, found.bytes) == ("MAE", "cc-by-4.0", 5002)
    served.cut_after = [2000]
    told: list[tuple[int, int]] = []
    assert fetch_weights(found, tmp_path, lambda *numbers: told.append(numbers)) == 2
    assert (tmp_path / "a.pth").read_bytes() == WEIGHT
    assert told[-1] == (5002, 5002)


def test_a_record_with_wrong_content_or_a_way_out_is_rejected(served: Served, tmp_path: Path) -> None:
    served.add_record(42, {"a.pth": WEIGHT}, title="MAE")
    served.files["/zenodo/a.pth"] = bytes(5000)
    with pytest.raises(UserError, match="md5:"):
        fetch_weights(find_weights("zenodo:42", zenodo=served.url), tmp_path)
    served.add_record(43, {"../evil.pth": WEIGHT})
    with pytest.raises(UserError, match="outside"):
        find_weights("zenodo:43", zenodo=served.url)
    served.files["/api/records/44"] = json.dumps(
        {"files": [{"key": "a", "size": 1, "checksum": "crc:1", "links": {"self": "x"}}]}
    ).encode()
    with pytest.raises(UserError, match="checksum"):
        find_weights("zenodo:44", zenodo=served.url)
    served.files["/api/records/45"] = b"<html>"
    with pytest.raises(UserError, match="is not a valid record"):
        find_weights("zenodo:45", zenodo=served.url)
    with pytest.raises(UserError, match="record 46"):
        find_weights("zenodo:46", zenodo=served.url)


def test_weights_of_the_hub_come_without_code_and_pickles(served: Served, tmp_path: Path) -> None:
    files = {"checkpoint_final.pth": WEIGHT, "adaptation_plan.json": b"{}", "model.py": b"evil", "data.pkl": b"evil"}
    served.hub["owner/mae"] = files
    found = find_weights("hf:owner/mae", hub_endpoint=served.url)
    assert fetch_weights(found, tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {
        "checkpoint_final.pth",
        "adaptation_plan.json",
    }


@pytest.mark.parametrize(
    "asked",
    [
        "hf:owner/mae@v1.0",
        "https://huggingface.co/owner/mae/tree/v1.0",
        "https://huggingface.co/owner/mae/blob/v1.0/b.pth",
        "https://huggingface.co/owner/mae/resolve/v1.0/b.pth?download=true",
    ],
)
def test_a_revision_and_a_file_of_the_hub(served: Served, asked: str) -> None:
    served.hub["owner/mae"] = {"a.pth": WEIGHT, "b.pth": WEIGHT}
    served.revisions = {"v1.0": "d" * 40, "v9": None}
    found = find_weights(asked, hub_endpoint=served.url)
    assert isinstance(found, Selection)
    assert found.commit == "d" * 40
    assert [file.path for file in found.files] == (["b.pth"] if "b.pth" in asked else ["a.pth", "b.pth"])
    with pytest.raises(UserError, match="branch, tag or commit"):
        find_weights(asked.replace("v1.0", "v9"), hub_endpoint=served.url)


def test_some_files_of_a_record(served: Served) -> None:
    served.add_record(42, {"a.pth": WEIGHT, "b [1].pth": b"", "c.zip": b""}, title="MAE", license=None)
    for asked, patterns, names in (
        ("zenodo:42", (), ["a.pth", "b [1].pth", "c.zip"]),
        ("zenodo:42", ("*.pth",), ["a.pth", "b [1].pth"]),
        ("zenodo:42/b [1].pth", (), ["b [1].pth"]),
    ):
        found = find_weights(asked, patterns, zenodo=served.url)
        assert isinstance(found, ZenodoRecord)
        assert [file.name for file in found.files] == names
        assert found.licence == "?"
    with pytest.raises(UserError, match=r"nope\.pth; there are a\.pth"):
        find_weights("zenodo:42/nope.pth", zenodo=served.url)


@pytest.mark.parametrize("asked", ["nothing", "hf:no-owner", "hf:../../etc", "zenodo:abc", "ftp:x/y"])
def test_other_names_are_rejected(asked: str) -> None:
    with pytest.raises(UserError, match="There are no weights"):
        find_weights(asked)
