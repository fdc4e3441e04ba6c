from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viewalign.data.indexing import index_sources
from viewalign.data.readers.itk import sitk
from viewalign.data.summary import summarise, write_summary
from viewalign.reports.catalogue import caption, render, write_index_page

EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Collects the tags of a page and what they load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links.extend(value or "" for key, value in attributes if key in ("src", "href"))


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for name in ("plain.nii.gz", f"{EVIL.replace('/', '')}.nii.gz", "new\nline.nii.gz", "{{7*7}}.nii.gz"):
        image = sitk.GetImageFromArray(rng.normal(size=(5, 20, 22)).astype(np.float32))
        (tmp_path / "scans").mkdir(exist_ok=True)
        sitk.WriteImage(image, str(tmp_path / "scans" / name))
    (tmp_path / "scans" / f"bad {EVIL.replace('/', '')}.nii").write_text("no image")
    return summarise(index_sources([str(tmp_path / "scans")]))


def test_the_page_agrees_with_the_figures(summary: dict[str, Any]) -> None:
    page = render(summary, "cat.json")
    text = re.sub(r"<[^>]+>", " ", page)
    assert "plain.nii.gz" in text
    assert "few slices: 5 along an axis" in text
    assert "its header cannot be read" in text
    assert re.search(r"Images\s+4\s", text)
    assert "{{7*7}}" in text


def test_names_are_escaped_and_nothing_is_loaded(summary: dict[str, Any]) -> None:
    summary["datasets"][0]["name"] = summary["collection"] = EVIL
    summary["passed_over"]["notes"] = [EVIL]
    summary["modalities"] = {EVIL: 4}
    page = render(summary, EVIL)
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.tags
    assert tags.links == ["data:,"]
    assert page.count("&lt;script&gt;alert(1)") >= 6


def test_page_and_figures_lie_beside_the_catalogue(summary: dict[str, Any], tmp_path: Path) -> None:
    assert write_index_page(summary, tmp_path / "cat.json", {}) == tmp_path / "cat.html"
    page = (tmp_path / "cat.html").read_text()
    assert (
        page.count('src="data:image/png;base64,') == 12
    )  # four images: few slices, a small field of view, an unknown modality
    assert "exclude=cat.audit.tsv" in page
    path = write_summary(summary, tmp_path / "cat.json")
    assert path == tmp_path / "cat.index.json"
    assert json.loads(path.read_text()) == summary


def test_many_images_make_no_endless_page(summary: dict[str, Any]) -> None:
    summary["entries"] *= 2000
    summary["images"] = len(summary["entries"])
    page = render(summary, "cat.json")
    assert len(page) < 1_000_000
    assert "7000 more are in the JSON file" in page


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("/data/sub-01/T1w.nii.gz", "T1w.nii.gz"),
        ("viewalign__ds__sub-01__ses-02__T1w", "sub-01 · ses-02 · T1w"),
        ("viewalign__scans__brain_7__ses-DEFAULT__brain_7", "brain_7"),
    ],
)
def test_a_caption_is_short(file: str, shown: str) -> None:
    assert caption(file) == shown
