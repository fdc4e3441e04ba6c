from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import Served, local_server
from typer.testing import CliRunner, Result

from viewalign.cli.main import app
from viewalign.data.fetch import datasets


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("Task/dataset.json"), io.BytesIO(b""))
    with local_server() as served:
        served.files["/t.tar"] = buffer.getvalue()
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        entry = datasets.Archive(
            "Some heads", "CC BY-SA 4.0", "Who et al.", f"{served.url}/t.tar", f"sha256:{digest}", 9, "Task"
        )
        monkeypatch.setitem(datasets.DATASETS, "heads", entry)
        yield served


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fetch", *map(str, arguments)])


def test_the_licence_is_shown_and_the_next_step_named(served: Served, tmp_path: Path) -> None:
    result = run("heads", "-o", tmp_path / "heads", "--yes")
    assert result.exit_code == 0, result.output
    for words in ("Some heads", "CC BY-SA 4.0", "Who et al.", "fetched and unpacked", "viewalign index"):
        assert words in result.output
    assert (tmp_path / "heads" / "dataset.json").is_file()
    assert "there already" in run("heads", "-o", tmp_path / "heads", "--yes").output


def test_nothing_is_fetched_without_consent(served: Served, tmp_path: Path) -> None:
    result = run("heads", "-o", tmp_path / "heads")
    assert "add --yes" in str(result.exception)
    assert "CC BY-SA 4.0" in result.output
    assert served.asked == []


def test_what_is_known_is_listed() -> None:
    output = run().output
    for name in ("hippocampus", "openmind", "fomo60k", "fomo300k", "weights openmind-mae-resenc-l"):
        assert name in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nothing",), "nothing"),
        (("weights",), "NAME"),
        (("weights", "nothing"), "weights nothing"),
        (("openmind",), "pattern="),
    ],
)
def test_mistakes_are_explained(arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in str(run(*arguments).exception)
