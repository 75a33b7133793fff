"""From rows to tensors: where responses start and end, what is cut, and which state predicts which token."""

from __future__ import annotations

from collections.abc import Callable
from os.path import commonprefix
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpo.batches import (
    BatchCounts,
    ResponseBatch,
    ResponseCollator,
    TokenizedPair,
    padded_batch,
    tokenize_pair,
    tokenize_pairs,
)
from tdpo.batches.tokenizing import Endings
from tdpo.chat_templates import Encoder
from tdpo.models import causal_lm_of, response_hidden
from tdpo.preferences import PreferenceRow
from tdpo.token_statistics import index_range

END, NEWLINE = 1, 203  # <|end|> and "\n" of the small tokenizer


def plain(prompt: str, chosen: str, rejected: str, row: int = 1, **more: Any) -> PreferenceRow:
    return PreferenceRow(prompt, chosen, rejected, source="pairs.jsonl", row=row, **more)


def chat(prompt: str, chosen: str, rejected: str, **more: Any) -> PreferenceRow:
    def turn(role: str, content: str) -> list[dict[str, Any]]:
        return [{"role": role, "content": content}]

    return PreferenceRow(
        turn("user", prompt),
        turn("assistant", chosen),
        turn("assistant", rejected),
        source="chats.jsonl",
        row=1,
        **more,
    )


def pair_of(row: PreferenceRow, tokenizer: Any, ends: tuple[int, ...] = (END,)) -> TokenizedPair:
    return tokenize_pair(row, Encoder(tokenizer), Endings.of(tokenizer, ends))[0]


def pair_and_moved(row: PreferenceRow, tokenizer: Any) -> tuple[TokenizedPair, bool]:
    """Also whether the boundary lies within what the prompt alone is tokenised to."""
    pair, wholes = tokenize_pair(row, Encoder(tokenizer), Endings.of(tokenizer))
    return pair, len(pair.prompt_ids) < len(wholes.prompt)


# ---- the boundary ----


def test_a_prompt_that_ends_in_a_space_loses_nothing_of_the_response(tokenizer: Any) -> None:
    """TRL's bug until 1.14: the prompt tokenised apart ends in a lone space that the whole does not have."""
    pair, moved = pair_and_moved(plain("the cat ", "sat on", "ran away"), tokenizer)
    assert tokenizer("the cat ")["input_ids"] == [265, 291, 225], "apart: the, cat, space"
    assert pair.prompt_ids == [265, 291]
    assert tokenizer.convert_ids_to_tokens(pair.chosen_ids)[0] == "Ġsat"
    assert tokenizer.decode(pair.chosen_ids) == " sat on<|end|>"
    assert tokenizer.decode(pair.rejected_ids) == " ran away<|end|>"
    assert moved


def test_a_boundary_that_holds_is_not_reported_as_moved(tokenizer: Any) -> None:
    pair, moved = pair_and_moved(plain("the cat", " sat", " ran"), tokenizer)
    assert pair.prompt_ids == tokenizer("the cat")["input_ids"]
    assert not moved


def test_a_word_that_grows_over_the_boundary_moves_it_for_both_responses(tokenizer: Any) -> None:
    # "the" is one token, "th" + "at" are two: only chosen merges with the prompt's last characters.
    pair, moved = pair_and_moved(plain("a th", "e cat", "at cat"), tokenizer)
    assert moved
    assert tokenizer.decode(pair.prompt_ids + pair.chosen_ids) == "a the cat<|end|>"
    assert tokenizer.decode(pair.prompt_ids + pair.rejected_ids) == "a that cat<|end|>"


TEXT = st.text(alphabet="the cat sand\n é", max_size=12)


@settings(max_examples=150, deadline=None)
@given(prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_prompt_and_response_are_always_the_tokenised_whole(
    tokenizer: Any, prompt: str, chosen: str, rejected: str
) -> None:
    pair = pair_of(plain(prompt, chosen, rejected), tokenizer)
    wholes = [tokenizer(prompt + response)["input_ids"] for response in (chosen, rejected)]
    assert pair.prompt_ids + pair.chosen_ids == [*wholes[0], END]
    assert pair.prompt_ids + pair.rejected_ids == [*wholes[1], END]
    assert pair.prompt_ids == commonprefix([tokenizer(prompt)["input_ids"], *wholes])  # noqa: RUF071  # of lists


def test_special_tokens_around_a_text_are_prompt_and_end(tokenizer: Any) -> None:
    """Tokenizers that wrap every text in <bos> and <eos>: the first belongs to the prompt, the second is the end."""

    class Wrapping:
        eos_token_id, chat_template = END, None

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            ids = tokenizer(text)["input_ids"]
            return {"input_ids": [2, *ids, END] if add_special_tokens else ids}

        def decode(self, ids: list[int]) -> str:
            return tokenizer.decode(ids)

    pair, moved = pair_and_moved(plain("the cat", " sat", " ran"), Wrapping())
    assert pair.prompt_ids == [2, 265, 291]
    assert pair.chosen_ids == [296, END]
    assert not moved, "the end token after the prompt alone is no merge"


# ---- the end of a response ----


def test_the_template_tail_after_the_end_token_is_cut(tokenizer: Any) -> None:
    pair = pair_of(chat("hi", "the cat", "a dog"), tokenizer)
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the cat"}]
    whole = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"]
    assert whole[-2:] == [END, NEWLINE]
    assert pair.prompt_ids + pair.chosen_ids == whole[:-1]
    assert tokenizer.decode(pair.prompt_ids) == "<|user|>hi<|end|>\n<|assistant|>"
    assert tokenizer.decode(pair.chosen_ids) == "the cat<|end|>"


def test_a_second_end_token_of_the_template_is_cut_too(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phi-3's template writes <|end|>, a newline and <|endoftext|>; a model stops at the first."""
    two_ends = tokenizer.chat_template + "{% if not add_generation_prompt %}{{ '<|pad|>' }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", two_ends)
    pair = pair_of(chat("hi", "the cat", "a dog"), tokenizer, ends=(END, 0))
    cut_off = pair_of(chat("hi", "the cat", "a dog", chosen_finished=False), tokenizer, ends=(END, 0))
    assert tokenizer.decode(pair.chosen_ids) == "the cat<|end|>"
    assert tokenizer.decode(cut_off.chosen_ids) == "the cat"


def test_several_turns_end_with_the_last_one(tokenizer: Any) -> None:
    row = chat("hi", "x", "a dog")
    row.chosen.extend([{"role": "user", "content": "and"}, {"role": "assistant", "content": "the end"}])  # type: ignore[union-attr]
    pair = pair_of(row, tokenizer)
    assert tokenizer.decode(pair.chosen_ids) == "x<|end|>\n<|user|>and<|end|>\n<|assistant|>the end<|end|>"


def test_plain_text_gets_one_end_token(tokenizer: Any) -> None:
    assert pair_of(plain("a", "b", "c"), tokenizer).chosen_ids[-1] == END
    given_twice = pair_of(plain("a", "b<|end|>", "c"), tokenizer)
    assert given_twice.chosen_ids == pair_of(plain("a", "b", "c"), tokenizer).chosen_ids
    inside = pair_of(plain("a", "b<|end|>d", "c"), tokenizer)
    assert inside.chosen_ids.count(END) == 2, "an end token within the text is text"


def test_an_unfinished_response_stays_open(tokenizer: Any) -> None:
    open_plain = pair_of(plain("a", "b", "c", chosen_finished=False), tokenizer)
    assert END not in open_plain.chosen_ids
    assert open_plain.rejected_ids[-1] == END
    open_chat = pair_of(chat("hi", "the cat", "a dog", rejected_finished=False), tokenizer)
    assert tokenizer.decode(open_chat.rejected_ids) == "a dog"
    assert open_chat.chosen_ids[-1] == END


def test_a_conversation_needs_a_chat_template(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match=r"chats\.jsonl:1 is a conversation, but the tokenizer has no chat template"):
        pair_of(chat("hi", "a", "b"), tokenizer)


def test_tools_and_template_arguments_reach_the_template(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uses_both = "{{ tools[0]['function']['name'] }}{{ mood }}" + tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", uses_both)
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}
    extra = {"tools": [tool], "chat_template_kwargs": {"mood": "calm"}}
    pair = pair_of(chat("hi", "a", "b", extra=extra), tokenizer)
    assert tokenizer.decode(pair.prompt_ids).startswith("weathercalm<|user|>")


# ---- truncation and the report ----

LONG = " the cat sat on the mat"  # six tokens, and an end token


def test_truncation_takes_the_end_token_too_and_is_counted(tokenizer: Any) -> None:
    rows = [plain("the dog", LONG, " ran"), plain("the dog", " sat", " ran", row=2)]
    tokenized = tokenize_pairs(rows, tokenizer, max_length=6)
    uncut = tokenize_pairs(rows, tokenizer, None).pairs
    assert len(uncut[0].prompt_ids) == 2
    assert len(uncut[0].chosen_ids) == 7
    assert tokenized.pairs[0].chosen_ids == uncut[0].chosen_ids[:4], "nobody stops in the middle of a sentence"
    assert tokenized.pairs[0].rejected_ids == uncut[0].rejected_ids
    assert tokenized.pairs[1] == uncut[1]
    report = tokenized.report
    assert (report.rows, report.pairs, report.truncated_rows, report.truncated_tokens) == (2, 2, 1, 3)
    assert report.longest == 6
    assert report.warnings() == [
        "1 of 2 rows are longer than max_length=6: 3 response tokens were cut from their ends, "
        "and with them the end-of-sequence token, so that nothing teaches to stop in the middle."
    ]


def test_an_open_response_is_cut_without_an_end_token(tokenizer: Any) -> None:
    row = plain("the dog", LONG, " ran", chosen_finished=False)
    [pair] = tokenize_pairs([row], tokenizer, max_length=5).pairs
    assert len(pair.chosen_ids) == 3
    assert END not in pair.chosen_ids


def test_a_prompt_that_fills_the_length_is_dropped_and_counted(tokenizer: Any) -> None:
    rows = [plain("the cat sat on", " x", " y", row=4), plain("the", " x", " y", row=5)]
    tokenized = tokenize_pairs(rows, tokenizer, max_length=4)
    assert [p.row for p in tokenized.pairs] == [5]
    assert tokenized.report.dropped_long_prompts == ["pairs.jsonl:4"]
    assert "the prompt alone fills max_length=4 (pairs.jsonl:4)" in tokenized.report.warnings()[0]


def test_rows_that_truncation_makes_identical_are_dropped_and_counted(tokenizer: Any) -> None:
    rows = [plain("the", LONG + " ran", LONG + " away"), plain("the", " x", " y", row=2)]
    tokenized = tokenize_pairs(rows, tokenizer, max_length=6)
    assert [p.row for p in tokenized.pairs] == [2]
    assert tokenized.report.dropped_identical == ["pairs.jsonl:1"]
    assert "same tokens, maybe only after truncation (pairs.jsonl:1)" in " ".join(tokenized.report.warnings())


def test_no_row_left_is_an_error_that_says_why(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"no usable pair among 1 rows.*fills max_length=2.*Raise max_length"):
        tokenize_pairs([plain("the cat sat", " x", " y")], tokenizer, 2)
    with pytest.raises(ValueError, match="same tokens") as identical:
        tokenize_pairs([plain("the", " x", " x")], tokenizer, None)
    assert "Raise max_length" not in str(identical.value), "that would not help"


def test_the_report_counts_and_averages(tokenizer: Any) -> None:
    rows = [plain("the cat ", "sat", "ran"), plain("the dog", LONG, " ran", row=2)]
    seen: list[int] = []
    report = tokenize_pairs(rows, tokenizer, None, progress=seen.append).report
    assert seen == [1, 2]
    assert report.boundary_moved == 1
    assert report.mean_prompt_tokens == 2.0
    assert report.mean_response_tokens == (2 + 2 + 7 + 2) / 4
    assert report.longest == 9
    assert report.as_dict()["rows"] == 2
    assert "In 1 of 2 rows the prompt's last characters merge" in report.warnings()[0]


def test_end_tokens_of_the_model_count_besides_the_tokenizers(tokenizer: Any) -> None:
    """A base tokenizer's end-of-sequence token need not be the token with which the template ends a turn."""
    row = plain("the dog", LONG + "<|pad|>", " ran")
    [pair] = tokenize_pairs([row], tokenizer, max_length=None, end_ids=[0]).pairs
    assert pair.chosen_ids[-1] == 0


# ---- the layout ----

IDS = st.lists(st.integers(1, 30), max_size=6)
PAIRS = st.lists(st.builds(TokenizedPair.of, prompt_ids=IDS, chosen_ids=IDS, rejected_ids=IDS), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(pairs=PAIRS)
def test_indices_agree_with_naive_shifting_and_slicing(pairs: list[TokenizedPair]) -> None:
    """The usual way: labels shifted by one, -100 on prompt and padding; row by row, in pure Python."""
    batch = padded_batch(pairs, pad_token_id=0)
    responses = [(p.prompt_ids, p.chosen_ids) for p in pairs] + [(p.prompt_ids, p.rejected_ids) for p in pairs]
    # What has no response is not computed.
    rows = [(s, *both) for s, both in enumerate(responses) if both[1]] or [(0, *responses[0])]
    width = max(len(prompt + response) for _, prompt, response in rows)
    assert batch.input_ids.shape == (len(rows), width)
    expected = []
    for r, (s, prompt, response) in enumerate(rows):
        padding = [-100] * (width - len(prompt) - len(response))
        labels = [-100] * len(prompt) + response + padding
        for position, label in enumerate(labels[1:]):
            if label != -100:
                expected.append((r * width + position, label, s))
        assert batch.input_ids[r].tolist() == prompt + response + [0] * len(padding)
        assert batch.attention_mask[r].tolist() == [1] * len(prompt + response) + [0] * len(padding)
    found = zip(batch.response_index.tolist(), batch.target_ids.tolist(), batch.sequence_index.tolist(), strict=True)
    assert list(found) == expected
    assert batch.num_prompts == len(pairs)
    assert batch.num_tokens == sum(len(prompt + response) for _, prompt, response in rows)


def test_without_a_prompt_the_first_token_has_no_predictor() -> None:
    batch = padded_batch([TokenizedPair.of([], [5, 6], [7])], pad_token_id=0)
    assert batch.target_ids.tolist() == [6]
    assert batch.response_index.tolist() == [0]
    assert batch.sequence_index.tolist() == [0], "the rejected response has one token and nothing that predicts it"


def test_an_empty_response_counts_no_token() -> None:
    batch = padded_batch([TokenizedPair.of([5], [], [7])], pad_token_id=0)
    assert batch.sequence_index.tolist() == [1]


def test_a_batch_survives_the_trainers_mapping() -> None:
    batch = padded_batch([TokenizedPair.of([5], [6], [7]), TokenizedPair.of([5, 6], [6, 7, 8], [7])], pad_token_id=0)
    inputs = ResponseCollator(0)([TokenizedPair.of([5], [6], [7]), TokenizedPair.of([5, 6], [6, 7, 8], [7])])
    again = ResponseBatch.from_inputs(send_to_device(inputs, "cpu"))  # accelerate's, which knows tensors
    assert again.num_prompts == 2 and again.counts == BatchCounts.of(batch)
    assert index_range(again.target_ids) == (6, 8) == tuple(torch.stack(batch.target_ids.aminmax()).tolist())
    assert index_range(again.sequence_index) == (0, 3)
    assert torch.equal(again.target_ids, batch.target_ids)
    assert again.position_ids is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_long_pair_in_the_batch_changes_no_other_pair(tiny_model: Callable[..., Any], family: str) -> None:
    model = tiny_model(family)
    small = TokenizedPair.of([5, 6, 7], [8, 9], [10, 11, 12, 13])
    long = TokenizedPair.of([20] * 40, [21] * 30, [22] * 50)

    def hidden(pairs: list[TokenizedPair]) -> torch.Tensor:
        batch = padded_batch(pairs, pad_token_id=0)
        with torch.no_grad():
            states = response_hidden(model, batch.model_inputs(), batch.response_index)
        return states[(batch.sequence_index % len(pairs)) == 0]

    alone, beside = hidden([small]), hidden([small, long])
    assert alone.shape == beside.shape == (6, causal_lm_of(model).config.hidden_size)
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-5)
