"""The report of a study as people see it: in headless Chromium, wide and narrow, light, dark and printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.browsing import BROKEN_WORDS, CONTRAST, OVERFLOW, Visit, until
from helpers.study_fixtures import HOSTILE, make_study, read, write
from tdpo.report import write_study_report
from tdpo.report.study.study_reading import load_study

pytestmark = pytest.mark.browser
READY = "document.documentElement.dataset.unpacked === 'yes'"


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    return write_study_report(folder)


@pytest.fixture(scope="module")
def visit(browser: Any, report: Path) -> Iterator[Visit]:
    with Visit(browser, report) as visit:
        until(visit, READY)
        yield visit


def x_of(visit: Visit, figure: str, arm: str) -> list[float]:
    """Where the points of a method stand, the dotted line from the reference aside."""
    found: list[float] = visit.get(
        """([id, arm]) =>
            document.getElementById(id).data.find((t) => t.meta.arm === arm && t.hovertemplate)?.x ?? []""",
        [figure, arm],
    )
    return found


def x_title(visit: Visit, figure: str) -> str:
    title: str = visit.get("(id) => document.getElementById(id).layout.xaxis.title.text", figure)
    return title


def test_every_figure_is_drawn_without_errors_or_requests(visit: Visit, report: Path) -> None:
    drawn = visit.get(
        """() => [...document.querySelectorAll(".plot")].map((plot) => ({
            id: plot.id, label: plot.getAttribute("aria-label"), height: plot.querySelector("svg")?.clientHeight ?? 0,
            marks: plot.querySelectorAll(".scatterlayer .js-line, .scatterlayer .point").length,
            ticks: plot.querySelectorAll(".xtick, .ytick").length }))"""
    )
    assert len(drawn) == 2 + 2 + 4 + 3 * 6
    for plot in drawn:
        assert plot["height"] > 200 and plot["marks"] > 3 and plot["ticks"] >= 4 and len(plot["label"]) > 60, plot
    assert visit.messages == []
    assert visit.requests == [report.as_uri()]
    assert report.stat().st_size < 8_000_000


def test_methods_keep_their_colour_and_marker_in_every_figure(visit: Visit) -> None:
    looks = visit.get(
        """() => [...document.querySelectorAll(".plot")].flatMap((plot) => plot.data.filter((t) => t.marker)
            .map((t) => [t.meta.arm, t.marker.color, t.marker.symbol].join(" ")))"""
    )
    assert len(set(looks)) == 8


def test_the_axes_can_be_switched(visit: Visit, folder: Path) -> None:
    study, page = load_study(folder), visit.page
    tdpo2 = next(arm for arm in study.arms if arm.name == "tdpo2")

    def expected(metric: str) -> Any:
        values = [study.estimate("keywords", "tdpo2", s, metric) for s in tdpo2.strengths]
        return pytest.approx([e.value for e in values if e], rel=1e-3)

    assert x_of(visit, "task-0-kl", "tdpo2") == expected("reverse_kl")
    page.check("input[value=forward_kl_per_token]", force=True)
    assert x_of(visit, "task-0-kl", "tdpo2") == expected("forward_kl_per_token")
    assert x_title(visit, "task-0-kl") == "Forward KL per token (nats per token)"
    assert "Forward KL per token" in page.get_attribute("#task-0-kl", "aria-label")
    page.check("input[value=reverse_kl]", force=True)
    page.check("#frontier-root")
    assert [x**2 for x in x_of(visit, "task-0-kl", "tdpo2")] == expected("reverse_kl")
    ticks = visit.get("document.getElementById('task-0-kl').layout.xaxis")
    assert [float(text) for text in ticks["ticktext"]] == pytest.approx([value**2 for value in ticks["tickvals"]])
    page.uncheck("#frontier-root")
    page.select_option("#frontier-diversity", "gated_self_bleu")
    assert x_of(visit, "task-2-diversity", "tdpo2") != [] and "lower is more diverse" in x_title(
        visit, "task-2-diversity"
    )
    page.select_option("#frontier-diversity", "")
    assert x_of(visit, "task-0-diversity", "tdpo2") == expected("embedding_diversity")


def test_a_hover_names_method_strength_and_values_with_intervals(visit: Visit) -> None:
    visit.get(
        """() => { const plot = document.getElementById("task-0-kl");
            const curve = plot.data.findIndex((t) => t.meta.arm === "tdpo2" && t.hovertemplate);
            window.Plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: 1 }]); }"""
    )
    hover = visit.get("document.querySelector('#task-0-kl .hoverlayer').textContent")
    assert hover.startswith("TDPO2, β 0.1Reverse KL: ")
    assert hover.count("[") == 2 and "Mean reward" in hover


def test_methods_can_be_hidden_with_the_keyboard(visit: Visit) -> None:
    visit.page.focus("button[data-method=dpo]")
    visit.page.keyboard.press("Enter")
    assert x_of(visit, "task-0-kl", "dpo") == [] == x_of(visit, "task-0-curve-loss", "dpo")
    assert visit.page.get_attribute("button[data-method=dpo]", "aria-pressed") == "false"
    visit.page.keyboard.press("Space")
    assert len(x_of(visit, "task-0-kl", "dpo")) == 3


def test_drawings_of_a_row_stand_level_also_when_a_table_is_opened(visit: Visit) -> None:
    tops = "['task-0-kl', 'task-0-diversity'].map((id) => document.getElementById(id).getBoundingClientRect().top)"
    before = visit.get(tops)
    assert before[0] == before[1]
    opened = "document.getElementById('task-0-kl').closest('figure').querySelector('details').open"
    visit.get(f"{opened} = true")
    assert visit.get(tops) == before
    visit.get(f"{opened} = false")


def shown_strengths(visit: Visit, table: str) -> list[str]:
    strengths: list[str] = visit.get(
        "(table) => [...document.querySelectorAll(`${table} tr[data-task='0']:not([hidden])`)]"
        ".map((row) => `${row.dataset.arm} ${row.dataset.strength}`.trim())",
        table,
    )
    return strengths


def test_strengths_are_chosen_by_rule_or_one_by_one(visit: Visit) -> None:
    page = visit.page
    before = shown_strengths(visit, ".spread")
    assert len(before) == 8 and "tdpo2 0.1" in before
    page.select_option("#strength-rule", "loose")
    loose = ["reference", "sft 0.0005", "dpo 0.03", "tdpo1 0.03", "tdpo2 0.03", "ppo_reverse 0.02",
             "ppo_reverse_exact 0.02", "ppo_forward 0.02"]  # fmt: skip
    assert shown_strengths(visit, ".spread") == loose
    steps = x_of(visit, "task-0-curve-reverse_kl", "tdpo2")
    assert len(steps) == 8
    page.select_option("select[data-strength-of=tdpo2]", "0.3")
    assert "tdpo2 0.3" in shown_strengths(visit, ".spread") and "dpo 0.03" in shown_strengths(visit, ".spread")
    page.select_option("#curve-strengths", "all")
    lines = "document.getElementById('task-0-curve-reverse_kl').data.filter((t) => t.marker).length"
    assert visit.get(lines) == 21
    page.select_option("#curve-axis", "completions")
    assert x_title(visit, "task-0-curve-reverse_kl") == "scored completions"
    for control, value in (("#curve-strengths", "chosen"), ("#curve-axis", "steps"), ("#strength-rule", "matched")):
        page.select_option(control, value)
    assert shown_strengths(visit, ".spread") == before


@pytest.fixture
def responses(visit: Visit) -> Iterator[Visit]:
    yield visit
    for control in ("search", "low", "high"):
        visit.page.fill(f"#sample-{control}", "")
    for control, value in (("task", "0"), ("strength", "chosen"), ("seed", ""), ("sort", "given")):
        visit.page.select_option(f"#sample-{control}", value)


def test_responses_stand_side_by_side_and_can_be_searched_and_filtered(responses: Visit, folder: Path) -> None:
    page, study = responses.page, load_study(folder)
    shown = ("reference", "dpo", "tdpo2", "ppo_reverse")
    own = [r for r in study.responses if r.task == "keywords" and r.arm in shown and r.strength in ("", "0.1")]
    assert page.inner_text("#sample-status").startswith(f"{len(own)} responses to 24 prompts fit")
    card = page.locator(".prompt").nth(1)
    assert [text.split()[0] for text in card.locator(".top").all_inner_texts()] == ["Reference", "DPO", "TDPO2", "PPO"]
    first = next(r for r in own if r.prompt_id == "keywords-1" and r.arm == "reference")
    assert card.locator(".response p").first.inner_text() == first.text
    assert "no reward" in card.locator(".response").first.inner_text()

    def fits(**wanted: Any) -> int:
        found = [r for r in own if all(test(r) for test in wanted.values())]
        return len(found)

    page.fill("#sample-search", "LANTERN letter")
    count = fits(words=lambda r: all(w in f"{r.text} {r.prompt}".lower() for w in ("lantern", "letter")))
    assert page.inner_text("#sample-status").startswith(f"{count} responses")
    assert {text.lower() for text in page.locator("mark").all_inner_texts()} == {"lantern", "letter"}
    page.fill("#sample-search", "")
    page.fill("#sample-low", "0.5")
    page.fill("#sample-high", "0.75")
    page.select_option("#sample-seed", "2")
    count = fits(low=lambda r: r.reward is not None and 0.5 <= r.reward <= 0.75, seed=lambda r: r.seed == "2")
    assert page.inner_text("#sample-status").startswith(f"{count} responses")
    page.fill("#sample-low", "7")
    assert page.inner_text("#sample-status") == "No response fits."


def test_tasks_prompts_methods_and_pages_of_responses(responses: Visit) -> None:
    page = responses.page
    page.select_option("#sample-task", "2")
    assert page.locator("#sample-prompt option").count() == 25
    page.select_option("#sample-prompt", index=3)
    assert page.locator(".prompt").count() == 1
    assert page.inner_text(".prompt h3 small") == "colours-2"
    assert "mode " in page.inner_text("#sample-list")
    page.click("button[data-column=ppo_forward]")
    assert page.locator(".prompt .top").count() == 5
    page.click("button[data-column=ppo_forward]")
    page.select_option("#sample-strength", "all")
    assert page.inner_text("#sample-status").startswith(f"{8 + 3 * 3 * 8} responses to 1 prompts")
    page.select_option("#sample-prompt", "")
    page.select_option("#sample-sort", "spread")
    page.click("#sample-next")
    assert page.inner_text("#sample-page") == "Page 2 of 5"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast_in_both_colour_schemes(visit: Visit, scheme: str) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    try:
        count, worst = visit.get(CONTRAST)
    finally:
        visit.page.emulate_media(color_scheme="light")
    assert count > 600
    assert worst[0][0] >= 4.5, worst


def test_printing_opens_details_and_fits_figures_and_tables(visit: Visit) -> None:
    visit.page.emulate_media(media="print")
    visit.page.set_viewport_size({"width": 690, "height": 970})
    try:
        visit.get("dispatchEvent(new Event('beforeprint'))")
        width = visit.get("document.documentElement.clientWidth")
        assert visit.get("document.querySelectorAll('details:not([open])').length") == 0
        # A grid with rows longer than the page is printed over itself; the PDF does not tell, its pictures did.
        shown = "[...new Set([...document.querySelectorAll('.figures.large')].map((n) => getComputedStyle(n).display))]"
        assert visit.get(shown) == ["block"]
        right = "(css) => [...document.querySelectorAll(css)].map((node) => node.getBoundingClientRect().right)"
        edges = [*visit.get(right, ".plot svg.main-svg"), *visit.get(right, "table"), *visit.get(right, ".card")]
        visit.get("dispatchEvent(new Event('afterprint'))")
        pdf = visit.page.pdf(format="A4")
    finally:
        visit.page.emulate_media(media="screen")
        visit.page.set_viewport_size({"width": 1280, "height": 900})
    assert len(edges) > 60
    assert max(edges) <= width
    assert pdf.startswith(b"%PDF")


def test_no_axis_title_is_cut_off_on_a_phone(browser: Any, report: Path) -> None:
    with Visit(browser, report, viewport={"width": 390, "height": 844}) as visit:
        until(visit, READY)
        visit.get("document.querySelectorAll('.plot').forEach((plot) => plot.scrollIntoView())")
        titles = "[...document.querySelectorAll('.xtitle')].map((node) => node.getBoundingClientRect())"
        edges = visit.get(f"{titles}.map(({{ left, right }}) => [left, right])")
        texts = visit.get("[...document.querySelectorAll('.xtitle')].map((node) => node.textContent)")
    assert any(len(text) > 40 for text in texts), texts
    assert all(left >= 0 and right <= 390 for left, right in edges), edges


def test_a_phone_never_scrolls_sideways(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 844})
    try:
        until(visit, "[...document.querySelectorAll('.plot svg.main-svg')].every((svg) => svg.clientWidth <= 390)")
        found = visit.get(OVERFLOW)
        visit.get("dispatchEvent(new Event('beforeprint'))")  # opens what is folded away
        broken = visit.get(BROKEN_WORDS)
        visit.get("dispatchEvent(new Event('afterprint'))")
    finally:
        visit.page.set_viewport_size({"width": 1280, "height": 900})
    assert found == [390, 390, []]
    assert broken == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_first_screen_shows_methods_with_their_intervals(visit: Visit, width: int, height: int) -> None:
    """Every method on a desktop, the first three on a phone; each number with its drawing on the axis of its column."""
    visit.page.set_viewport_size({"width": width, "height": height})
    try:
        rows = visit.get(
            """() => [...document.querySelectorAll(".arms tbody:first-of-type")[0].rows].map((row) => ({
                bottom: row.getBoundingClientRect().bottom + scrollY,
                tracks: [...row.querySelectorAll(".track")]
                    .map((node) => [node.clientWidth, node.querySelector(".dot") !== null]) }))"""
        )
    finally:
        visit.page.set_viewport_size({"width": 1280, "height": 900})
    assert len(rows) == 7
    assert rows[6 if width > 390 else 2]["bottom"] <= height
    assert all(len(row["tracks"]) == 3 and all(wide > 80 and dot for wide, dot in row["tracks"]) for row in rows), rows


def test_the_columns_that_are_open_at_first_are_said(visit: Visit) -> None:
    said = visit.page.inner_text("#samples .intro")
    assert "open at first are Reference, DPO, TDPO2, PPO (reverse KL)" in said
    pressed = visit.get(
        "[...document.querySelectorAll('button[data-column][aria-pressed=true]')].map((n) => n.dataset.column)"
    )
    assert pressed == ["reference", "dpo", "tdpo2", "ppo_reverse"]


def test_the_keyboard_reaches_every_control_and_all_are_named(visit: Visit) -> None:
    visit.get("document.activeElement.blur(), scrollTo(0, 0)")
    reached = set()
    for _ in range(150):
        visit.page.keyboard.press("Tab")
        reached.add(visit.get("(({id, tagName, name}) => id || name || tagName)(document.activeElement)"))
    wanted = {"distance", "frontier-root", "frontier-diversity", "strength-rule", "curve-axis", "sample-search",
              "sample-task", "sample-low", "sample-next", "SUMMARY", "DIV"}  # fmt: skip
    assert wanted <= reached
    unnamed = visit.get(
        """[...document.querySelectorAll("input, select, button, [role=region], [role=img]")].filter((n) =>
            !(n.getAttribute("aria-label") || n.labels?.[0]?.textContent.trim() || n.textContent.trim())).length"""
    )
    assert unnamed == 0


# ---- hostile, long, and much ---------------------------------------------------------------------------------


def poisoned(value: Any, attack: str) -> Any:
    if isinstance(value, dict):
        return {key: poisoned(inner, attack) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, attack) for inner in value]
    return f"{value} {attack}" if isinstance(value, str) else value


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "without policy"])
def test_hostile_text_stays_text(browser: Any, tmp_path: Path, policy: bool) -> None:
    """In responses, and in everything that about.json and claims.json say in words of their own."""
    attack = "<b>bold</b>" + HOSTILE[0] + HOSTILE[1] + "unbreakable" * 30
    path = make_study(tmp_path / "study", prompts=2)
    about, claims = read(path / "about.json"), read(path / "claims.json")
    for arm in about["arms"]:
        arm |= {key: f"{arm[key]} {attack}" for key in ("label", "strength", "what")}
    for task in about["tasks"]:
        task |= {key: f"{task[key]} {attack}" for key in ("description", "reward", "kind")}
    rest = {key: about[key] for key in ("title", "command", "versions", "hardware", "model", "failures")}
    write(path / "about.json", about | poisoned(rest, attack))
    write(path / "claims.json", poisoned(claims, attack))
    report = write_study_report(path)
    html = report.read_text(encoding="utf-8")
    if not policy:
        report.write_text(html.replace("http-equiv=", "data-was="), encoding="utf-8")
    with Visit(browser, report, viewport={"width": 390, "height": 844}) as visit:
        until(visit, READY)
        visit.get("""() => document.querySelectorAll(".plot").forEach((plot) => window.Plotly.Fx.hover(plot,
            plot.data.flatMap((t, i) => t.hovertemplate ? [{ curveNumber: i, pointNumber: 0 }] : []).slice(0, 1)))""")
        hover = visit.get("document.querySelector('#task-0-kl .hoverlayer').textContent")
        assert f"<b>bold</b>{HOSTILE[0]}" in hover, "Plotly's own markup stays text too"
        visit.page.fill("#sample-search", "script onerror")
        assert HOSTILE[0] in visit.page.inner_text("#sample-list")
        assert visit.get("window.__pwned") is None
        assert visit.get("document.querySelectorAll('img, iframe, [onerror], svg a').length") == 0
        assert visit.messages == []
        assert visit.requests == [report.as_uri()]
        assert visit.get(OVERFLOW)[1:] == [390, []]


def test_thirty_thousand_responses_fit_and_stay_fast(browser: Any, tmp_path: Path) -> None:
    path = make_study(tmp_path / "study", prompts=29, samples=8, words=28)
    report = write_study_report(path)
    assert report.stat().st_size < 8_000_000
    with Visit(browser, report) as visit:
        until(visit, READY)
        assert "All 30\u2009392 responses are in this file." in visit.page.inner_text("#samples .intro")
        visit.page.select_option("#sample-strength", "all")
        milliseconds = visit.get(
            """() => { const field = document.getElementById("sample-search");
                const start = performance.now();
                for (const words of ["lant", "lantern", "lantern river", "no such"]) {
                  field.value = words; field.dispatchEvent(new Event("input")); }
                return performance.now() - start; }"""
        )
        assert milliseconds < 2000
        assert visit.page.inner_text("#sample-status") == "No response fits."
        assert visit.messages == []


def test_an_old_browser_is_told_where_the_responses_are(browser: Any, report: Path) -> None:
    context = browser.new_context()
    context.add_init_script("delete globalThis.DecompressionStream;")
    try:
        page = context.new_page()
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        assert "responses.csv beside this file has them all" in page.inner_text("#sample-status")
    finally:
        context.close()


def test_a_study_with_almost_nothing_opens_without_errors(browser: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text(json.dumps({"schema": 1}))
    (tmp_path / "results.csv").write_text("task,arm,strength,seed,metric,value,low,high\nt,dpo,0.1,1,reward_mean,1,,\n")
    with Visit(browser, write_study_report(tmp_path)) as visit:
        assert visit.messages == []
        assert "There are no responses to read." in visit.page.inner_text("#samples")
