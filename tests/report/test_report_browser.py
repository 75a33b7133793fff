"""The report as people see it: in headless Chromium, wide and narrow, light, dark and printed, and under attack."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest

from helpers.browsing import CONTRAST, OVERFLOW, Visit, until
from helpers.report_fixtures import make_run, read_json, write_json, write_lines, write_yaml
from tdpo.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    runs = [make_run(root / "sentiment-tdpo2"), make_run(root / "sentiment-dpo", loss="dpo")]
    return write_report(runs, root / "report.html")


@pytest.fixture(scope="module")
def visit(browser: Any, report: Path) -> Iterator[Visit]:
    with Visit(browser, report) as visit:
        yield visit


# ---- what a reader sees --------------------------------------------------------------------------------------


def test_every_figure_is_drawn_without_errors_or_requests(visit: Visit, report: Path) -> None:
    drawn = visit.get(
        """() => [...document.querySelectorAll(".plot")].map((plot) => ({
            id: plot.id, label: plot.getAttribute("aria-label"), height: plot.querySelector("svg")?.clientHeight ?? 0,
            marks: plot.querySelectorAll(".scatterlayer .js-line, .scatterlayer .point").length,
            traces: plot.data.length, ticks: plot.querySelectorAll(".xtick, .ytick").length,
        }))"""
    )
    assert len(drawn) == 29
    for plot in drawn:
        assert plot["height"] > 60, plot
        assert plot["marks"] >= plot["traces"] >= 1, plot
        assert plot["ticks"] >= 2, plot
        assert len(plot["label"]) > 20, plot
    assert visit.messages == []
    assert visit.requests == [report.as_uri()]
    assert visit.get("document.images.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast_in_both_colour_schemes(visit: Visit, scheme: str) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    try:
        count, worst = visit.get(CONTRAST)
        page = visit.get("getComputedStyle(document.body).backgroundColor")
    finally:
        visit.page.emulate_media(color_scheme="light")
    assert page == {"light": "rgb(252, 252, 250)", "dark": "rgb(21, 24, 27)"}[scheme]
    assert count > 400
    assert worst[0][0] >= 4.5, worst


def test_printing_opens_details_and_fits_figures(visit: Visit) -> None:
    visit.page.emulate_media(media="print")
    visit.page.set_viewport_size({"width": 690, "height": 970})
    try:
        visit.get("dispatchEvent(new Event('beforeprint'))")
        page = visit.get("document.documentElement.clientWidth")
        assert visit.get("document.querySelectorAll('details:not([open])').length") == 0
        widths = visit.get(
            "[...document.querySelectorAll('.plot svg.main-svg')].map((s) => s.getBoundingClientRect().right)"
        )
        tables = visit.get("[...document.querySelectorAll('table')].map((t) => t.getBoundingClientRect().right)")
        visit.get("dispatchEvent(new Event('afterprint'))")
        assert visit.get("document.querySelectorAll('details[open]').length") == 0
    finally:
        visit.page.emulate_media(media="screen")
        visit.page.set_viewport_size({"width": 1280, "height": 900})
    assert len(widths) >= 29
    assert max(widths) <= page
    assert max(tables) <= page
    assert visit.page.pdf(format="A4").startswith(b"%PDF")


def test_runs_can_be_hidden_from_the_curves_with_the_keyboard(visit: Visit) -> None:
    lines = "document.querySelectorAll('#curve-loss .scatterlayer .js-line').length"
    before = visit.get(lines)
    visit.page.focus("button[data-run='1']")
    visit.page.keyboard.press("Enter")
    assert visit.get(lines) == before // 2
    assert visit.page.get_attribute("button[data-run='1']", "aria-pressed") == "false"
    visit.page.keyboard.press("Space")
    assert visit.get(lines) == before


def test_the_keyboard_reaches_every_control_and_every_scrolling_table(visit: Visit) -> None:
    visit.get("document.activeElement.blur(), scrollTo(0, 0)")
    reached = set()
    for _ in range(140):
        visit.page.keyboard.press("Tab")
        reached.add(
            visit.get("(({id, tagName, className}) => id || `${tagName}.${className}`)(document.activeElement)")
        )
    wanted = {
        "A.skip",
        "sample-search",
        "sample-sort",
        "sample-filter",
        "sample-run",
        "sample-next",
        "DIV.scroll",
        "SUMMARY.",
    }
    assert wanted <= reached
    unnamed = visit.get(
        """[...document.querySelectorAll("input, select, button, [role=region], [role=img]")].filter((n) =>
            !(n.getAttribute("aria-label") || n.labels?.[0]?.textContent.trim() || n.textContent.trim())).length"""
    )
    assert unnamed == 0


# ---- the response browser ------------------------------------------------------------------------------------


def shown(visit: Visit) -> list[str]:
    titles: list[str] = visit.page.locator(".prompt > h3").all_text_contents()
    return titles


def gains(report: Path, run: str) -> dict[str, float]:
    """Mean reward of each prompt under the trained model minus that under the base model."""
    sums: dict[str, dict[str, list[float]]] = {}
    for line in (report.parent / run / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        sums.setdefault(sample["prompt"], {}).setdefault(sample["model"], []).append(sample["reward"])
    return {p: sum(m["trained"]) / len(m["trained"]) - sum(m["base"]) / len(m["base"]) for p, m in sums.items()}


@pytest.fixture
def responses(visit: Visit) -> Iterator[Visit]:
    yield visit
    visit.page.fill("#sample-search", "")
    visit.page.select_option("#sample-sort", "given")
    visit.page.select_option("#sample-filter", "all")
    visit.page.select_option("#sample-run", index=0)


def test_responses_stand_side_by_side_with_their_rewards(responses: Visit, report: Path) -> None:
    first = [json.loads(line) for line in (report.parent / "sentiment-tdpo2" / "samples.jsonl").open()][:2]
    card = responses.page.locator(".prompt").first
    assert card.locator(".top").all_inner_texts()[0].split()[0] == "Base"
    assert card.locator(".response p").nth(0).inner_text() == first[0]["text"]
    assert card.locator(".response p").nth(1).inner_text() == first[1]["text"]
    assert card.locator(".response .reward").nth(1).inner_text() == f"{first[1]['reward']:.2f}".replace("-", "−")
    assert card.locator(".response").count() == 6
    card.locator("button.more").click()
    assert card.locator(".response").count() == 12


def test_sorting_by_gain_and_loss_of_a_run(responses: Visit, report: Path) -> None:
    for index, run in enumerate(("sentiment-tdpo2", "sentiment-dpo")):
        responses.page.select_option("#sample-run", index=index)
        for order, sign in (("gain", -1), ("loss", 1)):
            responses.page.select_option("#sample-sort", order)
            expected = sorted(gains(report, run).items(), key=lambda item: sign * item[1])
            assert shown(responses) == [prompt for prompt, _ in expected[:6]]


def test_search_filter_and_pages(responses: Visit, report: Path) -> None:
    page = responses.page
    assert page.inner_text("#sample-status") == "Prompts 1 to 6 of 40"
    page.click("#sample-next")
    assert page.inner_text("#sample-page") == "Page 2 of 7"
    page.fill("#sample-search", "TRAIN station sentences")
    assert shown(responses) == ["Tell me about the train station in two sentences."]
    assert page.inner_text("#sample-status") == "Prompts 1 to 1 of 1 found among 40"
    assert {text.lower() for text in page.locator("mark").all_inner_texts()} >= {"train", "station", "sentences"}
    page.fill("#sample-search", "no such words")
    assert page.inner_text("#sample-status") == "None of the 40 prompts fits."
    page.fill("#sample-search", "")
    page.select_option("#sample-filter", "worse")
    worse = [prompt for prompt, gain in gains(report, "sentiment-tdpo2").items() if gain < 0]
    assert 0 < len(worse) < 20
    assert shown(responses) == worse[:6]
    page.select_option("#sample-filter", "all")
    page.select_option("#sample-sort", "random")
    seen = shown(responses)
    page.click("#sample-next")
    page.click("#sample-previous")
    assert shown(responses) == seen  # turning pages does not shuffle again


def test_hundreds_of_long_samples_stay_fast(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2, prompts=500, samples_per_prompt=6)
    with Visit(browser, write_report([run], tmp_path / "report.html")) as visit:
        visit.page.fill("#sample-search", "variation")
        assert visit.page.inner_text("#sample-status") == "Prompts 1 to 6 of 452 found among 500"
        turning = visit.get(
            """() => {
                const start = performance.now();
                for (let i = 0; i < 10; i += 1) document.getElementById("sample-next").click();
                return performance.now() - start;
            }"""
        )
        assert visit.page.inner_text("#sample-page") == "Page 11 of 76"
        assert turning < 3000  # milliseconds
        assert visit.get("document.querySelectorAll('*').length") < 8000


# ---- narrow windows and incomplete runs ----------------------------------------------------------------------


def test_a_narrow_window_never_scrolls_sideways(browser: Any, tmp_path: Path) -> None:
    """Nor with names, words, values and texts that are long and cannot be broken at a space."""
    long = "unbreakable" * 30
    runs = [make_run(tmp_path / f"{i}{'x' * 120}", loss="dpo", steps=20, prompts=8) for i in range(2)]
    for run in runs:
        recipe = {"run_dir": long, "data": {"train": long + run.name[0]}}
        write_yaml(run / "recipe.yaml", recipe)
        write_json(run / "status.json", {"state": "failed", "step": 1, "max_steps": 2, "error": long})
        samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
        write_lines(run / "samples.jsonl", [{**sample, "text": long, "prompt": long} for sample in samples])
        evaluation = read_json(run / "evaluation.json")
        evaluation["settings"]["reward"] = long
        write_json(run / "evaluation.json", evaluation)
    out = write_report(runs, tmp_path / "report.html")
    with Visit(browser, out, viewport={"width": 360, "height": 700}) as visit:
        scroll, width, outside = visit.get(OVERFLOW)
        assert (scroll, outside) == (width, [])
        box = visit.page.locator(".scroll").first
        assert box.evaluate(
            "(node) => node.scrollWidth > node.clientWidth && getComputedStyle(node).overflowX === 'auto'"
        )
        assert visit.messages == []


def test_the_ordinary_report_in_a_narrow_window(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 700})
    try:
        until(visit, "[...document.querySelectorAll('.plot svg.main-svg')].every((svg) => svg.clientWidth <= 360)")
        scroll, width, outside = visit.get(OVERFLOW)
    finally:
        visit.page.set_viewport_size({"width": 1280, "height": 900})
    assert (scroll, width, outside) == (360, 360, [])


def test_a_run_with_nothing_but_a_recipe_opens_without_errors(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_yaml(tmp_path / "run" / "recipe.yaml", {"loss": {"name": "tdpo2"}})
    with Visit(browser, write_report([tmp_path / "run"], tmp_path / "report.html")) as visit:
        assert visit.messages == []
        assert "TDPO2 has logged nothing to judge it by yet." in visit.page.inner_text("header")


# ---- text that attacks ---------------------------------------------------------------------------------------

ATTACKS = (
    "</script><img src=x onerror=window.__pwned=1>",
    "</ScRiPt ><script>window.__pwned=1</script>",
    "<!--<script>--><img src=x onerror=window.__pwned=1>",
    '"><svg onload=window.__pwned=1><a href="javascript:window.__pwned=1">%{x}</a>',
    "{{ 7 * 7 }}{% raw %}' onmouseover='window.__pwned=1\u2028",
    "</title></style></textarea></template></noscript><iframe srcdoc='<script>parent.__pwned=1</script>'></iframe>",
)
ATTACK = " ".join(ATTACKS)
RUN_NAMES = ("<img src=x onerror=window.__pwned=1>", "<b onclick=window.__pwned=1>%{y}")


def poisoned(value: Any) -> Any:
    """`value` with the attacks in every text and every key that the report does not look up by name."""
    if isinstance(value, dict):
        return {key: poisoned(inner) for key, inner in value.items()} | {ATTACK: ATTACK}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return ATTACK if isinstance(value, str) else value


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two runs whose every text is an attack: names, recipe, data, versions, errors, prompts, samples."""
    root = tmp_path_factory.mktemp("attack")
    runs = [make_run(root / name, steps=6, eval_every=2, prompts=3) for name in RUN_NAMES]
    for run in runs:
        for name in ("environment.json", "data.json", "evaluation.json"):
            write_json(run / name, poisoned(read_json(run / name)))
        write_json(run / "status.json", {"state": ATTACK, "step": ATTACK, "max_steps": ATTACK, "error": ATTACK})
        write_yaml(run / "recipe.yaml", {ATTACK: ATTACK, "data": {"train": ATTACK, "name": run.name}, "seed": ATTACK})
        samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
        fixed = ("model", "reward", "sample_index")
        samples = [{**poisoned(sample), **{key: sample[key] for key in fixed}} for sample in samples]
        write_lines(run / "samples.jsonl", samples)
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        write_lines(run / "metrics.jsonl", [{**line, ATTACK: float("nan")} for line in metrics])
        said = {"prompt": [{"role": "user", "content": ATTACK}], "text": ATTACK, "reward": ATTACK}
        write_lines(run / "completions.jsonl", [{"iteration": i, "step": i, **said} for i in range(3)])
    return write_report(runs, root / "report.html")


def provoke(visit: Visit) -> None:
    """Do what a reader does, so that everything that can run has run."""
    visit.get("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    visit.get(
        """() => document.querySelectorAll(".plot").forEach(
            (plot) => window.Plotly.Fx.hover(plot, plot.data.map((_, i) => ({ curveNumber: i, pointNumber: 0 }))))"""
    )
    visit.page.fill("#sample-search", "script onerror")
    visit.page.hover(".prompt h3")
    visit.page.wait_for_timeout(150)


def without_policy(html: str) -> str:
    stripped, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert count == 1
    return stripped


def without_escaping(html: str) -> str:
    """The page as it would be if nothing had been escaped, neither in the markup nor in the embedded data."""
    for attack in ATTACKS:
        for quoted in (escape(attack), escape(attack).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")):
            html = html.replace(quoted, attack)
    return html.replace("\\u003c", "<").replace("\\u003e", ">")


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "without policy"])
def test_attacks_are_text_even_without_the_policy(browser: Any, attacked: Path, tmp_path: Path, policy: bool) -> None:
    html = attacked.read_text(encoding="utf-8")
    file = tmp_path / "report.html"
    file.write_text(html if policy else without_policy(html), encoding="utf-8")
    with Visit(browser, file) as visit:
        provoke(visit)
        assert visit.get("window.__pwned") is None
        assert visit.messages == []
        assert visit.requests == [file.as_uri()]
        assert (
            visit.get("document.querySelectorAll('img, iframe, object, embed, [onerror], [onload], [onclick]').length")
            == 0
        )
        assert visit.get("document.querySelectorAll('a[href^=javascript], svg a').length") == 0
        assert visit.get("document.scripts.length") == 4
        assert ATTACKS[0] in visit.page.locator(".response p").first.inner_text()
        assert ATTACKS[0] in visit.page.inner_text("#provenance")
        assert ATTACKS[0] in visit.page.inner_text(".said >> nth=0")
        hover = visit.get("document.querySelector('#curve-loss .hoverlayer').textContent")
        assert RUN_NAMES[0] in hover
        assert "<b onclick=window.__pwned=1>% {y}" in hover  # Plotly's own markup stays text too


def test_the_policy_stops_scripts_that_escaping_let_through(browser: Any, attacked: Path, tmp_path: Path) -> None:
    """And without both the attacks do run: the tests above can fail."""
    broken = without_escaping(attacked.read_text(encoding="utf-8"))
    guarded, open_ = tmp_path / "guarded.html", tmp_path / "open.html"
    guarded.write_text(broken, encoding="utf-8")
    open_.write_text(without_policy(broken), encoding="utf-8")
    with Visit(browser, guarded, drawn=False) as visit:
        visit.page.wait_for_timeout(150)
        assert visit.get("window.__pwned") is None
        assert visit.get("document.images.length") > 0
        assert any("Content Security Policy" in message for message in visit.messages)
    with Visit(browser, open_, drawn=False) as visit:
        until(visit, "window.__pwned === 1")
