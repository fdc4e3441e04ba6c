"""Charts: valid plotly figures, escaped texts, finite numbers, values as logged."""

import base64
import gzip
import json
import re

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from viewalign.reports import run_charts
from viewalign.reports.charts import Chart, dots, figure, line, padded, scripts, series_color
from viewalign.reports.run_data import Series, read_run
from viewalign.reports.verdicts import assess


def read(chart):
    """Return the figure that a chart's element holds, as a browser reads it."""
    data = re.search(r'<script type="application/json">(.*?)</script>', chart.html(), re.DOTALL)[1]
    return json.loads(data)


def validated(chart):
    """Return plotly's own figure; it rejects unknown keys and values. Names of CSS variables become colours."""
    text = re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps(read(chart)))
    return go.Figure(json.loads(text))


def test_every_chart_of_a_run_is_a_valid_figure(make_run, report_rows):
    rows = [*report_rows(), {"kind": "probe", "step": 0, "dice": 0.4, "dice_low": 0.3, "dice_high": 0.5}]
    run = read_run(make_run(rows=rows))
    charts = [*run_charts.loss_charts(run), *filter(None, map(run_charts.band_curve, assess(run)))]
    assert len(charts) > 10
    for chart in charts:
        assert validated(chart).data


def test_bands_lie_at_the_limits_also_on_a_logarithmic_axis(make_run):
    run = read_run(make_run())
    for finding in assess(run):
        chart = run_charts.band_curve(finding)
        if chart is None:
            continue
        shapes = chart.figure["layout"]["shapes"]
        assert {shapes[0]["y1"], shapes[1]["y1"]} == {finding.measure.good, finding.measure.bad}
        assert [one["fillcolor"] for one in shapes].index("--good-band") == (
            2 if finding.measure.good >= finding.measure.bad else 0
        )


def test_texts_are_escaped_for_the_page_and_for_plotly():
    evil = "</script><b>x</b>"
    chart = Chart(evil, evil, figure([line([0, 1], [1, 2], evil), dots([0], [1], [evil])], evil, evil), evil)
    html = str(chart.html())
    assert html.count("<script") == html.count("</script>") == 1
    assert "<b>" not in html
    shown = read(chart)
    assert shown["data"][0]["name"] == shown["data"][1]["text"][0] == "&lt;/script&gt;&lt;b&gt;x&lt;/b&gt;"
    assert shown["layout"]["xaxis"]["title"]["text"].startswith("&lt;")


def test_values_that_are_not_finite_are_gaps_and_numbers_are_short():
    chart = Chart("t", "", figure([line([0, 1, 2], [1 / 3, float("nan"), float("inf")])], "x", "y"))
    assert read(chart)["data"][0]["y"] == [0.33333, None, None]


def test_the_library_travels_whole():
    packed = scripts()["plotly"]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()


def test_colours_begin_again():
    assert series_color(6) == series_color(0) != series_color(5)


def test_ranges_are_padded():
    assert padded([1.0]) == pytest.approx((0.94, 1.06))
    assert padded([0.1, 1.0])[0] == 0


def test_a_chart_describes_its_ends_and_leaves_out_what_is_not_finite():
    series = Series((1, 2, 3), (2.0, float("nan"), 1.0))
    chart = run_charts.line_chart("Total", "", "loss", {"training": series})
    assert "from 2 at step 1 to 1 at step 3" in chart.summary
    assert chart.figure["data"][0]["y"] == [2.0, 1.0]
    assert run_charts.line_chart("Total", "", "loss", {"training": Series((1,), (float("inf"),))}) is None
    assert run_charts.line_chart("Total", "", "loss", {"training": Series()}) is None


def test_thinning_keeps_what_is_far_out():
    values = [0.0] * 1000
    values[500] = 9.0
    line = run_charts.thin(Series(tuple(range(1000)), tuple(values)), 100)
    assert len(line.steps) == 100
    assert max(line.highs) == 9
    assert line.steps[0] == 4.5
    assert line.means[50] == pytest.approx(0.9)
