"""`verify` reads everything once and names damaged files."""

import json
import shutil

import numpy as np
import pytest

from viewalign.data.store import store_from_arrays
from viewalign.errors import UserError
from viewalign.weights.export import export_run
from viewalign.weights.verification import verify


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_store(tmp_path):
    store_from_arrays(tmp_path / "s", {"a": np.random.default_rng(0).normal(size=(9, 9, 9))})
    assert (verify(tmp_path / "s").kind, verify(tmp_path / "s").checked, verify(tmp_path / "s").problems) == (
        *("store", 1),
        [],
    )
    array = next((tmp_path / "s").rglob("*.b2nd"))
    flip(array)
    ((path, reason),) = verify(tmp_path / "s").problems
    assert (path, "checksum" in reason) == (array, True)


def test_a_run(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert (verify(run).kind, verify(run).checked, verify(run).problems) == ("run", 1, [])
    flip(run / "checkpoints" / "step_00000002" / "state.pt")
    with (run / "log.jsonl").open("a") as file:
        file.write("{half\n")
    assert [path.name for path, _ in verify(run).problems] == ["step_00000002", "log.jsonl"]


@pytest.mark.slow
def test_an_export(tiny_run, tmp_path):
    export = export_run(tiny_run, tmp_path / "export")
    assert (verify(export).kind, verify(export).checked, verify(export).problems) == ("export", 3, [])
    flip(export / "checkpoint_final.pth")
    assert [path.name for path, _ in verify(export).problems] == ["checkpoint_final.pth"]
    (export / "checkpoint_final.pth").unlink()
    assert verify(export).problems == [(export / "checkpoint_final.pth", "it is missing")]
    facts = json.loads((export / "encoder.json").read_text())
    (export / "encoder.json").write_text(json.dumps({**facts, "sha256_of": 5}))
    assert (verify(export).checked, verify(export).problems) == (1, [])
    flip(export / "encoder.safetensors")
    assert "its checksum differs from the one in encoder.json" in verify(export).problems[0][1]


def test_another_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"store\.json.*config\.yaml"):
        verify(tmp_path)
