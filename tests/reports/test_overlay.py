"""Several runs on one page."""

import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.reports import overlay
from viewalign.reports.charts import SERIES
from viewalign.reports.run_data import read_run


def runs_of(make_run, report_rows):
    first = make_run("a/run")
    second = make_run("b/run", rows=report_rows(100, validation=False), steps=100)
    return [first, second]


def test_every_quantity_has_the_lines_of_all_runs(make_run, report_rows):
    folders = runs_of(make_run, report_rows)
    runs = dict(zip(overlay._names(folders), map(read_run, folders), strict=True))
    assert list(runs) == ["a/run", "b/run"]
    charts = {chart.title: chart for chart in overlay.overlay_charts(runs)}
    assert next(iter(charts)) == "Total loss"
    lines = [trace for trace in charts["Total loss"].figure["data"] if trace["showlegend"]]
    assert [trace["name"] for trace in lines] == ["a/run", "a/run, held out", "b/run"]
    assert lines[0]["line"]["color"] == lines[1]["line"]["color"] != lines[2]["line"]["color"]
    assert not any(chart.figure["layout"]["showlegend"] for chart in charts.values()), "the table has the colours"
    assert lines[2]["y"] == pytest.approx(list(runs["b/run"].series("train", "loss").values))
    assert [key for key, _ in overlay.settings_that_differ(runs)] == ["steps"]


def test_the_command_writes_one_page_for_several_runs(make_run, report_rows, tmp_path):
    folders = runs_of(make_run, report_rows)
    page = tmp_path / "both.html"
    result = CliRunner().invoke(app, ["report", *map(str, folders), "-o", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert "2 pretraining runs" in text
    assert "step 0 of" not in text
    assert all(f'style="background:var({color})"' in text for color in SERIES[:2])
    assert str(tmp_path) not in text, "paths of the machine are not shown"


def test_the_same_run_twice_is_an_error(make_run):
    run = make_run()
    with pytest.raises(UserError, match="named twice"):
        overlay.write_overlay([run, run])
