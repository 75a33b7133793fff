"""Sampling asks a model which way of decoding gives its own logits: recurrent states, windows, biases that count."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
import transformers as hf

from helpers.devices import device
from helpers.tiny_models import model_here
from tdpo.models import length_thresholds
from tdpo.sampling import decoding_ways
from tdpo.sampling.decoding import Way
from tdpo.sampling.decoding_ways import WAYS, distance, way_of
from tdpo.sampling.sampler import SamplingSettings, check_fit, encode_prompts, sample, stop_token_ids

SHARED, PADDED, EQUAL_OWN, WHOLE = (
    Way(shares_prefix=True), Way(), Way("own", pads=False), Way("none", pads=False),
)  # fmt: skip
PROMPTS = ["the cat sat on", "the cat", "the cat sat on the mat and the dog ran away", "the cap"]

SMALL = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 1}
HEADS = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}

# Every kind of state and of place: the way that the family's model passes.
CONFIGS: dict[str, tuple[Callable[[], Any], Way]] = {
    "mamba": (lambda: hf.MambaConfig(**SMALL, state_size=8), PADDED),
    "falcon_mamba": (lambda: hf.FalconMambaConfig(**SMALL, state_size=8), PADDED),
    "mamba2": (
        lambda: hf.Mamba2Config(**SMALL, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
        PADDED,
    ),
    "rwkv": (lambda: hf.RwkvConfig(**SMALL, attention_hidden_size=32, intermediate_size=64, context_length=256), WHOLE),
    "bamba": (lambda: hf.BambaConfig(**SMALL, **HEADS, attn_layer_indices=[1], **MAMBA), PADDED),
    "falcon_h1": (lambda: hf.FalconH1Config(**SMALL, **HEADS, mamba_d_ssm=64, head_dim=8, **MAMBA), PADDED),
    "lfm2": (lambda: hf.Lfm2Config(**SMALL, **HEADS, layer_types=["conv", "full_attention"]), PADDED),
    "recurrent_gemma": (
        lambda: hf.RecurrentGemmaConfig(
            **{**SMALL, "num_hidden_layers": 3}, intermediate_size=64, num_attention_heads=4, lru_width=32,
            attention_window_size=8,
        ),
        WHOLE,
    ),
    "minimax": (
        lambda: hf.MiniMaxConfig(
            **SMALL, **HEADS, head_dim=8, num_local_experts=2, num_experts_per_tok=1, block_size=4,
            layer_types=["linear_attention", "full_attention"],
        ),
        EQUAL_OWN,
    ),
    "mpt": (lambda: hf.MptConfig(vocab_size=384, d_model=32, n_layers=2, n_heads=4, max_seq_len=256), PADDED),
    "bloom": (lambda: hf.BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4), SHARED),
    "opt": (
        lambda: hf.OPTConfig(
            **SMALL, ffn_dim=64, num_attention_heads=4, max_position_embeddings=256, word_embed_proj_dim=32
        ),
        SHARED,
    ),
    "llama4": (
        lambda: hf.Llama4TextConfig(
            **SMALL, **HEADS, head_dim=8, intermediate_size_mlp=64, attention_chunk_size=8, num_local_experts=2,
            no_rope_layers=[1, 0], layer_types=["chunked_attention", "full_attention"],
        ),
        PADDED,
    ),
}  # fmt: skip


def built(config: Any) -> Any:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.generation_config.eos_token_id = None
    return model.to(device()).eval()


@torch.no_grad()
def greedy(model: Any, prompt: list[int], steps: int) -> list[int]:
    """One row, nothing kept of earlier steps: what the model itself says."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def until(ends: Collection[int], ids: list[int]) -> list[int]:
    """The ids up to the first that ends a response, it included."""
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: stop + 1]


@pytest.mark.parametrize("family", CONFIGS)
def test_samples_are_what_the_model_itself_says(family: str, tokenizer: Any) -> None:
    """Ragged prompts that begin alike: longer than the windows, shorter, one a token more than another."""
    config, way = CONFIGS[family]
    model = built(config())
    tokenizer.eos_token_id, kept = None, tokenizer.eos_token_id
    try:
        found = sample(model, tokenizer, PROMPTS, SamplingSettings(temperature=0, max_new_tokens=6))
        ends = stop_token_ids(model, tokenizer)
    finally:
        tokenizer.eos_token_id = kept
    expected = [until(ends, greedy(model, ids, 6)) for ids in encode_prompts(tokenizer, PROMPTS)]
    assert [completion.token_ids for completion in found] == expected
    assert way_of(model, 20) == way


def test_a_way_that_is_slower_is_said_once_with_its_cost(caplog: pytest.LogCaptureFixture) -> None:
    model = built(CONFIGS["recurrent_gemma"][0]())
    with caplog.at_level(logging.WARNING):
        assert way_of(model, 20) == way_of(model, 20) == WHOLE
    [line] = [record.getMessage() for record in caplog.records]
    assert "RecurrentGemmaForCausalLM is sampled from in another way" in line and "whole sequence again" in line
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert way_of(model_here("llama"), 20) == SHARED
    assert not caplog.records


def test_the_model_is_asked_once_and_again_beyond_a_number_of_its_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPT-Neo keeps all keys and looks at the last few: padding between tokens shows beyond the window only."""
    model = built(
        hf.GPTNeoConfig(
            vocab_size=384, hidden_size=32, num_layers=2, num_heads=4, window_size=24, max_position_embeddings=256,
            attention_types=[[["global", "local"], 1]],
        )
    )  # fmt: skip
    asked: list[int] = []
    whole = decoding_ways.whole_logits

    def counted(model: Any, ids: list[int], last: int) -> torch.Tensor:
        asked.append(len(ids))
        return whole(model, ids, last)

    monkeypatch.setattr(decoding_ways, "whole_logits", counted)
    assert 24 in length_thresholds(model.config)
    assert way_of(model, 20) == SHARED and max(asked) == 16
    asked.clear()
    assert way_of(model, 23) == SHARED and not asked
    assert way_of(model, 60) == PADDED and max(asked) == 60
    asked.clear()
    assert way_of(model, 50) == way_of(model, 20) == PADDED and not asked


def test_a_model_whose_rows_depend_on_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_here("llama")
    forward = type(model.model).forward

    def mixed(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(0, keepdim=True)
        return output

    monkeypatch.setattr(type(model.model), "forward", mixed)
    with pytest.raises(ValueError, match="cannot sample from LlamaForCausalLM: what it says of a sequence depends on"):
        way_of(model, 20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_rounding_is_no_reason_against_a_way(family: str, dtype: torch.dtype) -> None:
    model = model_here(family, dtype=dtype)
    assert distance(model, next(way for way in WAYS if way.shares_prefix == (family != "gemma2")), 16) < 5e-2


LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip


def test_prompts_that_would_depend_on_their_neighbours_are_refused(tokenizer: Any) -> None:
    model = built(hf.Phi3Config(**SMALL, **HEADS, rope_parameters=LONGROPE, original_max_position_embeddings=24))
    ids = encode_prompts(tokenizer, ["the cat"])[0]
    check_fit(model, {0: ids}, 24 - len(ids))
    sample(model, tokenizer, ["the cat"], SamplingSettings(max_new_tokens=24 - len(ids)))
    with pytest.raises(
        ValueError, match=r"prompt 0 with max_new_tokens=\d+ has 25 tokens, and beyond 24 .*longest row"
    ):
        sample(model, tokenizer, ["the cat"], SamplingSettings(max_new_tokens=25 - len(ids)))
