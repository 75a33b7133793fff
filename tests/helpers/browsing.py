"""A report in headless Chromium, as the browser tests visit it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def absent(reason: str) -> None:
    """Skip, unless this machine is supposed to have a browser."""
    if os.environ.get("TDPO_REQUIRE_BROWSER") == "1":
        pytest.fail(f"TDPO_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


def launched_browser() -> Iterator[Any]:
    """Chromium, closed afterwards; the test is skipped where there is none."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        absent(f"no browser found (looked for {', '.join(BROWSERS)})")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("the playwright package is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Visit:
    """A page, what it wrote to the console, which errors it threw and what it asked for."""

    def __init__(self, browser: Any, file: Path, *, drawn: bool = True, clock: bool = False, **context: Any) -> None:
        """`drawn` waits for the figures; `clock` lets a test turn the page's time forward, which flows as always."""
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        if clock:
            self.page.clock.install()
        self.page.goto(file.as_uri())
        if drawn:
            self.page.wait_for_selector("html[data-drawn]", state="attached")

    def get(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def until(visit: Visit, condition: str) -> None:
    """Wait until `condition` holds; playwright's own waiting needs eval, which the page's policy forbids."""
    for _ in range(100):
        if visit.get(condition):
            return
        visit.page.wait_for_timeout(100)
    pytest.fail(f"after 10 s still not: {condition}")


# The contrast of every text with what is behind it: (how many, the three worst).
CONTRAST = """() => {
  const parse = (text) => {
    const n = text.match(/[\\d.]+(e-?\\d+)?/g).map(Number);
    const scale = text.startsWith("color(srgb") ? 255 : 1;
    return [n[0] * scale, n[1] * scale, n[2] * scale, n[3] ?? 1];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const ground = (node) => {
    const stack = [];
    for (let at = node; at; at = at.parentElement) stack.unshift(parse(getComputedStyle(at).backgroundColor));
    return stack.reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim()).length;
    const size = node.getBoundingClientRect();
    if (!text || !size.width || node.closest("script, noscript, template, :disabled, .hoverlayer")) continue;
    const style = getComputedStyle(node);
    const ink = parse(node.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const html = node.closest(".plot") ?? node;
    const back = ground(html);
    const [a, b] = [luminance(over(ink, back)), luminance(back)];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.tagName, node.textContent.slice(0, 40)]);
  }
  return [found.length, found.sort((x, y) => x[0] - y[0]).slice(0, 3)];
}"""

# What is wider than the window, other than boxes that scroll by themselves.
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const inside = (node) => node.closest(".scroll, pre, .plot, template, .hidden, .skip");
  const outside = [...document.querySelectorAll("body *")].filter(
    (node) => !inside(node) && node.getBoundingClientRect().right > width + 1);
  return [document.documentElement.scrollWidth, width, outside.map((node) => node.outerHTML.slice(0, 80))];
}"""

# Labels of axes that are cut off by their figure, stand on one another, or are turned.
BAD_TICKS = """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
  const box = plot.getBoundingClientRect();
  const wrong = [];
  for (const axis of ["xtick", "ytick"]) {
    const labels = [...plot.querySelectorAll(`.${axis} text`)]
      .map((node) => [node.textContent, node.getBoundingClientRect()]).filter(([, size]) => size.width);
    labels.forEach(([text, size], index) => {
      const outside = size.left < box.left - 1 || size.right > box.right + 1 || size.bottom > box.bottom + 1;
      if (outside) wrong.push(`${plot.id}: ${text} is cut off`);
      if (size.height > 22) wrong.push(`${plot.id}: ${text} is turned`);
      const overlaps = axis === "xtick" && index && size.left < labels[index - 1][1].right;
      if (overlaps) wrong.push(`${plot.id}: ${text} overlaps`);
    });
  }
  return wrong;
})"""

# Controls that a finger would miss: (tag, words, height in pixels).
SMALL_CONTROLS = """() => [...document.querySelectorAll("button, select, input, summary, header nav a")]
  .filter((node) => node.getClientRects().length)
  .map((node) => [node.tagName, node.textContent.slice(0, 20), node.getBoundingClientRect().height])
  .filter(([tag, , height]) => height < (["A", "SUMMARY"].includes(tag) ? 32 : 44))"""

# Words of headings and labels that a line breaks in the middle, other than at a hyphen and within very long ones.
BROKEN_WORDS = """() => {
  const broken = [];
  for (const node of document.querySelectorAll("th, figcaption, h1, h2, h3, h4, legend, label, summary, button, dt")) {
    if (!node.getClientRects().length || node.closest(".hidden")) continue;
    const texts = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      for (const { 0: word, index } of texts.currentNode.data.matchAll(/[^\\s\\u2009\\u202f]+/g)) {
        if (word.length > 28 || /[-–—/‖]/.test(word)) continue;
        const range = document.createRange();
        range.setStart(texts.currentNode, index);
        range.setEnd(texts.currentNode, index + word.length);
        if (new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size > 1) broken.push(word);
      }
    }
  }
  return broken;
}"""
