"""The report on runs that nothing judged as people see it: on a phone, on paper, and with its response browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.browsing import BAD_TICKS, BROKEN_WORDS, CONTRAST, OVERFLOW, SMALL_CONTROLS, Visit
from helpers.report_fixtures import make_run, unjudged, write_lines
from tdpo.report import write_report

pytestmark = pytest.mark.browser

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    return write_report([unjudged(make_run(root / "tdpo2", steps=16, prompts=8))], root / "report.html")


@pytest.fixture(scope="module")
def visit(browser: Any, one: Path) -> Iterator[Visit]:
    with Visit(browser, one) as visit:
        yield visit


def test_responses_have_neither_chips_nor_a_gain(visit: Visit, one: Path) -> None:
    page = visit.page
    assert page.locator("#samples .reward").count() == 0
    assert page.locator("#sample-filter").count() == 0
    assert not page.is_visible("#sample-run-label"), "one run needs no menu of runs"
    assert page.locator("#sample-sort option").all_inner_texts() == [
        "as evaluated", "furthest from the base first", "random",
    ]  # fmt: skip
    distances: dict[str, list[float]] = {}
    for line in (one.parent / "tdpo2" / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        if sample["model"] == "trained":
            distances.setdefault(sample["prompt"], []).append(sample["reverse_kl"])
    page.select_option("#sample-sort", "far")
    try:
        expected = sorted(distances, key=lambda prompt: -sum(distances[prompt]))
        assert page.locator(".prompt > h3").all_text_contents() == expected[:6]
    finally:
        page.select_option("#sample-sort", "given")
    assert visit.messages == []


def test_labels_of_axes_can_be_read(visit: Visit) -> None:
    assert visit.get(BAD_TICKS) == []
    ticks = visit.page.locator("#pairs-accuracy .xtick text").all_text_contents()
    assert ticks == ["0%", "25%", "50%", "75%", "100%"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(visit: Visit, scheme: str) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    try:
        count, worst = visit.get(CONTRAST)
    finally:
        visit.page.emulate_media(color_scheme="light")
    assert count > 200 and worst[0][0] >= 4.5, worst


def test_on_paper_headings_stay_with_what_follows_and_tables_are_whole(visit: Visit) -> None:
    visit.page.emulate_media(media="print")
    try:
        loose = visit.get(
            """() => [...document.querySelectorAll("main h2, main h3, .intro, .plain, .legend")]
                .filter((node) => getComputedStyle(node).breakAfter !== "avoid").map((node) => node.outerHTML)"""
        )
        whole = visit.get(
            "[...document.querySelectorAll('.results, figure, tr')].map((node) => getComputedStyle(node).breakInside)"
        )
        pages_shown = visit.page.is_visible("#sample-page")
    finally:
        visit.page.emulate_media(media="screen")
    assert loose == [] and set(whole) == {"avoid"} and not pages_shown


def test_on_a_phone_nothing_overflows_and_wide_tables_say_so(browser: Any, tmp_path: Path) -> None:
    """And on a page of runs with and without a reward, prompts without one come last in either order."""
    runs = [make_run(tmp_path / loss, loss=loss, steps=8, prompts=4) for loss in ("tdpo2", "dpo", "ppo")]
    unjudged(runs[1])
    samples = [json.loads(line) for line in (runs[0] / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    lost = samples[0]["prompt_id"]
    write_lines(runs[0] / "samples.jsonl", [{**s, "reward": None} if s["prompt_id"] == lost else s for s in samples])
    with Visit(browser, write_report(runs, tmp_path / "report.html"), **PHONE) as visit:
        scroll, width, outside = visit.get(OVERFLOW)
        assert (scroll, width, outside) == (390, 390, [])
        assert visit.get(SMALL_CONTROLS) == []
        assert visit.get(BAD_TICKS) == []
        assert visit.get(BROKEN_WORDS) == []
        first = visit.page.locator(".prompt >> nth=0")
        assert first.locator(".response .reward").all_inner_texts()[:2] == ["no reward", "no reward"]
        for order in ("gain", "loss"):
            visit.page.select_option("#sample-sort", order)
            assert visit.page.locator(".prompt > h3").last.inner_text() == samples[0]["prompt"]
        hint = "(name) => getComputedStyle(document.querySelector(`#${name} .scroll`), '::before').content"
        assert visit.get(hint, "results") == "none", "four models have room, each row in two lines"
        assert "scroll sideways" in visit.get(hint, "provenance")
        visit.page.set_viewport_size({"width": 1280, "height": 900})
        visit.page.wait_for_timeout(100)
        assert visit.get(hint, "provenance") == "none"
        assert visit.messages == []
