"""The pictures of this folder, from the benchmark's page: python docs/study/exact/pictures.py runs/exact/report.html

Needs the package playwright (`make install` has it) and a Chromium browser.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
# Figure of the page to picture here.
PICTURES = {
    "tree-20-1-kept": "entropy",
    "tree-20-1-effective_modes": "effective_modes",
    "tree-20-1-mode_coverage": "mode_coverage",
    "tree-20-1-forward_kl": "forward_kl",
    "tree-20-1-reverse_kl": "reverse_kl",
    "tree-3-3-finite": "finite",
}


def take(page_file: Path) -> None:
    """One picture a figure, as wide as a desktop window."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached", timeout=120_000)
        for figure, name in PICTURES.items():
            page.locator(f"figure:has(#{figure}) .drawing").screenshot(path=HERE / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    take(Path(sys.argv[1]))
