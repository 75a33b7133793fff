"""Responses of several turns: what users and tools say in them is seen by the model, and counted only if asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.tiny_models import build_tokenizer
from helpers.training_cases import different_model
from tdpo.batches import ResponseBatch, ResponseCollator, TokenizedPair, counted_tokens, tokenize_pairs
from tdpo.models import response_hidden
from tdpo.preferences import BadPreferences, PreferenceRow
from tdpo.reference_cache import CacheLayout
from tdpo.reference_cache.fingerprint import tokens_digest
from tdpo.training import TDPOConfig, TDPOTrainer

PROMPT = [{"role": "user", "content": "what is it"}]


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TALK = [said("assistant", "a cat"), said("user", "sure?"), said("assistant", "a dog")]
CALL = [said("assistant", "wait"), said("tool", "42"), said("tool", "43"), said("assistant", "the dog")]


def row(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]], number: int = 1, **more: Any) -> PreferenceRow:
    return PreferenceRow(PROMPT, chosen, rejected, source="talks.jsonl", row=number, **more)


def counted_texts(tokenizer: Any, pair: TokenizedPair) -> tuple[str, str]:
    """What a batch counts of both responses."""
    batch = ResponseCollator(0)([pair])
    found = (tokenizer.decode(batch["target_ids"][batch["sequence_index"] == side]) for side in (0, 1))
    return next(found), next(found)


def test_only_the_assistant_is_counted(tokenizer: Any) -> None:
    tokenized = tokenize_pairs([row(TALK, CALL)], tokenizer, None)
    [pair] = tokenized.pairs
    assert counted_texts(tokenizer, pair) == ("a cat<|end|>a dog<|end|>", "wait<|end|>the dog<|end|>")
    assert tokenizer.decode(pair.chosen_ids) == "a cat<|end|>\n<|user|>sure?<|end|>\n<|assistant|>a dog<|end|>"
    uncounted = len(pair.chosen_ids) + len(pair.rejected_ids) - sum(counted_tokens(pair))
    assert tokenized.report.uncounted_tokens == uncounted > 0
    assert (
        f"In 1 of 1 rows a user or a tool speaks within a response: {uncounted} tokens"
        in tokenized.report.warnings()[0]
    )
    everything = tokenize_pairs([row(TALK, CALL)], tokenizer, None, counted_turns="all")
    assert counted_texts(tokenizer, everything.pairs[0])[0] == tokenizer.decode(pair.chosen_ids)
    assert "all is counted" in everything.report.warnings()[0]


def test_a_cut_and_an_open_end_keep_their_gaps(tokenizer: Any) -> None:
    open_row = row(TALK, CALL, chosen_finished=False)
    [pair] = tokenize_pairs([open_row], tokenizer, None).pairs
    assert counted_texts(tokenizer, pair)[0] == "a cat<|end|>a dog"
    room = len(pair.prompt_ids) + pair.chosen_gaps[0][0] + 2  # in the middle of the user's turn
    [cut] = tokenize_pairs([open_row], tokenizer, room).pairs
    assert counted_texts(tokenizer, cut)[0] == "a cat<|end|>"


FORGETFUL = (  # what an earlier turn thought is left out once a user has spoken again
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}MARK"
    "{{ m['content'] if loop.last else m['content'].split('=')[-1] }}ENDMARK{{ '<|end|>' }}{% else %}"
    "{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
THINKS = [said("assistant", "hm=a cat"), said("user", "sure?"), said("assistant", "hm=a dog")]


def test_where_earlier_turns_change_the_templates_own_mask_tells(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = FORGETFUL.replace("ENDMARK", "{% endgeneration %}").replace("MARK", "{% generation %}")
    monkeypatch.setattr(tokenizer, "chat_template", marked)
    [pair] = tokenize_pairs([row(THINKS, TALK)], tokenizer, None).pairs
    assert counted_texts(tokenizer, pair) == ("a cat<|end|>hm=a dog<|end|>", "a cat<|end|>a dog<|end|>")


def test_where_nothing_tells_the_row_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", FORGETFUL.replace("ENDMARK", "").replace("MARK", ""))
    rows = [row(TALK, CALL), row(THINKS, TALK, 2)]
    with pytest.raises(
        BadPreferences, match=r"talks\.jsonl:2: chosen: has turns of others .* counted_turns=all counts"
    ):
        tokenize_pairs(rows, tokenizer, None)
    assert len(tokenize_pairs(rows, tokenizer, None, on_bad_rows="skip").pairs) == 1
    assert len(tokenize_pairs(rows, tokenizer, None, counted_turns="all").pairs) == 2


PAIRS = [
    TokenizedPair.of([5, 6, 7], [8, 9, 10, 11, 12], [13, 14], chosen_gaps=((1, 3),)),
    TokenizedPair.of([5, 6, 7], [15, 16], [17, 18, 19, 20, 21, 22], rejected_gaps=((1, 2), (3, 5))),
    TokenizedPair.of([23], [24, 25], [26]),
]


@pytest.mark.parametrize(
    "collator",
    [
        ResponseCollator(0, True),
        ResponseCollator(0, True, group_prompts=True),
        ResponseCollator(0, True, max_tokens_per_row=40),
    ],
    ids=["shared", "grouped", "packed"],
)
def test_every_layout_counts_the_same_tokens(collator: ResponseCollator, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")

    def flat(collate: ResponseCollator) -> tuple[ResponseBatch, torch.Tensor]:
        batch = ResponseBatch.from_inputs(collate(PAIRS))
        with torch.no_grad():
            return batch, response_hidden(model, batch.model_inputs(), batch.response_index)

    (padded, expected), (other, states) = flat(ResponseCollator(0)), flat(collator)
    assert padded.target_ids.tolist() == [8, 11, 12, 15, 16, 24, 25, 13, 14, 17, 19, 22, 26]
    assert torch.equal(padded.target_ids, other.target_ids)
    assert torch.equal(padded.sequence_index, other.sequence_index)
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    assert sum(sum(counted_tokens(pair)) for pair in PAIRS) == len(padded.target_ids)


def test_the_cache_knows_what_is_counted() -> None:
    layout = CacheLayout.of(PAIRS, [])
    assert layout.tokens == 13
    rows = layout.rows(PAIRS)
    assert rows is not None
    assert sorted(rows.tolist()) == list(range(13))
    counted_whole = TokenizedPair.of(PAIRS[0].prompt_ids, PAIRS[0].chosen_ids, PAIRS[0].rejected_ids)
    assert tokens_digest(counted_whole) != tokens_digest(PAIRS[0])
    assert layout.rows([counted_whole]) is None


def trainer(model: Any, data: Any, folder: Any, **more: Any) -> TDPOTrainer:
    args = TDPOConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, max_steps=1,
        per_device_train_batch_size=2, per_device_eval_batch_size=2, **more,
    )  # fmt: skip
    return TDPOTrainer(model, different_model(model), args, None, data, processing_class=build_tokenizer())


def test_the_trainer_counts_as_it_is_asked_to(tiny_model: Callable[..., Any], tmp_path: Any) -> None:
    """Evaluated with a cached reference and with one that runs, and predicted from plain rows."""
    data = [
        {"prompt": PROMPT, "chosen": TALK, "rejected": CALL},
        {"prompt": PROMPT, "chosen": CALL, "rejected": [said("assistant", "no")]},
    ]
    cached = trainer(
        tiny_model("llama"), data, tmp_path, reference="cache", reference_cache_dir=str(tmp_path / "cache")
    )
    running = trainer(tiny_model("llama"), data, tmp_path, reference="model")
    everything = trainer(tiny_model("llama"), data, tmp_path, reference="model", counted_turns="all")
    numbers = [made.evaluate(data) for made in (cached, running, everything)]
    for name in ("eval_chosen_logp", "eval_margin", "eval_rejected_forward_kl"):
        assert numbers[0][name] == pytest.approx(numbers[1][name], rel=1e-4)
    assert numbers[2]["eval_chosen_logp"] < numbers[1]["eval_chosen_logp"] - 1, "more tokens, less likely"
    predicted = running.predict(data)
    assert predicted.predictions is None
    assert predicted.metrics["test_chosen_logp"] == pytest.approx(numbers[1]["eval_chosen_logp"], rel=1e-6)
    with pytest.raises(ValueError, match="counted_turns must be one of assistant, all, got 'users'"):
        TDPOConfig(output_dir=str(tmp_path), counted_turns="users", use_cpu=True)  # type: ignore[arg-type]
