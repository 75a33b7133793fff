"""A study's own claims: judged by the rules of the built-in ones, and free to change once the runs are there."""

from __future__ import annotations

from typing import Any

from helpers.comparison_cases import study
from tdpo.comparison.claims import judge_claims
from tdpo.comparison.questions import questions_of
from tdpo.comparison.study import _changed
from tdpo.config import Claim, built_in_claims, load_study
from tdpo.methods import ARMS

FEW = 300
BASE: dict[str, Any] = {
    "study_dir": "runs/own",
    "tasks": [{"environment": {"name": "sentiment"}}],
    "arms": [{"name": name, "strengths": [0.1]} for name in ("dpo", "tdpo2")],
}


def claim_of(text: str, **part: Any) -> Claim:
    values = {"arm": "dpo", "against": ["tdpo2"], "metric": "embedding_diversity", "at_matched": ["reward_mean"]}
    return Claim.model_validate({"text": text, "parts": [{**values, **part}]})


def test_a_question_of_ones_own_is_judged_and_can_be_contradicted() -> None:
    table = study(arms=("reference", "dpo", "tdpo2"), noise=0.01, diversity={"tdpo2": 0.05})
    more, less = claim_of("DPO says more.", unit="1 − cosine"), claim_of("DPO says less.", says="less")
    judged = judge_claims(table, claims=[more, less], resamples=FEW)["claims"]
    assert [(claim["id"], claim["text"], claim["verdict"]) for claim in judged] == [
        ("1", "DPO says more.", "contradicted"),
        ("2", "DPO says less.", "supported"),
    ]
    (part,), (turned,) = (claim["parts"] for claim in judged)
    assert part["text"] == "DPO against TDPO2, at matched reward" and part["unit"] == "1 − cosine"
    assert part["value"] == -turned["value"] < 0 and turned["unit"] == ""


def test_it_gets_the_numbers_that_the_built_in_claim_has() -> None:
    table = study(arms=("reference", "dpo", "tdpo2"), noise=0.01, diversity={"tdpo2": 0.05})
    own = claim_of("TDPO2 says more.", arm="tdpo2", against=["dpo"])
    mine = judge_claims(table, claims=[own], resamples=FEW)["claims"][0]["parts"][0]
    theirs = judge_claims(table, resamples=FEW)["claims"][0]["parts"]
    assert mine in theirs


def test_optional_parts_are_left_out_without_their_arm_and_others_stay() -> None:
    modes = built_in_claims()[3]
    whole, smaller = questions_of(modes, ARMS), questions_of(modes, set(ARMS) - {"ppo_reverse_exact"})
    assert [question for question in whole if question.second != "ppo_reverse_exact"] == smaller
    assert len(whole) == 2 * len(smaller) == 18
    assert questions_of(modes, {"dpo"}) == smaller  # these are asked, and stay open


def test_claims_may_change_when_the_runs_are_there() -> None:
    before = load_study(BASE)
    after = load_study({**BASE, "claims": [claim_of("New.").model_dump()]})
    assert _changed(before, after) == [] and _changed(before, load_study({**BASE, "budget": 96})) != []
