"""Baselines without training: which responses the best of n keeps, and the exact KLs of another temperature."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_models import build_model, build_tokenizer
from tdpo.batches import PromptResponses, ResponseBatch, ResponseCollator
from tdpo.evaluation.baselines import _Baseline, best_of_every
from tdpo.evaluation.held_out_responses import HeldOutResponses
from tdpo.models import Reference, find_head
from tdpo.sampling.sampler import SampledResponse
from tdpo.scoring.policy_statistics import PolicyStatistics


def test_the_best_of_n_is_the_first_best_of_every_n_responses() -> None:
    responses = [
        SampledResponse(prompt, at, [prompt, at], f"{prompt}{at}", True) for prompt in (0, 1) for at in range(6)
    ]
    rewards = [0.1, 0.5, 0.4, 0.9, 0.9, 0.2, 0.0, 0.0, 0.0, -2.0, -3.0, -1.0]
    best = best_of_every(HeldOutResponses(responses, rewards), 3)
    assert [(r.prompt_index, r.sample_index, r.text) for r in best.responses] == [
        (0, 0, "01"), (0, 1, "03"), (1, 0, "10"), (1, 1, "15"),
    ]  # fmt: skip
    assert best.rewards == [0.5, 0.9, 0.0, -1.0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_the_kls_of_another_temperature_are_those_of_the_divided_logits(temperature: float) -> None:
    model = build_model("llama").eval()
    prompt, responses = [5, 6, 7], [[8, 9, 10], [11, 12]]
    collator = ResponseCollator(build_tokenizer().pad_token_id)
    batch = ResponseBatch.from_inputs(collator([PromptResponses(prompt, responses)]))
    judged = object.__new__(_Baseline)
    judged.reference = Reference("second model", model, find_head(model))
    judged.statistics = PolicyStatistics.of(model, judged.reference)
    statistics = judged._statistics_at(temperature)
    assert statistics is not None
    with torch.no_grad():
        stats = statistics(model, batch, extras=("reverse_kl", "policy_entropy"))
        rows = [model(torch.tensor([prompt + response])).logits[0, 2:-1] for response in responses]
        logits = torch.cat(rows).double()
    reference, policy = logits.log_softmax(-1), (logits / temperature).log_softmax(-1)
    forward, reverse = (
        (a.exp() * (a - b)).sum(-1) for a, b in ((reference, policy), (policy, reference))
    )  # both over the whole vocabulary
    for measured, expected in (
        (stats.forward_kl, forward),
        (stats.reverse_kl, reverse),
        (stats.policy_entropy, -(policy.exp() * policy).sum(-1)),
    ):
        assert measured is not None
        torch.testing.assert_close(measured.double(), expected, rtol=1e-4, atol=1e-6)


def test_capped_logits_are_no_head_at_another_temperature() -> None:
    model = build_model("gemma2").eval()
    judged = object.__new__(_Baseline)
    judged.reference = Reference("second model", model, find_head(model))
    judged.statistics = PolicyStatistics.of(model, judged.reference)
    assert judged._statistics_at(0.5) is None
