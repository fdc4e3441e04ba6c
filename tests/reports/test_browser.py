"""The page in a real browser: it loads nothing, writes nothing to the console, and fits its window."""

import shutil
import time

import numpy as np
import pytest

import viewalign
from viewalign.data.readers.itk import sitk
from viewalign.reports.run import write_report

pytestmark = pytest.mark.slow

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page_path(make_run, report_pictures, report_rows):
    probe = {"task": "A task", "metric": "Dice", "pretrained": 0.7, "untrained": 0.5, "cases_train": 4, "cases_test": 6}
    long = "a-very-long-word-without-any-place-to-break-it" * 8
    event = {"kind": "event", "event": "unreadable", "step": 7, "volume": 3, "reason": long}
    root = make_run(long[:120], [*report_rows(), event], report_pictures(turned=True, padded=True), probe__json=probe)
    return write_report(root)


def wait_until(page, expression, seconds=200):
    """Wait until an expression is true; the pages' content policy forbids the evaluation of Playwright's own waits."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(100)


def wait_for_charts(page):
    """Wait until every chart is drawn."""
    wait_until(page, "[...document.querySelectorAll('.plot')].every(one => one.querySelector('.main-svg'))")


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_page_in_a_browser(browser, page_path, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said, failed, asked = [], [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda problem: said.append(str(problem)))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_path.as_uri())
    wait_for_charts(page)
    assert said == []
    assert failed == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    sizes = page.eval_on_selector_all("img", "all => all.map(one => [one.naturalWidth, one.clientWidth])")
    assert len(sizes) == 30
    assert all(natural > 0 and shown > 40 for natural, shown in sizes)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.eval_on_selector_all("details", "all => all.map(one => one.open)") == [False]
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_charts_show_values_and_follow_the_colour_scheme(browser, page_path):
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
    page.set_default_timeout(200_000)
    page.goto(page_path.as_uri())
    wait_for_charts(page)
    first = page.locator("figure .plot").first
    first.scroll_into_view_if_needed()
    first.locator(".nsewdrag").first.hover()
    wait_until(page, "document.querySelector('figure .hoverlayer').textContent.includes('held out')")
    line = "getComputedStyle(document.querySelector('figure .js-line')).stroke"
    light = page.evaluate(line)
    page.emulate_media(color_scheme="dark")
    wait_until(page, f"{line} !== '{light}'")
    page.close()


def test_padding_and_marks_are_drawn(browser, page_path):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(page_path.as_uri())
    fills = page.eval_on_selector_all("path.invalid", "all => [...new Set(all.map(one => getComputedStyle(one).fill))]")
    assert fills
    assert all("#hatch-" in fill for fill in fills), "hatched, not empty"
    hidden = page.eval_on_selector_all("path.masked", "all => all.map(one => getComputedStyle(one).fill)")
    assert hidden
    assert "none" not in hidden
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_tables_of_a_catalogue_break_no_words(browser, tmp_path, width):
    voxels = np.random.default_rng(0).normal(5, 1, (6, 20, 22)).astype(np.float32)
    for name in ("sub-longnamedperson/ses-baseline/sub-longnamedperson_T1w.nii.gz", "sub-b/ses-1/sub-b_FLAIR.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / name))
    viewalign.index(tmp_path, tmp_path / "cat.json")
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((tmp_path / "cat.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.eval_on_selector_all(
        ".scroll td, .scroll th, .list td",
        "all => all.map(one => [one.innerText, one.scrollWidth, one.clientWidth, one.clientHeight])",
    )
    cells = [(text, height) for text, inner, outer, height in sizes if text and inner <= outer + 1]
    assert len(cells) == len([text for text, *_ in sizes if text])
    assert all(height < 60 for text, height in cells if " " not in text and "/" not in text)
    pictures = page.eval_on_selector_all("img", "all => all.map(one => [one.naturalWidth, one.clientWidth])")
    assert len(pictures) == 6  # two images, each of which is a copy, small and of few slices
    assert all(natural > 0 and shown > 40 for natural, shown in pictures)
    page.close()
