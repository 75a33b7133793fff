"""Sampling from a server: the same tokens as the built-in sampler's, and a sentence for each way in which it fails."""

from __future__ import annotations

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.tiny_models import build_model, build_tokenizer
from helpers.vllm_stand_in import VLLM, connected, running_vllm, with_adapter
from tdpo.chat_templates import Stopping
from tdpo.config import SamplingEngine
from tdpo.environments import Environment, Prompt
from tdpo.sampling.engines import BUILT_IN, ResponseSampler, response_sampler
from tdpo.sampling.pair_sampling import PairSettings, sample_pairs
from tdpo.sampling.sampler import SamplingSettings, sample
from tdpo.sampling.vllm.client import ServerError, WrongServer

PROMPTS = ["the cat", "what a wonderful day it was", "a terrible answer and the mat", "day"]
SETTINGS = SamplingSettings(num_samples=3, max_new_tokens=6, seed=5, batch_size=4)
GREEDY = SamplingSettings(max_new_tokens=8, temperature=0.0)
FOUR = SamplingSettings(max_new_tokens=4)


pytestmark = pytest.mark.usefixtures("impatient")


def log_probabilities(model: Any, prompt_ids: list[int], token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + token_ids])).logits[0, len(prompt_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0]


@pytest.mark.parametrize("adapter", [False, True], ids=["base", "adapter"])
def test_greedy_responses_are_the_built_in_samplers(vllm: VLLM, tmp_path: Path, adapter: bool) -> None:
    model, tokenizer = with_adapter() if adapter else build_model("llama"), build_tokenizer()
    own, theirs = (draw(model, tokenizer, PROMPTS, GREEDY) for draw in (sample, connected(vllm, tmp_path)))
    assert [(r.token_ids, r.text, r.finished) for r in own] == [(r.token_ids, r.text, r.finished) for r in theirs]
    if adapter:
        with model.disable_adapter():
            of_base = connected(vllm, tmp_path)(model, tokenizer, PROMPTS, GREEDY)
        assert [r.token_ids for r in of_base] != [r.token_ids for r in own]


def test_a_response_has_its_own_seed_and_its_log_probabilities(vllm: VLLM, tmp_path: Path) -> None:
    model, tokenizer, seen = build_model("llama"), build_tokenizer(), []
    sampler = connected(vllm, tmp_path)
    drawn = sampler(model, tokenizer, PROMPTS, SETTINGS, progress=lambda *now: seen.append(now))
    assert [(r.prompt_index, r.sample_index) for r in drawn] == [(p, k) for p in range(4) for k in range(3)]
    assert len({tuple(r.token_ids) for r in drawn[:3]}) > 1
    # A part of the prompts gets what it gets in the whole, and the number of requests under way changes nothing.
    part = sampler(model, tokenizer, PROMPTS[2:], SamplingSettings(3, 6, seed=5, batch_size=1), prompt_indices=[2, 3])
    assert part == drawn[6:]
    assert [complete for _, complete in seen] == list(range(1, 13)) and seen[-1][0] == sum(
        len(r.token_ids) for r in drawn
    )
    for response in drawn:
        ids = tokenizer(PROMPTS[response.prompt_index])["input_ids"]
        expected = log_probabilities(model, ids, response.token_ids)
        torch.testing.assert_close(torch.tensor(response.logps), expected, atol=1e-5, rtol=0)


def test_many_requests_are_under_way_but_no_more_than_asked(vllm: VLLM, tmp_path: Path) -> None:
    connected(vllm, tmp_path)(build_model("llama"), build_tokenizer(), PROMPTS, SETTINGS)
    assert 2 <= vllm.most_under_way <= SETTINGS.batch_size


def test_nothing_is_left_to_the_servers_defaults(vllm: VLLM, tmp_path: Path) -> None:
    """Those come from the model's generation config, and would draw from another distribution."""
    connected(vllm, tmp_path)(
        build_model("llama"), build_tokenizer(), PROMPTS, SamplingSettings(1, 6, 0.7, 0.9, 5, seed=5)
    )
    body = vllm.asked[-1]
    said = {key: body[key] for key in ("temperature", "top_p", "top_k", "max_tokens", "n", "stop_token_ids")}
    assert said == {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 6, "n": 1, "stop_token_ids": [1]}
    neutral = {"min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "ignore_eos": True}
    assert {key: body[key] for key in neutral} == neutral


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_temperatures_that_vllm_would_change_or_refuse(vllm: VLLM, tmp_path: Path, temperature: float) -> None:
    sampler, model, tokenizer = connected(vllm, tmp_path), build_model("llama"), build_tokenizer()
    settings = SamplingSettings(temperature=temperature)
    with pytest.raises(WrongServer, match=rf"from 0\.01 to 2, not at {temperature:g}"):
        sampler.prepare(model, tokenizer, [5, 6], settings)
    with pytest.raises(WrongServer, match="greedily at temperature 0"):
        sampler(model, tokenizer, PROMPTS[:1], settings)
    assert not vllm.asked


def test_the_end_in_the_middle_of_a_token_is_none(vllm: VLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM stops where it sees the text, the built-in sampler where a token ends with it."""
    model, tokenizer, sampler = build_model("llama"), build_tokenizer(), connected(vllm, tmp_path)
    settings = SamplingSettings(max_new_tokens=6, seed=5)
    [whole] = sampler(model, tokenizer, PROMPTS[1:2], settings)
    brackets = SimpleNamespace(decode=lambda ids, **_: "".join(f"<{token}>" for token in ids))
    text = f"<{whole.token_ids[1]}"
    stop = dataclasses.replace(Stopping.of(model, tokenizer), tokenizer=brackets, text=text)
    monkeypatch.setattr(Stopping, "of", lambda *_: stop)
    short = {"token_ids": whole.token_ids[:2], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "stop_reason": text}
    vllm.broken[len(vllm.asked)] = {"choices": [short]}
    [again] = sampler(model, tokenizer, PROMPTS[1:2], settings)
    assert dataclasses.replace(again, text=whole.text) == whole
    first, second = vllm.asked[-2:]
    assert first["stop"] == [text] and second == {**first, "stop": []}


def test_a_failure_of_the_caller_stays_what_it_is(vllm: VLLM, tmp_path: Path) -> None:
    def broken(*_: int) -> None:
        raise BrokenPipeError("nobody reads the progress")

    with pytest.raises(BrokenPipeError):
        connected(vllm, tmp_path)(build_model("llama"), build_tokenizer(), PROMPTS, SETTINGS, progress=broken)


def test_it_works_where_an_event_loop_runs(vllm: VLLM, tmp_path: Path) -> None:
    async def notebook() -> list[Any]:
        return connected(vllm, tmp_path)(build_model("llama"), build_tokenizer(), PROMPTS[:1], GREEDY)

    with ThreadPoolExecutor(1) as pool:  # a browser's test may have left a loop running in this thread
        assert len(pool.submit(asyncio.run, notebook()).result()) == 1


# ---- the wrong server ----


def other_vocabulary(size: int) -> Any:
    return build_model("llama", vocab_size=size)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": build_model("llama", seed=1)}, "does not compute what this model computes.*in float32"),
        ({"model": build_model("llama", dtype=torch.bfloat16)}, "does not compute what this model computes"),
        ({"model": other_vocabulary(380)}, "384 tokens.*refuses the last"),
        ({"model": other_vocabulary(390)}, "takes id 384.*larger vocabulary"),
        ({"context": 12}, r"context is 12 tokens.*--max-model-len \d+"),
        ({"key": "secret"}, "VLLM_API_KEY"),
    ],
    ids=["weights", "dtype", "smaller vocabulary", "larger vocabulary", "context", "key"],
)
def test_a_server_with_another_model_is_refused(settings: Any, sentence: str, tmp_path: Path) -> None:
    with running_vllm(**settings) as vllm, pytest.raises(WrongServer, match=sentence):
        connected(vllm, tmp_path)(build_model("llama"), build_tokenizer(), PROMPTS, GREEDY)


def test_the_key_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with running_vllm(key="secret") as vllm:
        assert connected(vllm, tmp_path)(build_model("llama"), build_tokenizer(), PROMPTS[:1], GREEDY)


def test_the_same_model_passes_though_a_tie_tips_over(vllm: VLLM, tmp_path: Path) -> None:
    """A difference within the tolerance is none; one beyond it is."""
    vllm.logp_shift = -1e-3
    connected(vllm, tmp_path).prepare(build_model("llama"), build_tokenizer(), [5, 6], FOUR)
    vllm.logp_shift = -4e-3
    with pytest.raises(WrongServer, match=r"0\.002 nats are allowed in float32"):
        connected(vllm, tmp_path).prepare(build_model("llama"), build_tokenizer(), [5, 6], FOUR)


def test_the_check_computes_no_logits_of_the_prompt(
    vllm: VLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a long prompt and a large vocabulary they would be gigabytes."""
    model, computed, head = build_model("llama"), [], torch.nn.Linear.forward
    monkeypatch.setattr(
        model.lm_head, "forward", lambda hidden: (computed.append(hidden.shape[1]), head(model.lm_head, hidden))[1]
    )
    connected(vllm, tmp_path).prepare(model, build_tokenizer(), [5, 6] * 40, FOUR)
    assert computed == [17]  # before each of the 16 tokens, and after them


def test_a_trained_model_is_not_taken_for_the_base_that_was_checked(vllm: VLLM, tmp_path: Path) -> None:
    sampler, tokenizer = connected(vllm, tmp_path), build_tokenizer()
    sampler(build_model("llama"), tokenizer, PROMPTS[:1], GREEDY)
    with pytest.raises(WrongServer, match="does not compute"):
        sampler(build_model("llama", seed=1), tokenizer, PROMPTS[:1], GREEDY)


# ---- failures ----

PROBES = 3  # completions that the checks at the start ask for


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        ("gone", r"did not answer .* in 5 attempts.*give the command again \(training: with --resume\)"),
        (503, r"did not answer .* in 5 attempts \(503: not now\)"),
        (500, r"refused a completion \(500: not now\)"),
        ("slow", r"no answer within 0\.3 s \(sampling\.timeout\)"),
        (b"<html>", "no answer of vLLM's: <html>"),
        ({"choices": []}, "expected one choice"),
        ({"choices": [{"text": "hello"}]}, "expected token_ids below 384"),
        ({"choices": [{"token_ids": [400]}]}, "expected token_ids below 384"),
        ({"choices": [{"token_ids": []}]}, "expected 1 to 6 tokens, got 0"),
        ({"choices": [{"token_ids": [5]}]}, "expected 1 token_logprobs"),
        (
            {"choices": [{"token_ids": [5] * 6, "logprobs": {"token_logprobs": [float("nan")] * 6}}]},
            "expected token_logprobs that are finite",
        ),
        (
            {"choices": [{"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}}]},
            "stopped after 1 of 6 tokens, at token 5.*--generation-config vllm",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:12],
)
def test_every_failure_is_a_sentence(vllm: VLLM, tmp_path: Path, failure: Any, sentence: str) -> None:
    sampler: Any = connected(vllm, tmp_path, timeout=60.0)
    model = build_model("llama")
    sampler.prepare(model, build_tokenizer(), [5, 6], SETTINGS)
    assert len(vllm.asked) == PROBES
    if failure == "slow":  # a busy machine may be that slow without being told to
        sampler.client.timeout = 0.3
    vllm.broken[None] = failure
    with pytest.raises(ServerError, match=sentence):
        sampler(model, build_tokenizer(), PROMPTS[:1], SETTINGS)


def test_a_short_absence_is_bridged(vllm: VLLM, tmp_path: Path) -> None:
    model, tokenizer, sampler = build_model("llama"), build_tokenizer(), connected(vllm, tmp_path)
    whole = sampler(model, tokenizer, PROMPTS, SETTINGS)
    start = len(vllm.asked)
    vllm.broken = {start + n: failure for n, failure in enumerate(["gone", 503, "gone", 429, 502])}
    assert sampler(model, tokenizer, PROMPTS, SETTINGS) == whole


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[::1]:9"])
def test_nobody_listens(url: str, tmp_path: Path) -> None:
    engine = SamplingEngine(engine="vllm", url=url)
    with pytest.raises(ServerError, match="did not answer GET /v1/models in 5 attempts"):
        response_sampler(engine, folder=tmp_path, owner="test")


# ---- pairs ----


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(character in "aeiou" for character in text)) for text in completions]


def test_pairs_go_on_after_the_server_was_gone(vllm: VLLM, tmp_path: Path) -> None:
    model, tokenizer = build_model("llama"), build_tokenizer()
    toy = Environment("toy", [Prompt(str(n), text) for n, text in enumerate(PROMPTS)], [], vowels, "vowels", 6, "")
    settings = PairSettings(SamplingSettings(num_samples=4, max_new_tokens=6, batch_size=8, seed=3))

    def made(name: str, sampler: ResponseSampler) -> bytes:
        sample_pairs(model, tokenizer, toy, tmp_path / name, settings, sampler=sampler)
        return (tmp_path / name).read_bytes()

    whole = made("whole.jsonl", connected(vllm, tmp_path))
    vllm.broken = {len(vllm.asked) + PROBES + 8 + n: "gone" for n in range(100)}  # within the second batch
    with pytest.raises(ServerError):
        made("pairs.jsonl", connected(vllm, tmp_path))
    vllm.broken = {}
    with pytest.raises(ValueError, match=r"engine was 'vLLM.*', is None"):
        made("pairs.jsonl", BUILT_IN)
    with pytest.raises(ValueError, match="engine was None, is 'vLLM"):
        (tmp_path / "other.jsonl.partial.jsonl").write_bytes(
            (tmp_path / "pairs.jsonl.partial.jsonl").read_bytes().replace(b'"engine"', b'"motor"')
        )
        made("other.jsonl", connected(vllm, tmp_path))
    before = len(vllm.asked)
    assert made("pairs.jsonl", connected(vllm, tmp_path)) == whole
    assert len(vllm.asked) == before + PROBES + 8  # the first batch was not drawn again
