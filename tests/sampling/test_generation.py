"""The sampler against plain transformers, against a slow oracle of its own, and against the exact distribution."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.devices import device
from helpers.tiny_models import FAMILIES, model_here
from tdpo.models import check_causal
from tdpo.sampling.decoding import keeps_all_keys
from tdpo.sampling.decoding_ways import way_of
from tdpo.sampling.drawing import draw_tokens, inverse_cdf
from tdpo.sampling.sampler import (
    SampledResponse,
    SamplingSettings,
    encode_prompts,
    sample,
    stop_token_ids,
)

# One begins as another, one is a single token, one is longer than gemma2's sliding window of 16.
PROMPTS = ["the cat", "the cat sat on the mat", "a", "what a wonderful day it was and the dog ran away from the mat"]
CHATS = [[{"role": "system", "content": "the dog"}, {"role": "user", "content": text}] for text in PROMPTS]
SETTINGS = SamplingSettings(num_samples=3, max_new_tokens=12, seed=5)

Build = Callable[..., Any]


@pytest.fixture
def tiny_model() -> Build:
    """On the GPU where there is one."""
    return model_here


def with_many_ends(model: Any) -> Any:
    """About a third of all tokens end a response, so that rows finish at every step."""
    model.generation_config.eos_token_id = list(range(1, 384, 3))
    return model


def token_ids(completions: list[SampledResponse]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def oracle(
    model: Any, prompt: list[int], stop: frozenset[int], settings: SamplingSettings, prompt_index: int, k: int
) -> list[int]:
    """One row, no cache, no padding, every position computed anew, float64 sums in Python."""
    generator = random.Random(f"{settings.seed}/{prompt_index}/{k}")
    tokens: list[int] = []
    while len(tokens) < settings.max_new_tokens and not (tokens and tokens[-1] in stop):
        logits = model(torch.tensor([prompt + tokens], device=model.device)).logits[0, -1]
        target, total = generator.random(), 0.0
        for token, probability in enumerate((logits / settings.temperature).double().softmax(-1).tolist()):
            total += probability
            if total > target:
                tokens.append(token)
                break
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompts", [PROMPTS, CHATS], ids=["plain", "chat"])
@torch.no_grad()
def test_samples_are_those_of_the_slow_oracle(family: str, prompts: Any, tiny_model: Build, tokenizer: Any) -> None:
    model = with_many_ends(tiny_model(family))
    stop = stop_token_ids(model, tokenizer)
    settings = SamplingSettings(num_samples=2, max_new_tokens=8, temperature=1.5, seed=11)
    expected = [
        oracle(model, prompt, stop, settings, index, k)
        for index, prompt in enumerate(encode_prompts(tokenizer, prompts))
        for k in range(2)
    ]
    assert token_ids(sample(model, tokenizer, prompts, settings)) == expected
    assert len({len(tokens) for tokens in expected}) > 2  # rows left the batch at different steps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ends", [False, True])
def test_temperature_zero_is_transformers_greedy_generate(
    family: str, ends: bool, tiny_model: Build, tokenizer: Any
) -> None:
    model = with_many_ends(tiny_model(family)) if ends else tiny_model(family)
    settings = SamplingSettings(temperature=0, max_new_tokens=20)
    ours = sample(model, tokenizer, CHATS, settings)
    encoded = encode_prompts(tokenizer, CHATS)
    padded = tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt").to(model.device)
    options = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}
    batched = model.generate(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], **options)
    for index, ids in enumerate(encoded):
        prompt = torch.tensor([ids], device=model.device)
        single = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        generated = single[0, prompt.shape[1] :].tolist()
        assert ours[index].token_ids == generated
        row = batched[index, padded["input_ids"].shape[1] :].tolist()
        assert ours[index].token_ids == row[: len(generated)]
        assert ours[index].text == tokenizer.decode(generated, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_and_order_change_nothing(family: str, tiny_model: Build, tokenizer: Any) -> None:
    model = with_many_ends(tiny_model(family))
    whole = sample(model, tokenizer, PROMPTS, SETTINGS)
    assert [(item.prompt_index, item.sample_index) for item in whole] == [(p, k) for p in range(4) for k in range(3)]
    for batch_size in (1, 2, 3, 7):
        settings = SamplingSettings(num_samples=3, max_new_tokens=12, seed=5, batch_size=batch_size)
        assert sample(model, tokenizer, PROMPTS, settings) == whole
    order = [2, 0, 3, 1]
    shuffled = sample(model, tokenizer, [PROMPTS[index] for index in order], SETTINGS, prompt_indices=order)
    assert [item.prompt_index for item in shuffled[::3]] == order
    assert sorted(shuffled, key=lambda item: (item.prompt_index, item.sample_index)) == whole


def test_samples_of_one_call_are_those_of_separate_calls(tiny_model: Build, tokenizer: Any) -> None:
    model = tiny_model("llama")
    together = sample(model, tokenizer, CHATS, SETTINGS)
    one = SamplingSettings(num_samples=1, max_new_tokens=12, seed=5)
    for k in range(3):
        assert sample(model, tokenizer, CHATS, one, first_sample=k) == together[k::3]


def test_seed_prompt_and_sample_each_change_the_numbers(tiny_model: Build, tokenizer: Any) -> None:
    model = tiny_model("llama")
    same_prompts = sample(model, tokenizer, ["the cat"] * 3, SETTINGS)
    other_seed = sample(model, tokenizer, ["the cat"] * 3, SamplingSettings(num_samples=3, max_new_tokens=12, seed=6))
    assert len({tuple(tokens) for tokens in token_ids(same_prompts + other_seed)}) == 18
    # A longer limit only continues what a shorter one gave.
    longer = sample(model, tokenizer, ["the cat"] * 3, SamplingSettings(num_samples=3, max_new_tokens=20, seed=5))
    assert [tokens[:12] for tokens in token_ids(longer)] == token_ids(same_prompts)


def chi_square(counts: Counter[int], probabilities: Tensor, samples: int) -> tuple[float, int]:
    """Statistic and degrees of freedom; tokens expected fewer than 5 times are taken together."""
    expected = probabilities.double() * samples
    often = [token for token in range(len(expected)) if expected[token] >= 5]
    seen = [counts[token] for token in often]
    cells = [*zip(seen, expected[often].tolist(), strict=True)]
    rest = samples - sum(expected for _, expected in cells)
    if rest >= 1:
        cells.append((samples - sum(seen), rest))
    return sum((seen - expected) ** 2 / expected for seen, expected in cells), len(cells) - 1


@torch.no_grad()
def test_first_and_second_token_follow_the_exact_softmax(tiny_model: Build, tokenizer: Any) -> None:
    model, samples = tiny_model("llama"), 6000
    model.generation_config.eos_token_id = None
    prompt = encode_prompts(tokenizer, ["the dog"])[0]
    with torch.no_grad():
        first = model(torch.tensor([prompt], device=model.device)).logits[0, -1].softmax(-1).cpu()
        pairs = torch.tensor([[*prompt, token] for token in range(384)], device=model.device)
        followed = model(pairs).logits[:, -1].softmax(-1).cpu()
    second = first @ followed
    drawn = sample(
        model, tokenizer, ["the dog"], SamplingSettings(num_samples=samples, max_new_tokens=2, batch_size=2000)
    )
    firsts = Counter(item.token_ids[0] for item in drawn)
    end = tokenizer.eos_token_id  # ends a response after one token, so it is no first of two
    seconds = Counter(item.token_ids[1] for item in drawn if len(item.token_ids) == 2)
    second = (second - first[end] * followed[end]) / (1 - first[end])
    for counts, exact in ((firsts, first), (seconds, second)):
        statistic, freedom = chi_square(counts, exact, counts.total())
        # Mean freedom, variance 2·freedom: four standard deviations; the seed is fixed, so this never flickers.
        assert freedom > 20
        assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 2.0, "top_k": 5},
        {"top_k": 1},
        {"top_k": 100_000},
        {"top_p": 0.5},
        {"top_p": 1e-9},
        {"top_p": 0.999},
        {"temperature": 1.3, "top_k": 700, "top_p": 0.8},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])  # nearly uniform (the nucleus is most of the vocabulary) to peaked
def test_probabilities_are_those_of_transformers_warpers(options: dict[str, Any], spread: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = spread * torch.randn(2, 800)
    logits[:, 7] = -torch.inf
    warped = TemperatureLogitsWarper(options.get("temperature", 1.0))(None, logits.clone())
    if "top_k" in options:
        warped = TopKLogitsWarper(options["top_k"])(None, warped)
    if "top_p" in options:
        warped = TopPLogitsWarper(options["top_p"])(None, warped)
    exact = warped.double().softmax(-1)
    # Evenly spaced "random" numbers draw every token within one of n·p times, so this is exact and not statistical.
    n = 2000
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for row in range(2):
        given = logits[row].to(device()).expand(n, -1)
        drawn = draw_tokens(given, uniforms.to(device()), SamplingSettings(**options))
        counts = torch.bincount(drawn.cpu(), minlength=800)
        assert (counts - n * exact[row]).abs().max() < 1.5
        assert not counts[exact[row] == 0].any()


def drawn_at(row: Tensor, uniform: float) -> int:
    number = torch.tensor([uniform], dtype=torch.float64, device=device())
    return int(inverse_cdf(row.to(device()), number))


weights = st.lists(st.sampled_from([0.0, 0.0, 1.0, 3.0, 2.0**-40, 2.0**-149]), min_size=1, max_size=40).filter(any)


@given(weights, st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2.0**-53])))
def test_inverse_cdf_is_exact_and_never_lands_on_zero(row: list[float], uniform: float) -> None:
    index = drawn_at(torch.tensor([row]), uniform)
    assert row[index] > 0
    target = Fraction(uniform) * sum(map(Fraction, row))
    below = sum(map(Fraction, row[:index]))
    slack = sum(map(Fraction, row)) / 2**50  # float64 sums
    assert below - slack <= target < below + Fraction(row[index]) + slack


def test_ends_of_the_distribution() -> None:
    row = torch.zeros(1, 49_152)
    row[0, [300, 20_000, 40_000]] = torch.tensor([1.0, 5.0, 2.0**-149])
    for uniform, expected in ((0.0, 300), (1 / 6 - 1e-9, 300), (1 / 6 + 1e-9, 20_000), (1 - 2.0**-53, 20_000)):
        assert drawn_at(row, uniform) == expected


def test_the_tail_of_a_large_vocabulary_is_reached() -> None:
    """In float32 the running sum of 50,000 ones is deaf to what comes below 2e-3."""
    row = torch.ones(1, 50_000)
    row[0, 49_990:] = 1e-5
    uniforms = 1 - (torch.arange(10, dtype=torch.float64) + 0.5) * 1e-5 / float(row.double().sum())
    drawn = [drawn_at(row, float(uniform)) for uniform in uniforms]
    assert drawn == list(range(49_999, 49_989, -1))


def test_finished_means_that_the_last_token_ends_the_response(tiny_model: Build, tokenizer: Any) -> None:
    model = with_many_ends(tiny_model("qwen2"))
    stop = stop_token_ids(model, tokenizer)
    completions = sample(model, tokenizer, PROMPTS, SamplingSettings(num_samples=16, max_new_tokens=3))
    assert {item.finished for item in completions} == {True, False}
    for item in completions:
        assert not stop & set(item.token_ids[:-1])
        assert item.finished == (item.token_ids[-1] in stop)
        assert item.finished or len(item.token_ids) == 3
        assert item.text == tokenizer.decode(item.token_ids, skip_special_tokens=True)


def test_tokens_that_end_a_response(tiny_model: Build, tokenizer: Any) -> None:
    model = tiny_model("llama")
    for configured, expected in ((None, {1}), (7, {1, 7}), ([7, 8], {1, 7, 8})):
        model.generation_config.eos_token_id = configured
        assert stop_token_ids(model, tokenizer) == expected


class Calls:
    """The shapes of everything that a model is fed."""

    def __init__(self, model: Any) -> None:
        way_of(model, 200)  # asked before, with tokens of its own
        self.shapes: list[tuple[int, int]] = []
        check_causal(model)  # which is asked once, before
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))


def test_prompts_and_what_they_share_are_encoded_once(tiny_model: Build, tokenizer: Any) -> None:
    model = tiny_model("llama")
    calls = Calls(model)
    lengths = [len(prompt) for prompt in encode_prompts(tokenizer, CHATS)]
    sample(model, tokenizer, CHATS, SamplingSettings(num_samples=4, max_new_tokens=2))
    (one, shared), (prompts, rest), (rows, step) = calls.shapes
    assert (one, prompts, rows, step) == (1, 4, 16, 1)
    assert shared > 5 and shared + rest == max(lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_sees_one_state_a_row_without_gaps(family: str, tiny_model: Build, tokenizer: Any) -> None:
    """A frozen head takes a slice of states one by one, and in bfloat16 is copied for each."""
    model = tiny_model(family)
    way_of(model, 200)
    seen: list[Tensor] = []
    check_causal(model)  # which is asked once, before
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    sample(model, tokenizer, PROMPTS, SamplingSettings(max_new_tokens=3))
    assert len(seen) >= 3
    assert all(states.shape[-2] == 1 and states.is_contiguous() for states in seen)


def test_a_sliding_window_does_not_see_padding_between_tokens(tiny_model: Build, tokenizer: Any) -> None:
    model = tiny_model("gemma2")
    assert not keeps_all_keys(model.config)
    assert keeps_all_keys(tiny_model("llama").config)
    calls = Calls(model)
    sample(model, tokenizer, CHATS, SamplingSettings(max_new_tokens=1))
    assert calls.shapes == [(4, max(len(prompt) for prompt in encode_prompts(tokenizer, CHATS)))]


def test_finished_rows_leave_the_batch(tiny_model: Build, tokenizer: Any) -> None:
    model = with_many_ends(tiny_model("llama"))
    calls = Calls(model)
    completions = sample(model, tokenizer, ["the cat"], SamplingSettings(num_samples=64, max_new_tokens=30))
    fed = [rows for rows, _ in calls.shapes[1:]]
    going_on = [sum(len(item.token_ids) > step for item in completions) for step in range(1, len(fed) + 1)]
    assert fed == sorted(fed, reverse=True) and fed[-1] < 8
    assert all(live <= rows < live + max(1, rows / 8) for rows, live in zip(fed, going_on, strict=True))


def test_adapter_gives_what_the_merged_model_gives(tiny_model: Build, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    with_adapter = sample(model, tokenizer, CHATS, SETTINGS)
    assert with_adapter != sample(tiny_model("llama"), tokenizer, CHATS, SETTINGS)
    assert sample(model.merge_and_unload(), tokenizer, CHATS, SETTINGS) == with_adapter


def test_bf16_models_sample_too(tiny_model: Build, tokenizer: Any) -> None:
    completions = sample(tiny_model("llama", dtype=torch.bfloat16), tokenizer, CHATS, SETTINGS)
    assert len(completions) == 12


def test_progress_counts_tokens_and_completions(tiny_model: Build, tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    settings = SamplingSettings(num_samples=2, max_new_tokens=6, batch_size=4)
    completions = sample(
        with_many_ends(tiny_model("gpt2")), tokenizer, PROMPTS, settings, progress=lambda *now: seen.append(now)
    )
    assert seen == sorted(seen)
    assert seen[-1] == (sum(len(item.token_ids) for item in completions), 8)


@pytest.mark.parametrize("training", [True, False])
def test_interruption_passes_and_leaves_the_model_as_it_was(training: bool, tiny_model: Build, tokenizer: Any) -> None:
    model = tiny_model("llama").train(training)

    def interrupt(tokens: int, completions: int) -> None:
        assert not model.training  # no dropout while sampling
        if tokens > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, tokenizer, PROMPTS, SamplingSettings(), progress=interrupt)
    assert model.training is training
    assert torch.is_grad_enabled()
    ids = torch.tensor([[5, 6]], device=model.device)
    model(ids).logits.sum().backward()  # nothing of the sampling stays in the way of training


def test_no_prompts_give_no_completions(tiny_model: Build, tokenizer: Any) -> None:
    assert sample(tiny_model("llama"), tokenizer, [], SamplingSettings()) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompt_that_leaves_no_room_is_refused(family: str, tiny_model: Build, tokenizer: Any) -> None:
    model = tiny_model(family)  # a context of 256 tokens
    long = "cat " * 100
    length = len(encode_prompts(tokenizer, [long])[0])
    fits = SamplingSettings(max_new_tokens=256 - length)
    assert len(sample(model, tokenizer, [long], fits)) == 1
    message = rf"prompt 1 has {length} tokens; with max_new_tokens={257 - length} .* context of 256"
    with pytest.raises(ValueError, match=message):
        sample(model, tokenizer, ["a", long], SamplingSettings(max_new_tokens=257 - length))


def test_tokenizer_of_another_model_is_refused(tiny_model: Build, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"prompt 0 has token id \d+, but the model knows only 20 tokens"):
        sample(tiny_model("llama", vocab_size=20), tokenizer, ["the cat"], SamplingSettings())


def test_broken_logits_name_the_prompt_and_the_step(tiny_model: Build, tokenizer: Any) -> None:
    model = tiny_model("llama")
    bad = encode_prompts(tokenizer, ["what"])[0][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"NaN or infinite for prompt 1 at new token 1"):
            sample(model, tokenizer, ["the cat", "what"], SamplingSettings(temperature=temperature))


def test_prompts_that_cannot_be_encoded(tokenizer: Any) -> None:
    bare = type("Bare", (), {"chat_template": None, "__call__": lambda self, text: {"input_ids": []}})()
    with pytest.raises(ValueError, match="prompt 0 is a list of messages, but the tokenizer has no chat template"):
        encode_prompts(bare, [CHATS[0]])
    with pytest.raises(ValueError, match=r"prompt 1 \(''\) has no tokens"):
        encode_prompts(tokenizer, ["a", ""])
    for messages in ([], [*CHATS[0], {"role": "assistant", "content": "yes"}]):
        with pytest.raises(ValueError, match=r"prompt 0 .* must end with a turn that the assistant can answer"):
            encode_prompts(tokenizer, [messages])


def test_messages_end_where_the_answer_begins(tokenizer: Any) -> None:
    text = tokenizer.decode(encode_prompts(tokenizer, [[{"role": "user", "content": "the cat"}]])[0])
    assert text == "<|user|>the cat<|end|>\n<|assistant|>"


@pytest.mark.parametrize("batch_size", [2, 7])
def test_responses_are_handed_over_prompt_by_prompt(batch_size: int, tiny_model: Build, tokenizer: Any) -> None:
    """Whole prompts, also where a batch does not hold all responses to one; gradients are what they were outside."""
    parts: list[list[SampledResponse]] = []

    def take(responses: list[SampledResponse]) -> None:
        assert torch.is_grad_enabled()
        parts.append(responses)

    settings = replace(SETTINGS, batch_size=batch_size)
    whole = sample(tiny_model("llama"), tokenizer, PROMPTS, settings, on_complete=take)
    assert [len(part) for part in parts] == ([3] * 4 if batch_size == 2 else [6, 6])
    together = [item for part in parts for item in part]
    assert sorted(together, key=lambda item: (item.prompt_index, item.sample_index)) == whole
    assert all(len({item.prompt_index for item in part}) * 3 == len(part) for part in parts)


def test_prompt_indices_must_fit(tiny_model: Build, tokenizer: Any) -> None:
    for indices in ([0], [3, 3]):
        with pytest.raises(ValueError, match="prompt_indices must be 2 different numbers"):
            sample(tiny_model("llama"), tokenizer, ["a", "the"], SamplingSettings(), prompt_indices=indices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, not 0"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": -1}, "batch_size"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": 1e-9}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_p": 1.1}, "top_p must lie in"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"temperature": 0, "num_samples": 2}, "would give 2 identical texts"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**options)
