"""Pictures of a study, taken from its report: python docs/study/pictures.py runs/study/report.html docs/study

The second argument is the folder that they are written to. Needs the package playwright (`make install` has it) and a
Chromium browser.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

# A report has those that its study asked for: of the arms, those of the first question at its first two targets.
PARTS = {
    "frontiers": "#frontiers", "claims": "#claims", "answers": "#answers .cards",
    "arms": "#answers .points >> nth=0", "arms_next_target": "#answers .points >> nth=1",
}  # fmt: skip
# What moves with the window, or can only be used in the report itself.
STILL = """document.getElementById("legend").style.position = "static";
  document.getElementById("frontier-controls").style.display = "none";"""
ONE_ROW = """const figures = [...document.querySelectorAll("#frontiers figure")];
  for (const figure of figures.slice(2)) figure.style.display = "none";"""


def take(report: Path, folder: Path) -> None:
    """One picture a part, as wide as a desktop window, and one of the first row of frontiers."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        page.evaluate(f"() => {{ {STILL} }}")
        for name, selector in PARTS.items():
            part = page.locator(selector).first
            if part.count():
                part.evaluate("node => { node.style.padding = '16px'; }")
                # Figures are drawn when they come into view.
                for figure in part.locator("figure").all():
                    figure.scroll_into_view_if_needed()
                    page.wait_for_timeout(200)
                part.screenshot(path=folder / f"{name}.png")
        page.evaluate(f"() => {{ {ONE_ROW} }}")
        page.locator("#frontiers").screenshot(path=folder / "reward.png")
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    take(Path(sys.argv[1]), Path(sys.argv[2]))
