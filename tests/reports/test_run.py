"""The page of whole, partial and hostile runs."""

import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.reports import run_charts
from viewalign.reports.charts import scripts
from viewalign.reports.run import LivePage, write_report
from viewalign.reports.run_charts import loss_charts
from viewalign.reports.run_data import read_run

PROBE = {
    "task": "Tissue of a voxel",
    "metric": "mean Dice",
    "pretrained": 0.7,
    "untrained": 0.5,
    "baselines": {"intensity": 0.4},
    "cases_train": 4,
    "cases_test": 6,
    "interval": {"pretrained": [0.65, 0.75], "untrained": [0.45, 0.55]},
    "gain": {"value": 0.2, "interval": [0.1, 0.3]},
    "note": "",
}


class Outline(HTMLParser):
    """Collects tags, addresses and headings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.images, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action", "data") if values.get(name)]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            self.images.append(values)


def page(root, **options):
    return write_report(root, **options).read_text(encoding="utf-8")


@pytest.fixture
def whole(make_run, report_pictures):
    return make_run(arrays=report_pictures(padded=True), probe__json=PROBE, data_note__txt="A synthetic cohort.")


def test_three_volumes_have_their_pictures(make_run, report_pictures):
    arrays = report_pictures()
    more = {f"volume{k}.{name}": array for k in (2, 3) for name, array in report_pictures(seed=k).items()}
    text = page(make_run(arrays=arrays | more))
    assert "3 volumes of the last batch" in text
    assert text.count("Two views of one volume") == 3
    assert text.count("<summary>Volume ") == 2
    assert len(Outline(text).images) == 3 * len(Outline(page(make_run("one", arrays=arrays))).images)


def test_device_date_and_resumptions_are_shown(make_run, report_rows):
    rows = report_rows()
    rows[0] |= {"device": "NVIDIA A100", "started": "2026-11-28 10:00"}
    rows.append({"kind": "event", "step": 100, "event": "resumed", "device": "CPU", "time": "2026-11-28 12:00"})
    root = make_run(rows=rows)
    text = page(root)
    assert "2026-11-28 10:00, resumed 1 ×, last 2026-11-28 12:00" in text
    assert "NVIDIA A100" in text
    assert "Resumed on CPU, 2026-11-28 12:00." in text
    chart = loss_charts(read_run(root))[0]
    assert [shape["x0"] for shape in chart.figure["layout"]["shapes"]] == [100]


def test_a_live_page_is_written_at_most_every_half_minute(make_run, monkeypatch):
    root, clock = make_run(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    live = LivePage()
    live(root, False)
    (root / "report.html").unlink()
    clock[0] = 129.0
    live(root, False)
    assert not (root / "report.html").exists()
    clock[0] = 131.0
    live(root, False)
    (root / "report.html").unlink()
    live(root, True)
    assert (root / "report.html").is_file(), "the last page is always written"


def test_a_live_page_that_cannot_be_written_ends_no_run(make_run, caplog):
    root = make_run()
    (root / "report.html").mkdir()
    LivePage()(root, True)
    assert "could not be written" in caplog.text


def test_a_whole_run(whole):
    text = page(whole)
    outline = Outline(text)
    assert [name for name in ("health", "curves", "pictures", "probe", "settings") if name in outline.ids] == [
        "health", "curves", "pictures", "probe", "settings",
    ]  # fmt: skip
    assert "Healthy: every metric is in its good range." in text
    assert "Finished: 200 steps" in text
    assert "A synthetic cohort." in text
    assert "Good is at least 0.5; below 0.2 is bad." in text
    assert "which excludes 0" in text
    assert len(outline.images) == 9 + 9 + 12
    assert all(image["alt"] for image in outline.images)
    assert "url(#hatch-16)" in text, "padding is hatched"
    assert 'id="hatch-16"' in text
    assert len(set(outline.ids)) == len(outline.ids)


def test_nothing_is_fetched(whole):
    text = page(whole)
    outline = Outline(text)
    assert not re.search(r"https?://", text)
    assert all(address.startswith("data:") for address in outline.addresses)
    assert "@import" not in text
    assert all(target.startswith("#hatch-") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "default-src 'none'" in text


def test_no_path_of_the_machine(make_run, tmp_path):
    events = [{"kind": "event", "event": "unreadable", "step": 1, "volume": 3, "reason": f"torn: {tmp_path}/x/a.b2nd"}]
    root = make_run(rows=events, data_note__txt=f"from {tmp_path}/somewhere/b")
    text = page(root)
    assert str(tmp_path) not in text
    assert "…/a.b2nd" in text
    assert "data: the-store" in text


def test_what_comes_from_files_is_escaped(make_run, report_pictures):
    evil = "<script>alert(1)</script>"
    rows = [
        {"kind": "train", "step": 1, "loss": 1.0, evil: 1.0, '"onload="x': 2.0},
        {"kind": "event", "step": 1, "event": "unreadable", "volume": evil, "reason": evil},
        {"kind": "event", "step": 1, "event": evil, "more": evil},
    ]
    probe = {**PROBE, "task": evil, "metric": evil, "baselines": {evil: 0.1}, "note": evil}
    root = make_run("<script>alert(1)<", rows, report_pictures(), probe__json=probe, data_note__txt=evil)
    text = page(root)
    assert Outline(text).tags.count("script") == 2 + len(re.findall(r'class="chart(?: curves)?"', text))
    assert evil not in text
    assert not re.search(r"<[^>]*\sonload=", text)
    assert text.count("&lt;script&gt;") >= 6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"turned": True},
        {"shifts": ((-4, -3, 0), (4, 2, 12))},
        {"features": False},
        {"masked": False},
        {"features": False, "masked": False},
    ],
)
def test_kinds_of_pictures(make_run, report_pictures, options):
    outline = Outline(page(make_run(arrays=report_pictures(**options))))
    expected = 9 + 9 * options.get("masked", True) + 12 * options.get("features", True)
    assert len(outline.images) == expected


def test_without_any_mask_the_caption_states_it(make_run, report_pictures):
    arrays = report_pictures()
    text = page(make_run(arrays={**arrays, "mask": np.zeros_like(arrays["mask"])}))
    assert "all of view 1" in text
    assert 'mark masked"' not in text


def test_anisotropic_voxels_keep_their_ratio(make_run, report_pictures):
    text = page(make_run(arrays={**report_pictures(), "spacing": np.array([4.0, 1.0, 1.0])}))
    assert "aspect-ratio:1.0" in text
    assert "aspect-ratio:0.25" in text


def test_an_unfinished_run(make_run):
    rows = [{"kind": "train", "step": 5, "loss": 1.0}]
    root = make_run(rows=rows)
    (root / "checkpoints" / "step_00000007").mkdir(parents=True)
    text = page(root)
    assert "Not finished: step 7 of 200" in text
    assert "There are no pictures yet" in text
    assert "Frozen-feature probe" not in text


def test_a_run_that_only_began(make_run):
    text = page(make_run(rows=[]))
    assert "No health metrics have been logged yet" in text
    assert "No row of training has been logged yet." in text


def test_a_torn_last_row_and_torn_pictures(make_run):
    root = make_run()
    with (root / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 210, "lo')
    (root / "pictures.npz").write_bytes(b"PK\x03\x04 torn")
    (root / "probe.json").write_text('{"pretrained": 1')
    text = page(root)
    assert "pictures.npz cannot be read" in text
    assert "probe.json cannot be read" in text


def test_rows_of_another_method_have_curves_too(make_run):
    rows = [{"kind": "train", "step": s, "loss": 2.0 / s, "gram_distance": 1.0 / s} for s in (1, 2, 3)]
    assert "<strong>Gram distance</strong>" in page(make_run(rows=rows))


def test_a_recipe_this_version_does_not_know(make_run):
    root = make_run()
    with (root / "config.yaml").open("a") as file:
        file.write("a_future_setting: 3\n")
    assert "a_future_setting: 3" in page(root)


@pytest.mark.parametrize(
    ("method", "views"),
    [("cva", ", two views each"), ("mae", ", one view each"), ("simclr", ", two views each"), ("voco", "")],
)
def test_the_batch_counts_views_of_its_method(make_run, method, views):
    root = make_run()
    text = (root / "config.yaml").read_text()
    (root / "config.yaml").write_text(text.replace("method: cva", f"method: {method}").replace("batch: 4", "batch: 3"))
    assert f"<dt>Batch</dt><dd>3 volumes{views}</dd>" in page(root)


def test_long_runs_stay_small(make_run):
    rows = [
        {"kind": "train", "step": s, "loss": 1.0 / s, "cosine": 0.5, "lr": 1e-3, "data_wait": 0.0}
        for s in range(1, 20_000)
    ]
    assert len(page(make_run(rows=rows, steps=20_000))) - len(scripts()["plotly"]) < 250_000


@pytest.mark.parametrize(
    ("config", "name", "words", "unlike"),
    [
        ({}, "reconstruction", "Huber loss on masked voxels", ""),
        ({"masking": {"ratio": 0}}, "reconstruction", "Huber loss on all voxels", "masked"),
        ({"method": "spark", "objectives": {"reconstruction": "mse"}}, "reconstruction", "Squared error on masked", ""),
        ({"method": "genesis"}, "reconstruction", "Squared error", "masked"),
        ({"method": "swinunetr"}, "reconstruction", "Absolute error", "masked"),
        ({}, "consistency", "2·cosine", ""),
        ({"objectives": {"consistency": "nt_xent"}}, "consistency", "NT-Xent", "cosine"),
        ({"objectives": {"consistency": "gram"}}, "consistency", "Gram", "cosine"),
        ({"method": "gvsl"}, "registration", "", "cosine"),
    ],
)
def test_a_term_is_described_as_the_recipe_computes_it(config, name, words, unlike):
    caption = run_charts._caption(config, name)
    assert words in caption
    assert not unlike or unlike not in caption


def test_no_runs_are_an_error():
    with pytest.raises(UserError, match="at least one"):
        viewalign.report([])


def test_mistakes_are_reported(make_run, tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)
    root = make_run()
    with pytest.raises(UserError, match="folder"):
        write_report(root, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"page\.html"):
        write_report(root, tmp_path / "file" / "page.html")
    (root / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=root.name):
        write_report(root)


def test_the_page_is_written_whole(make_run, monkeypatch):
    root = make_run()
    before = page(root)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left"):
        write_report(root)
    assert (root / "report.html").read_text(encoding="utf-8") == before
    assert not list(root.glob(".writing-*"))


def test_the_command(make_run, tmp_path):
    root, out = make_run(), tmp_path / "pages" / "one.html"
    result = CliRunner().invoke(app, ["report", str(root), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(out)
    assert out.is_file()
    assert "health" in CliRunner().invoke(app, ["report", "--help"]).output
