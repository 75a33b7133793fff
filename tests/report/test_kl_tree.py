"""The tree of tokens on the page of `tdpo explain`, driven in headless Chromium: its optima against `tdpo.exact`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.browsing import Visit, until
from tdpo.exact import optima
from tdpo.exact.compared_methods import METHODS
from tdpo.exact.measures import distance, measure
from tdpo.exact.objectives import BESIDE_KL, PAIR_LOSSES, STOPS_A_GRADIENT, all_pairs, pair_objective
from tdpo.exact.tabular_problems import REWARDS, Problem, make_problem
from tdpo.exact.trees import Tree
from tdpo.kl_choices import kl_obstacle
from tdpo.report import write_two_kls

pytestmark = pytest.mark.browser
Tensor = torch.Tensor
NEAR = 1e-6  # of a number in nats, and of a total variation; Newton's last steps come much nearer
COLUMNS = {"reward": "reward", "forward": "forward_kl", "reverse": "reverse_kl", "entropy": "entropy",
         "modes": "effective_modes"}  # fmt: skip
# place and direction on the page, to the method of the exact benchmark
KINDS = {
    ("reward", "reverse"): "rewards_reverse",
    ("loss", "reverse"): "rewards_reverse_loss",
    ("loss", "forward"): "rewards_forward_loss",
    ("sigmoid", "reverse"): "dpo",
    ("sigmoid", "forward"): "tdpo2",
    ("beside", "reverse"): "dpo_reverse",
    ("beside", "forward"): "dpo_forward",
}


@pytest.fixture(scope="module")
def visit(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    page_file = write_two_kls(tmp_path_factory.mktemp("explain") / "two_kls.html")
    with Visit(browser, page_file, drawn=False, reduced_motion="reduce") as visit:
        yield visit
        assert visit.messages == []
        assert visit.requests == [page_file.as_uri()]


def problem_of(rewards: str) -> Problem:
    return make_problem(Tree(3, 3), "peaked", rewards)


def choose(
    visit: Visit, place: str, direction: str, rewards: str = "rare", strength: float = -0.7
) -> tuple[float, dict[str, Tensor]]:
    """The coefficient that the page says it uses, and its tables [13, 3] of reference, policy and optimum."""
    choices = {"place": place, "direction": direction, "rewards": rewards, "strength": f"{strength:g}"}
    script = """(choices) => {
        for (const [name, value] of Object.entries(choices)) document.getElementById(`tree-${name}`).value = value;
        document.getElementById("tree-strength").dispatchEvent(new Event("input"));
        return document.getElementById("kl-tree").dataset.coefficient;
    }"""
    return float(visit.get(script, choices)), tables(visit)


def tables(visit: Visit) -> dict[str, Tensor]:
    data = visit.get("({...document.getElementById('kl-tree').dataset})")
    names = ("reference", "policy", "optimum")
    return {name: torch.tensor(json.loads(data[name]), dtype=torch.float64).view(13, 3) for name in names}


def numbers_on(visit: Visit) -> dict[str, tuple[str, str]]:
    """What every cell of the table shows, and its number in full."""
    return visit.get("""Object.fromEntries([...document.querySelectorAll("#kl-tree td")].map(
        (n) => [n.id, [n.textContent, n.dataset.value]]))""")


def sentences(visit: Visit) -> set[str]:
    return set(
        visit.get("""[...document.querySelectorAll("#kl-tree [data-says]")]
        .filter((n) => n.checkVisibility()).map((n) => n.dataset.says)""")
    )


@pytest.mark.parametrize("rewards", REWARDS)
def test_the_problem_is_one_of_the_exact_benchmark(visit: Visit, rewards: str) -> None:
    problem = problem_of(rewards)
    _, at = choose(visit, "loss", "forward", rewards, 1)
    torch.testing.assert_close(at["reference"], problem.reference)
    own = torch.tensor(json.loads(visit.get("document.getElementById('kl-tree').dataset.rewards")), dtype=torch.float64)
    torch.testing.assert_close(own, problem.rewards)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_optimum_is_that_of_the_exact_benchmark(visit: Visit, kind: tuple[str, str]) -> None:
    name = KINDS[kind]
    for rewards, strengths in {"rare": (0.0, -0.7, -1.0), "equal": (-0.4,), "common": (0.5,)}.items():
        problem = problem_of(rewards)
        best = problem.reference
        for exponent in strengths:
            strength, at = choose(visit, *kind, rewards, exponent)
            best = METHODS[name].optimum(problem, strength, best)
            logp = problem.tree.response_logp
            assert distance(logp(at["optimum"]), logp(best)) < NEAR, (rewards, exponent)
            numbers, own, cells = measure(problem, best), measure(problem, at["policy"]), numbers_on(visit)
            for column, name_of_measure in COLUMNS.items():
                for row, expected in {"optimum": numbers[name_of_measure], "policy": own[name_of_measure]}.items():
                    text, value = cells[f"tree-{row}-{column}"]
                    assert float(value) == pytest.approx(expected.item(), abs=NEAR), (column, row)
                    assert text == f"{abs(float(value)):.3f}"


def test_where_there_are_several_minima_one_is_shown(visit: Visit) -> None:
    """DPO with the reverse KL beside it; which of its minima a search finds depends on where it begins."""
    problem = problem_of("common")
    for exponent in (-0.6, -1.0):
        strength, at = choose(visit, "beside", "reverse", "common", exponent)
        loss = pair_objective(problem, all_pairs(problem), "dpo_reverse", strength)
        logits = at["optimum"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits), logits)
        assert gradient.abs().max() < 1e-8
        noise = torch.randn(50, 13, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert (loss(at["optimum"] + 0.05 * noise) >= loss(at["optimum"])).all()


@pytest.mark.parametrize("kind", [k for k, n in KINDS.items() if n in {**PAIR_LOSSES, **BESIDE_KL}], ids="-".join)
def test_every_step_goes_down_the_loss_of_pairs(visit: Visit, kind: tuple[str, str]) -> None:
    strength, _ = choose(visit, *kind)
    problem = problem_of("rare")
    loss = pair_objective(problem, all_pairs(problem), KINDS[kind], strength)
    visit.page.click("#tree-reset")
    at = tables(visit)["policy"]
    torch.testing.assert_close(at, problem.reference)
    for _ in range(8):
        visit.page.click("#tree-step")
        after = tables(visit)["policy"]
        logits = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits), logits)
        assert ((after - at) * gradient).sum() < 0
        if KINDS[kind] not in STOPS_A_GRADIENT:  # the value of such a loss need not fall
            assert loss(after) < loss(at)
        at = after
    visit.page.click("#tree-finish")
    torch.testing.assert_close(tables(visit)["policy"], tables(visit)["optimum"])


def test_what_tdpo_refuses_is_refused_here(visit: Visit) -> None:
    assert kl_obstacle("forward", "sampled", "reward") and kl_obstacle("forward", "exact", "reward")
    choose(visit, "reward", "forward")
    assert sentences(visit) == {"reward-forward", "rare"}
    assert visit.page.inner_text("#tree-count") == "refused"
    assert visit.page.is_disabled("#tree-play") and visit.page.is_disabled("#tree-step")
    assert visit.page.inner_text("#tree-optimum-reward") == "–"
    assert not visit.page.locator("#tree-picture .kl-tree-best").first.is_visible()
    choose(visit, "reward", "reverse")
    assert visit.page.is_enabled("#tree-play")


def test_each_choice_has_its_sentence(visit: Visit) -> None:
    for place, direction in KINDS:
        choose(visit, place, direction, "equal", 1)  # the tie is strongest
        assert sentences(visit) == {f"{place}-{direction}", "equal", "near"}
    choose(visit, "loss", "reverse", "common", -0.3)
    assert sentences(visit) == {"loss-reverse", "common", "between"}
    choose(visit, "loss", "reverse", "common", -1)
    assert sentences(visit) == {"loss-reverse", "common", "far"}


def test_what_the_sentences_say_is_so() -> None:
    rare, equal = problem_of("rare"), problem_of("equal")
    logp = rare.tree.response_logp
    # equal rewards: one factor for all good responses, if the KL is between responses
    for best in (optima.kl_in_reward(equal, 0.2), optima.forward_kl_of_responses(equal, 0.2)):
        factor = (logp(best) - equal.reference_logp)[equal.modes]
        torch.testing.assert_close(factor, factor[:1].expand_as(factor))
    for strength in (4.0, 0.8, 0.4):
        dpo = optima.dpo(rare, strength)
        torch.testing.assert_close(dpo, optima.kl_in_reward(rare, strength / 4))
        tdpo2 = METHODS["tdpo2"].optimum(rare, strength, rare.reference)
        assert measure(rare, tdpo2)["forward_kl"] < measure(rare, dpo)["forward_kl"]
    assert distance(logp(optima.kl_in_reward(rare, 0.2)), logp(optima.kl_in_loss(rare, "reverse", 0.2))) > 0.02
    # at the reward of the forward KL at 0.1, the reverse KL has less of the best and more of the second best
    forward = optima.kl_in_loss(rare, "forward", 0.1)
    low, high = 0.1, 0.2
    for _ in range(40):
        middle = (low + high) / 2
        reverse = optima.kl_in_loss(rare, "reverse", middle)
        enough = measure(rare, reverse)["reward"] > measure(rare, forward)["reward"]
        low, high = (middle, high) if enough else (low, middle)
    best, second = rare.rewards.argsort(descending=True)[:2]
    assert logp(forward)[best] > logp(reverse)[best] and logp(forward)[second] < logp(reverse)[second]
    # beside DPO's sigmoid, the optimum of the reverse KL jumps where that of the forward KL goes little by little
    jumps = {}
    for name in ("dpo_forward", "dpo_reverse"):
        best, kls = rare.reference, []
        for strength in torch.logspace(-0.4, -1.2, 9, dtype=torch.float64).tolist():
            best = METHODS[name].optimum(rare, strength, best)
            kls.append(measure(rare, best)["forward_kl"].item())
        jumps[name] = max(after - before for before, after in itertools.pairwise(kls))
    assert jumps["dpo_forward"] < 2 and jumps["dpo_reverse"] > 8


def test_a_policy_at_the_optimum_moves_with_the_strength(visit: Visit) -> None:
    choose(visit, "loss", "forward")
    visit.page.click("#tree-finish")
    visit.page.focus("#tree-strength")
    visit.page.keyboard.press("ArrowLeft")
    assert visit.page.get_attribute("#tree-strength", "aria-valuetext") == "c = 0.18"
    at = tables(visit)
    torch.testing.assert_close(at["policy"], at["optimum"])
    assert visit.page.inner_text("#tree-status").startswith("At the optimum: reward 0.7")
    visit.page.focus("#tree-place")
    visit.page.keyboard.press("ArrowUp")
    assert sentences(visit) == {"beside-forward", "rare", "between"}


def test_paper_shows_the_optimum_and_the_screen_goes_on(visit: Visit) -> None:
    choose(visit, "sigmoid", "forward")
    visit.page.click("#tree-reset")
    visit.page.click("#tree-step")
    before = tables(visit)["policy"]
    visit.page.emulate_media(media="print")
    try:
        visit.get("dispatchEvent(new Event('beforeprint'))")
        at = tables(visit)
        torch.testing.assert_close(at["policy"], at["optimum"])
        assert not visit.page.is_visible("#tree-play") and visit.page.is_visible("#tree-place")
        visit.get("dispatchEvent(new Event('afterprint'))")
    finally:
        visit.page.emulate_media(media="screen", reduced_motion="reduce")
    torch.testing.assert_close(tables(visit)["policy"], before)


def test_it_plays_by_itself_and_can_be_paused(browser: Any, tmp_path: Path) -> None:
    with Visit(browser, write_two_kls(tmp_path / "page.html"), drawn=False) as visit:
        visit.page.locator("#tree-picture").scroll_into_view_if_needed()
        until(visit, "!document.getElementById('tree-count').textContent.startsWith('step 0')")
        visit.page.click("#tree-play")
        count = visit.page.inner_text("#tree-count")
        visit.page.wait_for_timeout(150)
        assert visit.page.inner_text("#tree-count") == count and not count.startswith("step 0")
        visit.page.click("#tree-play")
        until(visit, "document.getElementById('tree-play').textContent === 'Play again'")
        at = tables(visit)
        torch.testing.assert_close(at["policy"], at["optimum"])
        assert visit.messages == []


def test_the_scripts_do_nothing_on_a_page_without_the_tree(browser: Any, tmp_path: Path) -> None:
    names = ("kl_tree_math.js", "kl_tree.js")
    texts = [files("tdpo.report").joinpath("templates", name).read_text(encoding="utf-8") for name in names]
    scripts = "".join(f"<script>{text}</script>" for text in texts)
    (tmp_path / "empty.html").write_text(f"<!doctype html><body><p>Nothing.</p>{scripts}")
    with Visit(browser, tmp_path / "empty.html", drawn=False) as visit:
        assert visit.messages == []
