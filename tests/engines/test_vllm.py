"""The vLLM sampler against the real server, with the bundled model in float32. `make test-engines` runs these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.ppo_cases import letters, logs, make_ppo
from helpers.tiny_models import shake_adapter
from helpers.vllm_server import CONTEXT, MAX_RANK, RunningServer, Server
from tdpo.config import SamplingEngine
from tdpo.models import LoraSettings, add_lora, load_causal_lm, load_tokenizer
from tdpo.sampling.engines import response_sampler
from tdpo.sampling.sampler import SamplingSettings, encode_prompts, sample
from tdpo.sampling.vllm.checks import TOLERANCES, check_same_model, served_model
from tdpo.sampling.vllm.client import Client, ServerError, WrongServer

PROMPTS = ["The weather today is", "Once upon a time", "My favourite food is", "The train was late, so"]
GREEDY = SamplingSettings(max_new_tokens=12, temperature=0.0)
SETTINGS = SamplingSettings(num_samples=3, max_new_tokens=16, seed=7)
TOLERANCE = TOLERANCES[torch.float32]


@pytest.fixture(scope="module")
def model(bundled: Path) -> Any:
    return load_causal_lm(str(bundled), dtype="float32")


@pytest.fixture(scope="module")
def tokenizer(bundled: Path) -> Any:
    return load_tokenizer(str(bundled))


def engine(server: RunningServer) -> SamplingEngine:
    return SamplingEngine(engine="vllm", url=server.url)


def connected(server: RunningServer, folder: Path) -> Any:
    return response_sampler(engine(server), folder=folder, owner=str(folder), with_logps=True)


def adapted(bundled: Path, rank: int = 4) -> Any:
    """A policy of its own whose adapter changes what it says."""
    policy = add_lora(load_causal_lm(str(bundled), dtype="float32"), LoraSettings(rank=rank, alpha=2.0 * rank)).eval()
    shake_adapter(policy, 1, std=0.02)
    return policy


@torch.no_grad()
def log_probabilities(model: Any, prompt_ids: list[int], token_ids: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt_ids + token_ids])).logits[0, len(prompt_ids) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0]


def test_greedy_tokens_are_ours(server: RunningServer, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    client = Client(server.url, 300.0)
    served = served_model(client)
    assert served.context == CONTEXT and served.version.startswith("0.32")
    [ids, *_] = encode_prompts(tokenizer, PROMPTS)
    difference = check_same_model(client, served, served.name, model, ids)
    print(f"largest difference of a greedy token: {difference:.2e} nats (tolerance {TOLERANCE:g})")
    own, theirs = (draw(model, tokenizer, PROMPTS, GREEDY) for draw in (sample, connected(server, tmp_path)))
    assert [r.token_ids for r in own] == [r.token_ids for r in theirs]
    assert [(r.text, r.finished) for r in own] == [(r.text, r.finished) for r in theirs]


def test_drawn_tokens_have_our_log_probabilities(
    server: RunningServer, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    sampler = connected(server, tmp_path)
    drawn = sampler(model, tokenizer, PROMPTS, SETTINGS)
    encoded, worst = encode_prompts(tokenizer, PROMPTS), 0.0
    for response in drawn:
        own = log_probabilities(model, encoded[response.prompt_index], response.token_ids)
        worst = max(worst, float((own - torch.tensor(response.logps)).abs().max()))
    print(f"largest difference of a drawn token: {worst:.2e} nats")
    assert worst < TOLERANCE
    assert len({tuple(r.token_ids) for r in drawn}) == len(drawn)  # each has a seed of its own
    again = sampler(model, tokenizer, PROMPTS[1:2], SETTINGS, prompt_indices=[1])
    assert [r.token_ids for r in again] == [r.token_ids for r in drawn[3:6]]


def test_responses_end_where_ours_do(server: RunningServer, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    chat = [[{"role": "user", "content": "Answer with one word: what colour is the sky?"}]]
    settings = SamplingSettings(num_samples=4, max_new_tokens=60, seed=1)
    drawn = connected(server, tmp_path)(model, tokenizer, chat, settings)
    assert any(response.finished for response in drawn)
    for response in drawn:
        assert (response.token_ids[-1] == tokenizer.eos_token_id) == response.finished
        assert "<|im_end|>" not in response.text


def test_the_adapter_is_handed_over_and_the_old_one_goes(
    server: RunningServer, bundled: Path, tokenizer: Any, tmp_path: Path
) -> None:
    policy, sampler = adapted(bundled), connected(server, tmp_path)
    names = []
    for seed in (1, 2):
        shake_adapter(policy, seed, std=0.02)
        drawn = sampler(policy, tokenizer, PROMPTS, GREEDY)
        assert [r.token_ids for r in drawn] == [r.token_ids for r in sample(policy, tokenizer, PROMPTS, GREEDY)]
        names.append(sampler.adapters.loaded)
        assert adapters(server, sampler) == names[-1:]
    with policy.disable_adapter():
        of_base = sampler(policy, tokenizer, PROMPTS, GREEDY)
    assert [r.token_ids for r in of_base] != [r.token_ids for r in drawn]
    sampler.close()
    assert names[0] != names[1] and adapters(server, sampler) == [] and not any(tmp_path.iterdir())


def adapters(server: RunningServer, sampler: Any) -> list[str]:
    """What the server has of this sampler's: others may use it too."""
    models = Client(server.url, 60.0).call("GET", "/v1/models").json()["data"]
    return [model["id"] for model in models if model["id"].startswith(sampler.adapters.prefix)]


def test_what_the_server_cannot_do_is_a_sentence(
    server: RunningServer, bundled: Path, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(WrongServer, match=rf"--max-lora-rank {2 * MAX_RANK}"):
        connected(server, tmp_path)(adapted(bundled, rank=2 * MAX_RANK), tokenizer, PROMPTS[:1], GREEDY)
    with pytest.raises(WrongServer, match="--max-model-len 600"):
        connected(server, tmp_path).prepare(model, tokenizer, [1] * 500, SamplingSettings(max_new_tokens=100))
    with torch.no_grad():
        other = load_causal_lm(str(bundled), dtype="float32")
        other.model.norm.weight.mul_(1.02)
    with pytest.raises(WrongServer, match="does not compute what this model computes"):
        connected(server, tmp_path)(other, tokenizer, PROMPTS[:1], GREEDY)
    with pytest.raises(WrongServer, match="does not compute what this model computes"):
        half = load_causal_lm(str(bundled), dtype="float32").to(torch.bfloat16).float()  # as a server in bfloat16
        connected(server, tmp_path)(half, tokenizer, PROMPTS[:1], GREEDY)


def test_ppo_is_on_policy_to_rounding(server: RunningServer, bundled: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = make_ppo(
        adapted(bundled), tmp_path, tokenizer, letters, PROMPTS, max_new_tokens=8, sampling_engine="vllm",
        sampling_url=server.url, importance_weight_cap=2.0, learning_rate=1e-4,
    )  # fmt: skip
    trainer.train()
    lines = logs(trainer)
    assert len(lines) == 2
    for line in lines:
        print({name: line[name] for name in line if name.startswith(("sampler", "truncated"))})
        assert 0 <= line["sampler_kl"] < TOLERANCE**2 and line["sampler_logp_difference_max"] < TOLERANCE
        assert line["truncated_share"] == 0.0
    trainer.sampler.close()


def test_a_server_that_goes_away_is_a_sentence(
    server: RunningServer, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """The last test: it ends the server while responses are drawn."""
    if not isinstance(server, Server):
        pytest.skip("TDPO_VLLM_URL names a server that is to stay")
    sampler, seen = connected(server, tmp_path), []

    def ended(tokens: int, complete: int) -> None:
        seen.append(complete)
        if complete == 2:
            server.process.terminate()

    settings = SamplingSettings(num_samples=16, max_new_tokens=100, seed=7, batch_size=4)
    with pytest.raises(ServerError, match="give the command again"):
        sampler(model, tokenizer, PROMPTS, settings, progress=ended)
    assert seen
