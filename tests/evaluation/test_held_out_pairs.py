"""Held-out pairs: ties at the start, log-ratios against the base, and prompts as clusters."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.tiny_models import build_model
from helpers.training_cases import different_model, pair_numbers
from tdpo.batches import TokenizedPair
from tdpo.evaluation.held_out_pairs import evaluate_pairs
from tdpo.models import reference_for
from tdpo.scoring.configured_loss import configured_loss
from tdpo.scoring.policy_statistics import PolicyStatistics

# Six pairs of two prompts; the third pair of each has a longer response, so that batches differ in shape.
PAIRS = [
    TokenizedPair.of([5, 6 + prompt], [20 + number] * (2 + 3 * (number == 2)), [40 + number, 9])
    for prompt in range(2)
    for number in range(3)
]  # fmt: skip


def judged(policy: Any, reference: Any, **more: Any) -> dict[str, Any]:
    statistics = PolicyStatistics.of(policy, reference_for(policy, reference))
    loss = configured_loss("tdpo2", 0.1, 0.5, 0.0).of_pairs
    return evaluate_pairs(policy, statistics, loss, PAIRS, pad_token_id=0, batch_size=4, **more)


def test_a_model_against_itself_is_right_in_half_of_the_pairs() -> None:
    found = judged(build_model("llama"), build_model("llama"))
    assert (found["count"], found["prompts"], found["accuracy"]) == (6, 2, 0.5)
    low, high = found["intervals"]["accuracy"]
    assert low < 0.15 and high > 0.85, "two prompts that are alike say hardly anything"
    assert found["chosen_log_ratio"] == pytest.approx(0.0, abs=1e-5)


def test_log_ratios_are_those_of_the_oracle_and_intervals_those_of_prompts() -> None:
    policy, reference = different_model(build_model("llama"), 0.3), build_model("llama")
    found = judged(policy, reference)
    expected = pair_numbers(policy, reference, PAIRS)
    for side, name in enumerate(("chosen_log_ratio", "rejected_log_ratio")):
        assert found[name] == pytest.approx(sum(pair[side]["log_ratio"] for pair in expected) / 6, abs=1e-4)
    assert all(limits is None for name, limits in found["intervals"].items() if name != "accuracy"), "two prompts"
    apart = judged(policy, reference, prompts=range(6))
    assert apart["prompts"] == 6 and all(low < high for low, high in apart["intervals"].values())
    wide, narrow = (high - low for low, high in (found["intervals"]["accuracy"], apart["intervals"]["accuracy"]))
    assert wide >= narrow
    assert "bootstrap over prompts" in found["method"] and "Wilson" in found["method"]
