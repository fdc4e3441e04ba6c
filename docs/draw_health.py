"""Take a screenshot of a report's health panel: `python docs/draw_health.py OUT.png REPORT.html` (needs chromium)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


def main(out: Path, page: Path) -> None:
    """Write the panel as a PNG."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        window = browser.new_page(viewport={"width": 900, "height": 900}, color_scheme="light")
        window.goto(page.absolute().as_uri())
        window.locator("section[aria-labelledby=health]").screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
