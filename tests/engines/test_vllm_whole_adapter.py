"""Adapters that the real server computes in part, and those of a language model inside one that sees.

`make test-engines` runs these. A mixture of experts is not among them: vLLM's build for CPUs has no kernel for experts
beside adapters (docs/vllm.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from helpers.tiny_models import shake_adapter
from helpers.vllm_server import RunningServer
from tdpo.config import SamplingEngine
from tdpo.models import LoraSettings, add_lora, load_causal_lm, load_tokenizer
from tdpo.sampling.engines import response_sampler
from tdpo.sampling.sampler import SamplingSettings, encode_prompts, sample
from tdpo.sampling.vllm.checks import TOLERANCES, check_same_model, served_model
from tdpo.sampling.vllm.client import Client, WrongServer

PROMPTS = ["The weather today is", "Once upon a time", "My favourite food is", "The train was late, so"]
GREEDY = SamplingSettings(max_new_tokens=12, temperature=0.0)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
Start = Callable[..., AbstractContextManager[RunningServer]]


def with_adapter(bundled: Path, targets: str | list[str]) -> Any:
    torch.manual_seed(0)
    settings = LoraSettings(rank=4, alpha=8.0, targets=targets)
    return add_lora(load_causal_lm(str(bundled), dtype="float32"), settings)


def prepare(server: RunningServer, policy: Any, tokenizer: Any, folder: Path) -> Any:
    engine = SamplingEngine(engine="vllm", url=server.url)
    sampler = response_sampler(engine, folder=folder, owner=str(folder), with_logps=True)
    try:
        sampler.prepare(policy, tokenizer, encode_prompts(tokenizer, PROMPTS)[3], GREEDY)
    except BaseException:
        sampler.close()
        raise
    return sampler


@pytest.fixture(scope="module")
def attention_alone(start: Start, bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that takes any adapter and computes that of attention alone."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with start(bundled, log, 1, "--lora-target-modules", *ATTENTION) as server:
        yield server


def test_layers_that_the_server_leaves_out_are_found(
    attention_alone: RunningServer, bundled: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(bundled))
    policy = add_lora(load_causal_lm(str(bundled), dtype="float32"), LoraSettings(rank=4, alpha=8.0))
    with pytest.raises(WrongServer, match="does not compute all of it") as caught:
        prepare(attention_alone, policy, tokenizer, tmp_path)
    print(caught.value)
    assert not any(name in str(caught.value) for name in ATTENTION)
    # What the check found out would have gone unseen: a server's greedy tokens with the adapter of a first update.
    shake_adapter(policy, 1, std=1e-4)
    sampler = response_sampler(
        SamplingEngine(engine="vllm", url=attention_alone.url), folder=tmp_path, owner="x", with_logps=True
    )
    name = sampler.adapters.hand_over(policy)
    client = Client(attention_alone.url, 300.0)
    difference = check_same_model(client, served_model(client), name, policy, encode_prompts(tokenizer, PROMPTS)[3])
    print(f"the adapter of a first update, computed in part: {difference:.2g} nats")
    sampler.close()


def test_one_kind_that_the_server_leaves_out_is_named(
    attention_alone: RunningServer, bundled: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(bundled))
    targets = LoraSettings(rank=4, alpha=8.0, targets=[*ATTENTION, "up_proj"])
    policy = add_lora(load_causal_lm(str(bundled), dtype="float32"), targets)
    with pytest.raises(WrongServer, match=r"without model\.layers\.\*\.mlp\.up_proj by [\d.]+e-0\d\. Start"):
        prepare(attention_alone, policy, tokenizer, tmp_path)


def test_what_the_server_computes_passes(attention_alone: RunningServer, bundled: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(bundled))
    targets = LoraSettings(rank=4, alpha=8.0, targets=ATTENTION)
    policy = add_lora(load_causal_lm(str(bundled), dtype="float32"), targets)
    prepare(attention_alone, policy, tokenizer, tmp_path).close()
