"""The figure of the results is drawn from tables of studies that are there."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("scipy")

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("draw_results", DOCS / "draw_results.py")
draw_results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draw_results)
ROWS = [row for group in json.loads((DOCS / "results" / "findings.json").read_text()) for row in group["rows"]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["label"])
def test_a_row_has_a_difference_within_its_interval_and_a_page(row):
    found = draw_results.difference(row)
    assert -1 < found["low"] <= found["difference"] <= found["high"] < 1
    assert row["over"] in draw_results.COLOURS
    assert (DOCS / "results" / row["page"]).is_file()


def test_a_difference_is_students_over_common_seeds(tmp_path, monkeypatch):
    rows = [
        {"evaluation": "voxels", "measure": "dice", "arm": "a", "values": {"0": 0.5, "1": 0.7, "2": None}},
        {"evaluation": "voxels", "measure": "dice", "arm": "b", "values": {"0": 0.4, "1": 0.4, "2": 0.1}},
    ]
    (tmp_path / "t.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(draw_results, "RESULTS", tmp_path)
    found = draw_results.difference({"table": "t", "evaluation": "voxels", "arm": "a", "minus": "b"})
    half = 12.7062 * 0.1  # the 0.975 quantile with one degree of freedom, times the standard error
    assert found["difference"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)
