"""What docs/study/exact/README.md says is what its tables say."""

from __future__ import annotations

import csv
import json
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from tdpo.exact.settings import Settings

FOLDER = Path(__file__).parents[2] / "docs/study/exact"
TREES, SHAPES, REWARDS = ("7^1", "20^1", "3^3"), ("peaked", "flat", "multimodal"), ("equal", "common", "rare")
ALL = list(product(TREES, SHAPES, REWARDS))
GRADED = [problem for problem in ALL if problem[2] != "equal"]
TOKEN = [problem for problem in GRADED if problem[0] != "3^3"]
FORWARD, REVERSE, IN_REWARD = "rewards_forward_loss", "rewards_reverse_loss", "rewards_reverse"
Where = tuple[str, str, str]


@cache
def rows(table: str) -> list[dict[str, str]]:
    with (FOLDER / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def of(table: str, where: Where, method: str) -> list[dict[str, str]]:
    return [r for r in rows(table) if (r["tree"], r["shape"], r["rewards"], r["method"]) == (*where, method)]


def at(where: Where, method: str, matched: str, column: str) -> float | None:
    """`matched` is half, most, forward_kl or reverse_kl."""
    name = {"half": "reward", "most": "reward"}.get(matched, matched)
    targets = sorted({float(r["target"]) for r in of("matched", where, "dpo") if r["matched"] == name})
    target = targets[-1] if matched == "most" else targets[0] if targets else None
    found = [r for r in of("matched", where, method) if r["matched"] == name and float(r["target"]) == target]
    return float(found[0][column]) if found else None


def value(where: Where, method: str, matched: str, column: str = "effective_modes") -> float:
    found = at(where, method, matched, column)
    assert found is not None, (where, method, matched)
    return found


def fewer(first: str, second: str, matched: str, problems: list[Where]) -> int:
    """In how many problems `first` has fewer effective modes than `second`, by more than rounding."""
    pairs = [(at(p, first, matched, "effective_modes"), at(p, second, matched, "effective_modes")) for p in problems]
    return sum(a is not None and b is not None and a < b - 1e-3 for a, b in pairs)


def learned(where: Where, method: str, learner: str, scored: int, column: str) -> float:
    [row] = [r for r in of("finite", where, method) if r["learner"] == learner and int(r["scored"]) == scored]
    return float(row[column])


def has(method: str, matched: str) -> int:
    return sum(at(p, method, matched, "reward") is not None for p in ALL)


@cache
def paragraphs() -> dict[str, str]:
    """The page's sentences by how they begin, without line breaks."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\n- ", "\n\n- ")
    return {part.strip().lstrip("-* ")[:14]: " ".join(part.split()) for part in text.split("\n\n")}


def say(beginning: str, *expected: str) -> None:
    [text] = [part for start, part in paragraphs().items() if start.startswith(beginning)]
    assert [words for words in expected if words not in text] == []


PEAKED, FLAT, MODES = (("20^1", shape, "rare") for shape in SHAPES)


def test_1_equal_rewards() -> None:
    where = ("20^1", "peaked", "equal")
    same = (FORWARD, REVERSE, IN_REWARD, "dpo", "tdpo1", "tdpo2", "f_dpo_forward", "f_dpo_js", "dpo_forward")
    for tree, shape in product(("7^1", "20^1"), SHAPES):
        found = {round(value((tree, shape, "equal"), method, "half", "entropy"), 3) for method in same}
        assert max(found) - min(found) < 2e-3
    say(
        "1.", f"{value(where, 'dpo', 'half', 'entropy'):.2f} nats of entropy",
        f"{value(where, 'dpo', 'half'):.2f} effective modes", f"{value(where, 'sft_forward', 'half'):.2f} modes",
        f"the least, {value(where, 'cooled', 'half'):.2f}",
    )  # fmt: skip


def test_2_graded_rewards() -> None:
    trees = [p for p in GRADED if p not in TOKEN]
    half = [f"{fewer(FORWARD, REVERSE, 'half', some)} of {len(some)}" for some in (TOKEN, trees)]
    most = f"in {fewer(FORWARD, REVERSE, 'most', GRADED)} of {len(GRADED)} (20"
    pairs = [f"{value(p, FORWARD, 'half'):.2f} against {value(p, REVERSE, 'half'):.2f}" for p in (PEAKED, FLAT, MODES)]
    say("2.", f"in {half[0]} problems of one token and {half[1]} on trees", most, *pairs)


@pytest.mark.parametrize(("beginning", "kl"), [("3.", "forward_kl"), ("4.", "reverse_kl")])
def test_3_and_4_equal_kl(beginning: str, kl: str) -> None:
    more = len(TOKEN) - fewer(FORWARD, REVERSE, kl, TOKEN)
    rare = [p for p in TOKEN if p[2] == "rare" and p[1] != "flat"]
    assert more == len(rare) and fewer(FORWARD, REVERSE, kl, rare) == 0
    winner, loser = (FORWARD, REVERSE) if kl == "forward_kl" else (REVERSE, FORWARD)
    reward = f"{value(PEAKED, winner, kl, 'reward'):.3f} against {value(PEAKED, loser, kl, 'reward'):.3f}"
    modes = f"{value(PEAKED, FORWARD, kl):.2f} against {value(PEAKED, REVERSE, kl):.2f}"
    say(beginning, f"in {more} of {len(TOKEN)}", reward, modes)
    assert all(value(p, winner, kl, "reward") >= value(p, loser, kl, "reward") for p in TOKEN)


def test_5_tdpo2() -> None:
    flat, peaked = ("20^1", "flat", "common"), ("20^1", "peaked", "common")
    coverage = [
        f"{value(p, 'tdpo2', 'half', 'mode_coverage'):.2f} {words} {value(p, 'dpo', 'half', 'mode_coverage'):.2f}"
        for p, words in ((flat, "of them among 16 draws against"), (peaked, "against"))
    ]
    graded = [p for p in GRADED if at(p, "tdpo2", "half", "reward")]
    ends = {m: max(float(r["reward"]) for r in of("infinite", PEAKED, m)) for m in ("tdpo2", "dpo")}
    say(
        "5.", *coverage, f"ends at {ends['tdpo2']:.2f} over all β from 40 to 0.08 (DPO: {ends['dpo']:.2f})",
        f"in {has('tdpo2', 'half')} of 27 problems and the higher one in {has('tdpo2', 'most')}, DPO in all",
        f"than DPO in {fewer('dpo', 'tdpo2', 'half', graded)} of {len(graded)}.",
    )  # fmt: skip
    assert has("dpo", "half") == has("dpo", "most") == 27


def test_6_finite_data() -> None:
    peaked, modes = ("3^3", "peaked", "rare"), ("3^3", "multimodal", "rare")
    ppo = {n: learned(peaked, IN_REWARD, "ppo", n, "distance") for n in (50, 5000)}
    dpo = {n: learned(peaked, "dpo", "dpo", n, "distance") for n in (50, 5000)}
    say(
        "6.", f"at a distance of {ppo[50]:.2f} from its optimum and DPO at {dpo[50]:.2f}",
        f"5,000 at {ppo[5000]:.3f} and {dpo[5000]:.3f}",
        f"DPO is still at {learned(modes, 'dpo', 'dpo', 5000, 'distance'):.2f} after 5,000, "
        f"PPO at {learned(modes, IN_REWARD, 'ppo', 5000, 'distance'):.2f}",
    )  # fmt: skip


def test_pairs_against_rewards() -> None:
    same = [p for p in ALL if abs(value(p, "dpo", "half") - value(p, IN_REWARD, "half")) < 2e-3]
    where = ("3^3", "peaked", "rare")
    modes = [
        learned(where, "dpo", "dpo", 50, "effective_modes"),
        learned(where, IN_REWARD, "ppo", 50, "effective_modes"),
    ]
    say(
        "With infinite", f"in {len(same)} of 27 problems",
        f"{modes[0]:.2f} effective modes against {modes[1]:.2f} of PPO",
        f"has {value(where, 'dpo', 'half'):.2f})",
    )  # fmt: skip
    token = [p for p in ALL if p[0] != "3^3"]
    one = [p for p in token if abs(value(p, "dpo", "half") - value(p, "tdpo1", "half")) < 2e-3]
    flat = ("3^3", "flat", "common")
    say(
        "On one token", f"in {len(one)} of {len(token)} problems",
        f"{value(flat, 'tdpo1', 'half'):.2f} modes against {value(flat, 'dpo', 'half'):.2f}",
    )  # fmt: skip
    say("f-DPO", f"in {fewer('f_dpo_forward', 'dpo', 'half', GRADED)} of {len(GRADED)} graded")


def test_held_and_imitating_methods() -> None:
    both = [p for p in GRADED if at(p, "dpo_reverse", "half", "reward") and at(p, "dpo_forward", "half", "reward")]
    say(
        "DPO beside", f"in only {has('dpo_reverse', 'half')} of 27 problems (forward: {has('dpo_forward', 'half')})",
        f"in {fewer('dpo_forward', 'dpo_reverse', 'half', both)} of {len(both)}.",
    )  # fmt: skip
    say("SFT on", f"in {has('sft_forward', 'half')} of 27 problems and the higher one in {has('sft_forward', 'most')}")
    where = ("3^3", "multimodal", "rare")
    say("A KL in the", f"{value(where, IN_REWARD, 'half'):.2f} and {value(where, REVERSE, 'half'):.2f} modes")


def test_the_record_is_of_the_settings_as_they_are() -> None:
    about = json.loads((FOLDER / "about.json").read_text(encoding="utf-8"))
    assert about["settings"] == json.loads(json.dumps(Settings().record())) and len(about["problems"]) == 27
    assert about["command"] in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()


def test_a_wrong_number_is_noticed() -> None:
    with pytest.raises(AssertionError):
        say("1.", "1.26 nats of entropy")
