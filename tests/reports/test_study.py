"""The page of a study: every seed is drawn, names stay text, and what is missing is a dash."""

import json
import re

import pytest

from viewalign.errors import UserError
from viewalign.reports import study


def row(arm, values, **more):
    middle = sum(values) / len(values)
    ends = {"low": middle - 0.02, "high": middle + 0.02} if len(values) > 1 else {"low": None, "high": None}
    by_seed = {str(seed): value for seed, value in enumerate(values)}
    told = {
        "evaluation": "voxels",
        "measure": "dice",
        "arm": arm,
        "mean": middle,
        **ends,
        "seeds": len(values),
        "rank": 1.0,
    }
    return {**told, "values": by_seed, **more}


def test_every_seed_and_mean_is_drawn_where_it_belongs():
    rows = [row("mae", [0.5, 0.6, 0.7]), row("cva", [0.6, 0.7, 0.8], difference_mean=0.1, p_holm=0.03)]
    figure = study.chart(rows).figure
    seeds, means = figure["data"][::2], figure["data"][1::2]
    assert [trace["x"] for trace in seeds] == [[0.5, 0.6, 0.7], [0.6, 0.7, 0.8]]
    assert [trace["x"][0] for trace in means] == pytest.approx([0.6, 0.7])
    assert [trace["y"] for trace in means] == [[0], [1]]
    assert all(trace["error_x"]["array"] == pytest.approx([0.02]) for trace in means)
    assert figure["layout"]["yaxis"]["ticktext"] == ["mae", "cva"]


def test_one_seed_has_no_interval_and_a_value_that_is_none_is_left_out():
    chart = study.chart([row("mae", [0.5]), row("cva", [float("nan")])])
    assert [trace["x"] for trace in chart.figure["data"]] == [[0.5], [0.5]], "one seed and its mean"
    assert "error_x" not in chart.figure["data"][1]
    assert study.chart([row("cva", [float("nan")])]) is None


def test_the_page_keeps_names_as_text_and_shows_dashes(tmp_path):
    told = {"study": "<script>x</script>", "reference": "mae", "rows": [row('"><img src=x onerror=y>', [0.5])]}
    (tmp_path / "table.json").write_text(json.dumps(told))
    text = study.write_page(tmp_path).read_text()
    assert "<script>x" not in text
    assert "<img" not in text
    assert "With 1 seed no conclusion" in text
    assert "–" in text


def test_a_difference_from_an_arm_that_is_not_there_is_a_dash():
    told = {"study": "s", "reference": "mae", "rows": [row("cva", [0.6], difference_mean=float("nan"))]}
    assert "nan" not in re.sub(r"<script.*?</script>", "", study.render(told), flags=re.S)


def test_intervals_over_cases_are_shown_where_there_are_some():
    told = {"study": "s", "reference": "mae", "rows": [row("mae", [0.5])]}
    assert "The same over cases" not in study.render(told)
    told["rows"].append(row("cva", [0.6], cases_mean=0.1, cases_low=0.0512, cases_high=0.15))
    text = study.render(told)
    assert "The same over cases" in text
    assert "+0.0512 to +0.1500" in text


def test_a_folder_without_a_table_is_reported(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        study.write_page(tmp_path)


def test_a_study_without_results_states_it():
    assert "No evaluation is complete yet" in study.render({"study": "s", "reference": "mae", "rows": []})


def test_the_page_says_what_can_be_found():
    found = {
        "evaluation": "voxels",
        "measure": "dice",
        "deviation": 0.01,
        "freedom": 1,
        "smallest": {"2": 0.1151, "4": 0.0211},
    }
    table = {"study": "s", "reference": "mae", "rows": [row("cva", [0.6, 0.7])], "resolution": [found]}
    text = study.render(table)
    assert "0.115 with 2 seeds, 0.021 with 4 (" in text
    assert "0.115" not in study.render({**table, "resolution": []})


def test_arms_without_results_and_of_one_pretraining_are_told():
    failed = {"evaluation": "voxels", "arm": "cva", "seed": 0, "cell": "evaluate/voxels/cva/0", "error": "<b>full</b>"}
    rows = [
        row("mae", [0.5, 0.6], runs=1, title="<i>MAE"),
        {**row("cva", [0.0]), "mean": None, "seeds": 0, "values": {}},
    ]
    table = {"study": "s", "reference": "mae", "rows": rows, "missing": [failed]}
    text = study.render(table)
    assert "voxels: 1 of 3 cells of this evaluation is missing: cva (seed 0: &lt;b&gt;full&lt;/b&gt;)." in text
    assert "<td>cva</td>" in text
    assert "2 (1 run)" in text
    assert "evaluates one pretraining" in text
    assert "<td>&lt;i&gt;MAE (mae)</td>" in text
    assert study.chart(rows).figure["layout"]["yaxis"]["ticktext"] == ["&lt;i&gt;MAE (mae)", "cva"]
    empty = study.render({**table, "rows": []})
    assert "1 of 1 cell of this evaluation is missing" in empty
