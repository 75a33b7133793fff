"""Exact probabilities of the known answers to prompts, under policy and reference, by teacher forcing.

So the modes that a model keeps are computed and not sampled: no mode is missed because too few responses were drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..batches import PromptResponses
from ..chat_templates import Conversation, Encoder, EndOfTurn, end_ids, end_of_turn, without_tail
from ..diversity.exact_modes import log_sum
from ..environments import Prompt
from ..sampling.sampler import encode_prompts
from ..scores import sum_by_sequence
from ..scoring.layout import grouped_collator
from ..scoring.policy_statistics import PolicyStatistics
from .held_out_pairs import Progress, collated

LogProbabilities = dict[str, float]


@dataclass(frozen=True)
class AnswerProbabilities:
    """For each prompt the log-probability of every mode, in nats, under both models.

    A mode's probability is the sum over its answers. A prompt without known answers has an empty dict.
    """

    policy: list[LogProbabilities]
    reference: list[LogProbabilities]


@torch.no_grad()
def answer_log_probabilities(
    model: Any,
    statistics: PolicyStatistics,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    answers: Sequence[Mapping[str, Sequence[str]]],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> AnswerProbabilities:
    """Score every answer `answers[prompt][mode]` (texts of whole responses) teacher-forced, its end of turn included.

    One tokenisation of a text is scored, the tokenizer's own, with the end of a turn that the chat template writes (for
    plain text, the tokenizer's end of sequence). Other tokens for the same text, which a model may sample too, are not
    counted. Probabilities are those at temperature 1, whatever an evaluation samples with. A batch has `batch_size`
    answers; those to one prompt share its computation where the model allows that.

    Raises:
        ValueError: two answers to a prompt have the same tokens, so that a probability would be added twice.
    """
    encoded = _encoded(tokenizer, prompts, answers)
    sequences = [PromptResponses(ids, [response]) for ids, of_prompt in encoded for _, response in of_prompt]
    policy: list[float] = []
    reference: list[float] = []
    if sequences:
        device = next(model.parameters()).device
        others = [statistics.reference_model]
        collator = grouped_collator(model, sequences, tokenizer.pad_token_id, other_models=others)
        for start in range(0, len(sequences), batch_size):
            batch = collated(collator, sequences[start : start + batch_size], device)
            stats = statistics(model, batch)
            for values, into in ((stats.policy_logp, policy), (stats.reference_logp, reference)):
                into += sum_by_sequence(values, batch.sequence_index, batch.num_prompts)[0].tolist()
            if progress is not None:
                progress(len(policy), len(sequences))
    modes = [[mode for mode, _ in of_prompt] for _, of_prompt in encoded]
    return AnswerProbabilities(_by_mode(modes, policy), _by_mode(modes, reference))


def _encoded(
    tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[Mapping[str, Sequence[str]]]
) -> list[tuple[list[int], list[tuple[str, list[int]]]]]:
    """Of each prompt its ids, and (mode, ids) of each of its answers."""
    encoder, end = Encoder(tokenizer), end_of_turn(tokenizer, end_ids(tokenizer, None))
    all_ids = encode_prompts(tokenizer, [p.rendered_from for p in prompts], [p.id for p in prompts])
    encoded = []
    for prompt, ids, modes in zip(prompts, all_ids, answers, strict=True):
        texts = [(mode, text) for mode, of_mode in modes.items() for text in of_mode]
        of_prompt = [(mode, _answer_ids(encoder, end, prompt, ids, text)) for mode, text in texts]
        _check_different(prompt, of_prompt)
        encoded.append((ids, of_prompt))
    return encoded


def _answer_ids(encoder: Encoder, end: EndOfTurn, prompt: Prompt, prompt_ids: list[int], text: str) -> list[int]:
    """The tokens of a response that says `text` and ends, as they follow the tokens of the prompt.

    A response is sampled behind exactly these prompt tokens. So where prompt and answer as one text have other tokens
    at their border, the answer is tokenised alone.
    """
    tokenizer, source = encoder.tokenizer, prompt.rendered_from
    if isinstance(source, str):
        whole = encoder.plain(source + text, is_prompt=True)
        tail = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        alone = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*(_behind(whole, prompt_ids) or alone), *tail]
    conversation = source if isinstance(source, Conversation) else Conversation(source)
    rendered = encoder.render(conversation.followed_by([{"role": "assistant", "content": text}]))
    whole = encoder.rendered(without_tail(rendered, end, finished=True))
    ending = end.text if end.token_id is None else str(tokenizer.decode([end.token_id]))
    return _behind(whole, prompt_ids) or list(tokenizer(text + ending, add_special_tokens=False)["input_ids"])


def _behind(whole: list[int], prompt_ids: list[int]) -> list[int]:
    return whole[len(prompt_ids) :] if whole[: len(prompt_ids)] == prompt_ids else []


def _check_different(prompt: Prompt, of_prompt: Sequence[tuple[str, list[int]]]) -> None:
    mode_of_tokens: dict[tuple[int, ...], str] = {}
    for mode, ids in of_prompt:
        if tuple(ids) in mode_of_tokens:
            raise ValueError(
                f"prompt {prompt.id!r}: an answer of mode {mode!r} has the tokens of an answer of mode "
                f"{mode_of_tokens[tuple(ids)]!r}. Probabilities of answers are added, so each must be a text of its own"
            )
        mode_of_tokens[tuple(ids)] = mode


def _by_mode(modes: Sequence[Sequence[str]], values: Sequence[float]) -> list[LogProbabilities]:
    """Values of all answers, in order, as one log-probability for each mode of each prompt."""
    rest = iter(values)
    grouped: list[dict[str, list[float]]] = []
    for of_prompt in modes:
        groups: dict[str, list[float]] = {}
        for mode in of_prompt:
            groups.setdefault(mode, []).append(next(rest))
        grouped.append(groups)
    return [{mode: log_sum(group) for mode, group in groups.items()} for groups in grouped]
