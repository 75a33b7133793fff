"""The page on the two KLs, driven in headless Chromium: its numbers, optima and steps against float64 quadrature."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.browsing import CONTRAST, OVERFLOW, Visit, until
from tdpo.cli.main import main
from tdpo.report import write_two_kls

in_a_browser = pytest.mark.browser
Tensor = torch.Tensor
GIVEN = {"distance": 5.0, "share": 0.6, "width": 0.8}  # the reference as the page opens
RATE = 0.08  # two_kls.js takes this share of a natural-gradient step


# ---- the oracle: Simpson's rule in float64, nats ---------------------------------------------------------------


def simpson(values: Tensor, xs: Tensor) -> Tensor:
    weights = torch.ones(len(xs), dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    return (values * weights).sum(-1) * (xs[1] - xs[0]) / 3


def log_normal(x: Tensor, mean: Any, width: Any) -> Tensor:
    return torch.distributions.Normal(torch.as_tensor(mean), torch.as_tensor(width)).log_prob(x)


def log_reference(x: Tensor, distance: float, share: float, width: float) -> Tensor:
    half = torch.tensor(distance / 2, dtype=torch.float64)
    parts = [torch.log(torch.tensor(s, dtype=torch.float64)) + log_normal(x, m, torch.tensor(width).double())
             for s, m in ((share, -half), (1 - share, half))]  # fmt: skip
    return torch.logsumexp(torch.stack(parts), 0)


XS = torch.linspace(-60, 60, 24001, dtype=torch.float64)


def divergences(mean: Any, width: Any, reference: dict[str, float], xs: Tensor = XS) -> dict[str, Tensor]:
    """Both KLs and the expected reward of N(mean, width²); `mean` and `width` may be tensors [..., 1]."""
    mean, width = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(width, dtype=torch.float64)
    own, other = log_normal(xs, mean, width), log_reference(xs, **reference)
    return {
        "forward": simpson(other.exp() * (other - own), xs),
        "reverse": simpson(own.exp() * (own - other), xs),
        "reward": simpson(own.exp() * torch.sigmoid(xs), xs),
    }


def objective_gradient(direction: str, mean: float, width: float, reference: dict[str, float], beta: float) -> Tensor:
    """The natural gradient in (mean, log width) of KL − reward/β; without a reward for β = 0."""
    at = torch.tensor([mean, width], dtype=torch.float64).log().nan_to_num()
    at[0] = mean
    at.requires_grad_()
    found = divergences(at[0], at[1].exp(), reference)
    loss = found[direction] - (found["reward"] / beta if beta else 0)
    (gradient,) = torch.autograd.grad(loss, at)
    return gradient * torch.tensor([width**2, 0.5], dtype=torch.float64)


def grid_search(reference: dict[str, float], means: tuple[float, float], widths: tuple[float, float]) -> list[float]:
    """(mean, width) of the least reverse KL in a box, by grids of 21 × 21 that close in on it."""
    xs = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    for _ in range(8):
        m, w = (torch.linspace(*ends, 21, dtype=torch.float64) for ends in (means, widths))
        pairs = torch.cartesian_prod(m, w)
        best = pairs[divergences(pairs[:, :1], pairs[:, 1:], reference, xs)["reverse"].argmin()].tolist()
        steps = [float(m[1] - m[0]), float(w[1] - w[0])]
        means, widths = ((b - 2 * s, b + 2 * s) for b, s in zip(best, steps, strict=True))
    return best


def test_the_oracle_knows_the_kl_of_two_gaussians() -> None:
    one = {"distance": 0.0, "share": 0.5, "width": 1.5}
    found = divergences(1.0, 0.5, one)
    forward = torch.log(torch.tensor(0.5 / 1.5, dtype=torch.float64)) + (1.5**2 + 1) / (2 * 0.5**2) - 0.5
    reverse = torch.log(torch.tensor(1.5 / 0.5, dtype=torch.float64)) + (0.5**2 + 1) / (2 * 1.5**2) - 0.5
    assert found["forward"].item() == pytest.approx(forward.item(), rel=1e-9)
    assert found["reverse"].item() == pytest.approx(reverse.item(), rel=1e-9)


# ---- the page --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_kls(tmp_path_factory.mktemp("explain") / "two_kls.html")


@pytest.fixture(scope="module")
def still(browser: Any, page_file: Path) -> Iterator[Visit]:
    with Visit(browser, page_file, drawn=False, reduced_motion="reduce") as visit:
        yield visit
        assert visit.messages == []
        assert visit.requests == [page_file.as_uri()]


@pytest.fixture
def visit(still: Visit) -> Visit:
    still.page.reload()
    still.requests[1:] = []
    return still


def choose(visit: Visit, **settings: float) -> None:
    for name, value in settings.items():
        visit.page.locator(f"#kl-{name.replace('_', '-')}").fill(f"{value:g}")


def policy(visit: Visit, direction: str) -> tuple[float, float]:
    data = visit.get("(id) => ({...document.getElementById(id).dataset})", f"kl-{direction}")
    return float(data["mean"]), float(data["width"])


def number(visit: Visit, name: str) -> float:
    """A number in full; what is shown must be its rounding."""
    script = "(id) => { const n = document.getElementById(id); return [n.textContent, n.dataset.value]; }"
    shown, value = visit.get(script, f"kl-{name}")
    scale, step = (0.01, 0.005) if shown.endswith("%") else (1, 0.0005)
    assert float(shown.rstrip(" %").replace("−", "-")) * scale == pytest.approx(float(value), abs=step + 1e-9)
    return float(value)


SETTINGS: list[dict[str, float]] = [
    {},
    {"start": -5, "start_width": 0.3},
    {"start": 4, "start_width": 3, "distance": 9, "width": 0.4, "share": 0.1},
    {"distance": 0, "width": 1.4, "start": 1.5},
    {"distance": 2, "share": 0.9, "start_width": 2},
]


@in_a_browser
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_numbers_are_those_of_the_quadrature(visit: Visit, settings: dict[str, float]) -> None:
    choose(visit, **settings)
    reference = {**GIVEN, **{name: settings[name] for name in GIVEN if name in settings}}
    for steps in range(2):
        for direction in ("forward", "reverse"):
            mean, width = policy(visit, direction)
            if not steps:
                assert (mean, width) == (settings.get("start", -0.5), settings.get("start_width", 1))
            expected = divergences(mean, width, reference)
            for name in ("forward", "reverse", "reward"):
                assert number(visit, f"{direction}-{name}") == pytest.approx(expected[name].item(), rel=1e-7, abs=1e-9)
            own, other = log_normal(XS, mean, width).exp(), log_reference(XS, **reference).exp()
            outside = (XS - mean).abs() > 1.959964 * width
            assert number(visit, f"{direction}-forgets") == pytest.approx(simpson(other * outside, XS).item(), abs=0.01)
            dense = other.sort(descending=True).values
            floor = dense[((dense.cumsum(0) * (XS[1] - XS[0])) >= 0.95).nonzero()[0, 0]]
            invented = simpson(own * (other < floor), XS).item()
            assert number(visit, f"{direction}-invents") == pytest.approx(invented, abs=0.01)
        visit.page.click("#kl-step")


@in_a_browser
@pytest.mark.parametrize("beta", [0, 0.5])
def test_a_step_follows_the_natural_gradient(visit: Visit, beta: float) -> None:
    if beta:
        visit.page.check("#kl-rewarded")
        choose(visit, beta=-0.3)  # 10^-0.3 = 0.501
    before = {direction: policy(visit, direction) for direction in ("forward", "reverse")}
    visit.page.click("#kl-step")
    for direction, (mean, width) in before.items():
        moved = policy(visit, direction)
        expected = -RATE * objective_gradient(direction, mean, width, GIVEN, 10**-0.3 if beta else 0)
        log_width = torch.tensor(moved[1] / width, dtype=torch.float64).log().item()
        assert moved[0] - mean == pytest.approx(expected[0].item(), rel=1e-6)
        assert log_width == pytest.approx(expected[1].clamp(-0.12, 0.12).item(), rel=1e-6)


@in_a_browser
@pytest.mark.parametrize("settings", [{}, {"share": 0.25, "distance": 7, "start": 3}, {"width": 1.2, "start_width": 2}])
def test_the_forward_fit_has_the_mean_and_the_variance_of_the_reference(
    visit: Visit, settings: dict[str, float]
) -> None:
    choose(visit, **settings)
    visit.page.click("#kl-finish")
    reference = {**GIVEN, **{name: settings[name] for name in GIVEN if name in settings}}
    half, share = reference["distance"] / 2, reference["share"]
    mean = (1 - 2 * share) * half
    deviation = (reference["width"] ** 2 + 4 * share * (1 - share) * half**2) ** 0.5
    assert policy(visit, "forward") == pytest.approx((mean, deviation), rel=1e-6)
    assert visit.page.inner_text("#kl-forward-verdict") == "The bump covers both bumps, and the gap between them."


@in_a_browser
@pytest.mark.parametrize(("start", "side"), [(-0.5, "left"), (1.5, "right")])
def test_the_reverse_fit_sits_on_one_bump(visit: Visit, start: float, side: str) -> None:
    choose(visit, start=start)
    visit.page.click("#kl-finish")
    box = (-4.0, -1.0) if side == "left" else (1.0, 4.0)
    best = grid_search(GIVEN, box, (0.3, 1.6))
    assert policy(visit, "reverse") == pytest.approx(best, rel=1e-3)
    share = 0.6 if side == "left" else 0.4
    price = -torch.tensor(share).log().item()  # what the page says that leaving the other bump out costs
    assert number(visit, "reverse-reverse") == pytest.approx(price, abs=0.005)
    assert visit.page.inner_text("#kl-reverse-verdict") == f"The bump sits on the {side} bump and forgets the other."


@in_a_browser
def test_with_a_reward_the_strength_reverses_the_order(visit: Visit) -> None:
    """As the page says: from where both lie without one, the forward bump earns more at β = 0.5 and less at 0.2."""
    visit.page.click("#kl-finish")
    visit.page.check("#kl-rewarded")
    earned = {}
    for exponent, beta in ((-0.3, 0.5), (-0.7, 0.2)):
        choose(visit, beta=exponent)
        visit.page.click("#kl-finish")
        for direction in ("forward", "reverse"):
            where = policy(visit, direction)
            assert objective_gradient(direction, *where, GIVEN, 10**exponent).abs().max() < 1e-7
            earned[direction, beta] = number(visit, f"{direction}-reward")
    assert earned["reverse", 0.5] < 0.15 and earned["forward", 0.5] > 0.6
    assert earned["reverse", 0.2] > 0.9 > earned["forward", 0.2] + 0.05
    choose(visit, beta=-0.3)
    visit.page.click("#kl-reset")
    visit.page.click("#kl-finish")
    assert policy(visit, "reverse")[0] > 2, "with the reward from the start it goes right at once"


@in_a_browser
@pytest.mark.parametrize("preset", ["one", "both", "smaller", "rare", "none"])
def test_the_choice_among_words_is_optimal_in_either_direction(visit: Visit, preset: str) -> None:
    """Both objectives are concave, so that equal slopes at every word prove the optimum."""
    visit.page.select_option("#kl-preset", preset)
    for exponent in (-1.5, -0.6, 0.5):
        choose(visit, word_beta=exponent)
        data = visit.get("({...document.getElementById('kl-words').dataset})")
        q, r, forward, reverse = (
            torch.tensor(json.loads(data[name]), dtype=torch.float64)
            for name in ("reference", "rewards", "forward", "reverse")
        )
        beta = float(data["beta"])
        assert beta == pytest.approx(10**exponent)
        for masses in (q, forward, reverse):
            assert masses.min() > 0 and masses.sum().item() == pytest.approx(1, abs=1e-12)
        slopes = {"forward": r + beta * q / forward, "reverse": r - beta * (reverse / q).log()}
        for slope in slopes.values():
            assert (slope - slope[0]).abs().max() < 1e-9
        if preset == "none":
            torch.testing.assert_close(torch.stack([forward, reverse]), torch.stack([q, q]))
        kl = (q * (q / reverse).log()).sum().item()
        assert visit.page.inner_text("#kl-words-reverse-forward") == f"{abs(kl):.2f}"


@in_a_browser
def test_a_words_reward_is_changed_by_pressing_it(visit: Visit) -> None:
    awful = visit.page.get_by_role("button", name="awful has reward 0")
    awful.focus()
    visit.page.keyboard.press("Enter")
    assert visit.page.get_by_role("button", name="awful has reward ½").count() == 1
    assert visit.page.input_value("#kl-preset") == "own"
    visit.page.keyboard.press("Space")
    visit.page.keyboard.press("Space")
    assert visit.page.input_value("#kl-preset") == "one"


# ---- how it behaves --------------------------------------------------------------------------------------------


@in_a_browser
def test_it_moves_by_itself_to_the_end_and_can_be_paused(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file, drawn=False, clock=True) as visit:
        until(visit, "document.getElementById('kl-count').textContent !== 'step 0'")
        visit.page.click("text=Pause")
        count = visit.page.inner_text("#kl-count")
        visit.page.wait_for_timeout(200)
        assert visit.page.inner_text("#kl-count") == count
        visit.page.click("text=Play")
        visit.page.clock.run_for(30_000)
        until(visit, "document.getElementById('kl-play').textContent === 'Play again'")
        assert policy(visit, "forward") == pytest.approx((-0.5, 2.5768), rel=0.01)
        assert visit.page.inner_text("#kl-status").startswith("Arrived.")
        assert (visit.messages, visit.requests) == ([], [page_file.as_uri()])


@in_a_browser
def test_it_stands_still_for_those_who_want_no_motion(visit: Visit) -> None:
    visit.page.wait_for_timeout(400)
    assert visit.page.inner_text("#kl-count") == "step 0"
    visit.page.check("#kl-rewarded")
    visit.page.wait_for_timeout(200)
    assert visit.page.inner_text("#kl-count") == "step 0"


@in_a_browser
def test_what_is_said_aloud_waits_while_the_picture_moves(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file, drawn=False) as visit:
        counted = visit.get(
            """() => new Promise((done) => {
                let [said, drawn] = [0, 0];
                const count = (id, act) => new MutationObserver(act).observe(
                    document.getElementById(id), { childList: true });
                count("kl-status", () => { said += 1; });
                count("kl-count", () => { drawn += 1; });
                setTimeout(() => done([said, drawn]), 1500);
            })"""
        )
        assert counted[0] <= 1 and counted[1] > 5, counted


def box_of(visit: Visit, selector: str) -> tuple[float, float]:
    box = visit.page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@in_a_browser
def test_bumps_can_be_dragged(visit: Visit) -> None:
    def drag(selector: str, dx: float, dy: float) -> None:
        x, y = box_of(visit, selector)
        visit.page.mouse.move(x, y)
        visit.page.mouse.down()
        visit.page.mouse.move(x + dx, y + dy, steps=4)
        visit.page.mouse.up()

    value: Callable[[str], float] = lambda name: float(visit.page.input_value(f"#kl-{name}"))  # noqa: E731
    drag("#kl-forward .kl-of-policy", 90, 30)
    assert value("start") > 0.5 and value("start-width") > 1.1
    assert policy(visit, "reverse") == (value("start"), value("start-width"))
    drag("#kl-reverse .kl-of-reference >> nth=1", 50, -20)
    assert value("distance") > 5.5 and value("share") < 0.55


@in_a_browser
@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_never_scrolls_sideways(visit: Visit, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 844})
    try:
        visit.page.check("#kl-rewarded")
        visit.page.click("#kl-finish")
        until(visit, f"document.getElementById('kl-words-picture').viewBox.baseVal.width <= {width}")
        scroll, client, outside = visit.get(OVERFLOW)
        words = visit.get("[...document.querySelectorAll('.kl-word')].map((n) => n.scrollWidth - n.clientWidth)")
        is_wide = "(n) => [n.scrollWidth > n.clientWidth + 1, 'wider' in n.dataset]"
        tables = visit.get(f"[...document.querySelectorAll('.scroll')].map({is_wide})")
    finally:
        visit.page.set_viewport_size({"width": 1280, "height": 900})
    # A bump may be wider than its picture, which cuts it off.
    outside = [node for node in outside if not node.startswith("<path")]
    assert (scroll, client, outside) == (width, width, [])
    assert max(words) <= 0
    assert all(wider == said for wider, said in tables) and [True, True] in tables, "a table that is cut off says so"


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(visit: Visit, scheme: str) -> None:
    visit.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    try:
        visit.page.check("#kl-rewarded")
        count, worst = visit.get(CONTRAST)
    finally:
        visit.page.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert count > 80
    assert worst[0][0] >= 4.5, worst


@in_a_browser
def test_every_control_has_a_name_and_the_keyboard_reaches_it(visit: Visit) -> None:
    controls = "#two-kls :is(input, select, button, summary, [tabindex])"
    names = visit.get(f"""[...document.querySelectorAll("{controls}")].map((n) =>
        n.getAttribute("aria-label") || n.labels?.[0]?.textContent.trim() || n.textContent.trim())""")
    assert len(names) > 20 and all(names)
    visit.page.check("#kl-rewarded")
    visit.get("document.activeElement.blur()")
    reached = []
    for _ in range(len(names) + 2):
        visit.page.keyboard.press("Tab")
        reached.append(visit.get(f"[...document.querySelectorAll('{controls}')].indexOf(document.activeElement)"))
    assert set(range(len(names))) <= set(reached)
    visit.page.focus("#kl-share")
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.inner_text("#kl-share-value") == "61 %"
    assert visit.page.get_attribute("#kl-share", "aria-valuetext") == "61 %"
    assert "two bumps" in (visit.page.get_attribute("#kl-forward-picture", "aria-label") or "")


@in_a_browser
def test_paper_shows_both_ends_and_the_screen_goes_on_where_it_was(visit: Visit) -> None:
    visit.page.click("#kl-step")
    before = policy(visit, "reverse")
    visit.page.emulate_media(media="print")
    try:
        visit.get("dispatchEvent(new Event('beforeprint'))")
        assert policy(visit, "forward") == pytest.approx((-0.5, 2.5768), rel=1e-3)
        assert policy(visit, "reverse")[0] == pytest.approx(-2.49, abs=0.01)
        assert not visit.page.is_visible("#kl-play")
        visit.get("dispatchEvent(new Event('afterprint'))")
    finally:
        visit.page.emulate_media(media="screen")
    assert policy(visit, "reverse") == before
    assert visit.page.inner_text("#kl-count") == "step 1"


@in_a_browser
def test_the_script_does_nothing_on_a_page_without_the_section(browser: Any, tmp_path: Path) -> None:
    script = files("tdpo.report").joinpath("templates", "two_kls.js").read_text(encoding="utf-8")
    (tmp_path / "empty.html").write_text(f"<!doctype html><body><p>Nothing.</p><script>{script}</script></body>")
    with Visit(browser, tmp_path / "empty.html", drawn=False) as visit:
        assert visit.messages == []


# ---- the file and the command ----------------------------------------------------------------------------------


def test_the_file_is_small_and_holds_everything(page_file: Path) -> None:
    page = page_file.read_text(encoding="utf-8")
    assert page_file.stat().st_size < 90_000
    assert "{{" not in page and "{%" not in page
    assert "style=" not in page and "onclick" not in page and "src=" not in page
    assert page == write_two_kls(page_file).read_text(encoding="utf-8")


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        IsADirectoryError, match=r"is a folder; give the page a file name, for instance .*two_kls\.html"
    ):
        write_two_kls(tmp_path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install .*\[eval\]"):
        write_two_kls(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_where_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tdpo", "explain", "--out", "made/page.html"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = "".join(capfd.readouterr()).replace("\n", "")
    assert ended.value.code in (0, None)
    assert (tmp_path / "made/page.html").exists()
    assert (tmp_path / "made/page.html").as_uri() in said
