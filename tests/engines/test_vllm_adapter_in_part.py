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
from helpers.vllm_server import CONTEXT, RunningServer
from tdpo.config import SamplingEngine
from tdpo.models import LoraSettings, add_lora, load_causal_lm, load_tokenizer
from tdpo.sampling.engines import response_sampler
from tdpo.sampling.sampler import SamplingSettings, encode_prompts, sample
from tdpo.sampling.vllm.adapters import AdapterHandover
from tdpo.sampling.vllm.checks import check_same_model, served_model
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
    tokenizer, policy = load_tokenizer(str(bundled)), with_adapter(bundled, "all-linear")
    with pytest.raises(WrongServer, match="does not compute all of it") as caught:
        prepare(attention_alone, policy, tokenizer, tmp_path)
    print(caught.value)
    # What it is for: with the adapter of a first update the server's tokens are within the tolerance.
    shake_adapter(policy, 1, std=1e-5)
    client = Client(attention_alone.url, 300.0)
    adapters = AdapterHandover(client, tmp_path, "first update")
    name, ids = adapters.hand_over(policy), encode_prompts(tokenizer, PROMPTS)[3]
    difference = check_same_model(client, served_model(client), name, policy, ids)
    print(f"the adapter of a first update, computed in part: {difference:.2g} nats")
    adapters.close()


def test_one_kind_that_the_server_leaves_out_is_named(
    attention_alone: RunningServer, bundled: Path, tmp_path: Path
) -> None:
    tokenizer, policy = load_tokenizer(str(bundled)), with_adapter(bundled, [*ATTENTION, "up_proj"])
    with pytest.raises(WrongServer, match=r"without model\.layers\.\*\.mlp\.up_proj by [\d.]+e-0\d\. Start"):
        prepare(attention_alone, policy, tokenizer, tmp_path)


def test_what_the_server_computes_passes(attention_alone: RunningServer, bundled: Path, tmp_path: Path) -> None:
    tokenizer, policy = load_tokenizer(str(bundled)), with_adapter(bundled, ATTENTION)
    prepare(attention_alone, policy, tokenizer, tmp_path).close()


@pytest.fixture(scope="module")
def seeing(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Idefics3 with the bundled tokenizer. It is the class that sees for which vLLM needs no torchvision."""
    folder = tmp_path_factory.mktemp("seeing")
    tokenizer = load_tokenizer(str(bundled))
    layers = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 1}
    text = {"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 1, **layers, **ids}
    config = hf.Idefics3Config(
        text_config={**text, "max_position_embeddings": CONTEXT}, scale_factor=2, image_token_id=3,
        vision_config={**layers, "image_size": 32, "patch_size": 16}, tie_word_embeddings=False, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = hf.Idefics3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)  # so that its tokens are not equally probable
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_language_model_inside_one_that_sees(start: Start, seeing: Path, tmp_path: Path) -> None:
    tokenizer, policy = load_tokenizer(str(seeing)), with_adapter(seeing, "all-linear").eval()
    with start(seeing, tmp_path / "server.log", 2, "--limit-mm-per-prompt", '{"image": 0}') as server:
        sampler = prepare(server, policy, tokenizer, tmp_path)
        shake_adapter(policy, 1, std=0.3)
        drawn = sampler(policy, tokenizer, PROMPTS, GREEDY)
        with policy.disable_adapter():
            of_base = sample(policy, tokenizer, PROMPTS, GREEDY)
        own = sample(policy, tokenizer, PROMPTS, GREEDY)
        assert [r.token_ids for r in drawn] == [r.token_ids for r in own] != [r.token_ids for r in of_base]
        sampler.close()
