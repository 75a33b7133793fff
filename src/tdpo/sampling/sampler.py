"""Seeded sampling from a causal language model: the one sampler of pair sampling, evaluation and rollouts.

The random numbers belong to the response, not to the batch: one uniform number for each new token, drawn from
`(seed, prompt_index, sample_index)` alone and turned into a token by the inverse of the cumulative distribution.
So neither batch size nor order changes a response beyond the rounding of the model's own matrix products.

It saves time in five places against `model.generate(do_sample=True)`. It draws no exponential variate for every entry
of the vocabulary, as `torch.multinomial` does. The common beginning of all prompts of a batch is encoded once, and so
is a prompt that gets several responses. The key-value cache does not grow by copying. Finished rows leave the batch.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..chat_templates import Encoder, Stopping, TemplateRefusal
from ..models import check_causal, independent_length, why_dependent
from .compiled_steps import capacity_for, count_step, rows_to_keep
from .decoding import DecodingBatch, Way
from .decoding_ways import way_of, with_static_steps
from .drawing import draw_tokens
from .recorded_steps import RecordedSteps
from .reused_cache import ReusedCache
from .settings import SamplingSettings

if TYPE_CHECKING:
    from ..chat_templates import PromptInput

Progress = Callable[[int, int], None]  # (new tokens so far, responses that are complete)
OnComplete = Callable[[list["SampledResponse"]], None]
ROWS_AT_ONCE = 8  # rows that a CPU draws tokens for in one go


@dataclass(frozen=True)
class SampledResponse:
    """One sampled response. `token_ids` ends with an end-of-sequence token exactly if `finished`.

    `logps` are the log-probabilities of the tokens in what they were drawn from, in nats, where a server was asked for
    them: the policy's own may differ.
    """

    prompt_index: int
    sample_index: int
    token_ids: list[int]
    text: str
    finished: bool
    logps: list[float] | None = None


def encode_prompts(
    tokenizer: Any, prompts: Sequence[PromptInput], names: Sequence[Any] | None = None
) -> list[list[int]]:
    """Token ids of every prompt: messages through the chat template up to where the assistant's response begins, plain
    text as the tokenizer encodes it, less an end-of-sequence token that it may put behind every text.

    Raises ValueError, naming the prompt (by `names`, default 0, 1, …), for messages without a chat template or with the
    assistant's turn at the end, for a conversation that the template refuses, and for a prompt without tokens.
    """
    encoder = Encoder(tokenizer)
    return [
        _encode(encoder, prompt, name)
        for prompt, name in zip(prompts, range(len(prompts)) if names is None else names, strict=True)
    ]


def _encode(encoder: Encoder, prompt: PromptInput, name: Any) -> list[int]:
    messages: Any = getattr(prompt, "messages", prompt)
    if not isinstance(messages, str):
        if not getattr(encoder.tokenizer, "chat_template", None):
            raise ValueError(
                f"prompt {name} is a list of messages, but the tokenizer has no chat template: "
                "use plain text, or the tokenizer of an instruction-tuned model"
            )
        if not messages or messages[-1]["role"] == "assistant":
            raise ValueError(f"prompt {name} ({messages!r}) must end with a turn that the assistant can answer")
    try:
        ids = encoder.prompt(prompt)
    except TemplateRefusal as refusal:
        raise TemplateRefusal(f"prompt {name}: {refusal}") from refusal.__cause__
    if not ids:
        raise ValueError(f"prompt {name} ({messages!r}) has no tokens; the model needs at least one to start from")
    return ids


def stop_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a response: those of the model's generation config, the tokenizer's own, and the one with
    which the chat template ends a turn."""
    return Stopping.of(model, tokenizer).ids


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[PromptInput],
    settings: SamplingSettings,
    *,
    progress: Progress | None = None,
    prompt_indices: Sequence[int] | None = None,
    first_sample: int = 0,
    on_complete: OnComplete | None = None,
) -> list[SampledResponse]:
    """Sample `settings.num_samples` responses to every prompt, in the order of the prompts, then of the responses.

    `prompt_indices` (default 0, 1, …) and `first_sample` say which random numbers belong to which response: a part of a
    larger set of prompts or responses gets exactly what it would get in the whole. `progress` is called after every
    step with the number of new tokens and of complete responses, `on_complete` with the responses to some of the
    prompts once all of these are there, longest prompts first: what is left then forms the same batches in a call of
    its own. Adapters work, and under `models.merged_adapter` cost no time.

    Raises ValueError for a prompt that leaves no room for `max_new_tokens` in the model's context, for token ids that
    the model does not know, and for logits that are NaN or infinite; each names the prompt. And for a model that looks
    ahead, which has no next token to sample.
    """
    check_causal(model)
    indices = list(range(len(prompts))) if prompt_indices is None else list(prompt_indices)
    if len(indices) != len(prompts) or len(set(indices)) != len(indices):
        raise ValueError(f"prompt_indices must be {len(prompts)} different numbers, one a prompt, not {indices}")
    encoded = dict(zip(indices, encode_prompts(tokenizer, prompts), strict=True))
    check_fit(model, encoded, settings.max_new_tokens)
    rows = [
        # Python documents that a seed of type str gives the same numbers in every version and on every machine; a hash
        # of all three numbers lies behind it, so that neighbouring seeds do not share streams.
        _Row(index, encoded[index], k, random.Random(f"{settings.seed}/{index}/{k}"))
        for index in sorted(indices, key=lambda index: -len(encoded[index]))  # longest first: memory fails at once
        for k in range(first_sample, first_sample + settings.num_samples)
    ]
    stop = Stopping.of(model, tokenizer)
    responses: list[SampledResponse] = []
    was_training = model.training
    model.eval()
    try:
        longest = max(map(len, encoded.values()), default=0) + settings.max_new_tokens
        way = way_of(model, longest)
        batches_of_groups = [_batches(group, settings) for group in _groups(rows, settings, way)]
        loop = _Loop(model, settings, stop, progress, way, longest, sum(map(len, batches_of_groups)))
        for batches in batches_of_groups:
            for batch in batches:
                loop.run(batch)
            complete = [row.response(stop) for batch in batches for row in batch]
            responses += complete
            if on_complete is not None:
                on_complete(complete)
    finally:
        model.train(was_training)
    place = {index: position for position, index in enumerate(indices)}
    return sorted(responses, key=lambda response: (place[response.prompt_index], response.sample_index))


def check_fit(model: Any, encoded: Mapping[Any, Sequence[int]], max_new_tokens: int) -> None:
    """Raise ValueError for the first prompt, by its number or name, that the model cannot take or has no room for."""
    config = model.config.get_text_config()
    context, independent = getattr(config, "max_position_embeddings", None), independent_length(config)
    for index, ids in encoded.items():
        if context and len(ids) >= context:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens: with a response it does not fit into the model's context of "
                f"{context} tokens; shorten it or leave it out"
            )
        if context and len(ids) + max_new_tokens > context:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens; with max_new_tokens={max_new_tokens} it does not fit into the "
                f"model's context of {context} tokens: shorten the prompt or lower max_new_tokens"
            )
        if independent and len(ids) + max_new_tokens > independent:
            why = why_dependent(independent, len(ids) + max_new_tokens)
            raise ValueError(
                f"prompt {index} with max_new_tokens={max_new_tokens} {why}: shorten the prompt or lower max_new_tokens"
            )
        if max(ids) >= config.vocab_size:
            raise ValueError(
                f"prompt {index} has token id {max(ids)}, but the model knows only {config.vocab_size} tokens: "
                "tokenizer and model do not belong together"
            )


@dataclass(eq=False)
class _Row:
    """A response that is not complete; `generator` gives one uniform number for each of its steps."""

    prompt_index: int
    prompt_ids: list[int]
    sample_index: int
    generator: random.Random

    def __post_init__(self) -> None:
        self.token_ids: list[int] = []
        self.finished = False

    def response(self, stop: Stopping) -> SampledResponse:
        text = stop.text_before(self.token_ids, self.finished)
        return SampledResponse(self.prompt_index, self.sample_index, self.token_ids, text, self.finished)


def _groups(rows: list[_Row], settings: SamplingSettings, way: Way) -> Iterator[list[_Row]]:
    """All responses to as many prompts as fit into a batch, but at least to one: a prompt is encoded once."""
    size = max(1, settings.batch_size // settings.num_samples) * settings.num_samples
    # Rows are sorted by the lengths of their prompts.
    parts = [rows] if way.pads else [list(part) for _, part in groupby(rows, lambda row: len(row.prompt_ids))]
    for part in parts:
        for start in range(0, len(part), size):
            yield part[start : start + size]


def _batches(group: list[_Row], settings: SamplingSettings) -> list[list[_Row]]:
    return [group[start : start + settings.batch_size] for start in range(0, len(group), settings.batch_size)]


class _Loop:
    """Takes so many batches of rows to their end, one token a step; the longest row has up to `longest` tokens."""

    def __init__(
        self,
        model: Any,
        settings: SamplingSettings,
        stop: Stopping,
        progress: Progress | None,
        way: Way,
        longest: int,
        batches: int,
    ) -> None:
        self.model, self.settings, self.stop, self.progress, self.way = model, settings, stop, progress, way
        self.longest, self.batches_left = longest, batches
        self.steps_of_batches: list[int] = []
        self.cache: ReusedCache | None = None
        self.recorded = RecordedSteps(model)
        self.tokens = self.complete = 0

    @torch.no_grad()
    def run(self, rows: list[_Row]) -> None:
        prompts = {row.prompt_index: row.prompt_ids for row in rows}
        slots = {index: slot for slot, index in enumerate(prompts)}
        batch = self._begin(max(map(len, prompts.values())) + self.settings.max_new_tokens)
        logits = batch.prefill(list(prompts.values()))
        repeats = [slots[row.prompt_index] for row in rows]
        batch.select(repeats)
        logits = logits[repeats]
        for step in range(self.settings.max_new_tokens):
            last = step + 1 == self.settings.max_new_tokens
            tokens = self._draw(logits, rows, step)
            self._append(rows, tokens.tolist(), last)
            live = [slot for slot, row in enumerate(rows) if not row.finished]
            if last or not live:
                self.steps_of_batches.append(step)
                return
            if batch.way.is_static:
                live = rows_to_keep(live, len(rows))
            if batch.way.steps != "compiled":
                count_step(self.model)
            # Leaving copies the cache; an eighth of the rows repays that within a step or two.
            if (len(rows) - len(live)) * 8 >= len(rows):
                batch.select(live)
                rows, tokens = [rows[slot] for slot in live], tokens[live]
            logits = batch.feed(tokens[:, None], torch.ones_like(tokens[:, None]))

    def _begin(self, capacity: int) -> DecodingBatch:
        # Responses may end long before `max_new_tokens`, so the steps to come are judged by the batches before.
        to_come = self.batches_left * statistics.fmean(self.steps_of_batches or [0])
        at_most = self.batches_left * (self.settings.max_new_tokens - 1)
        self.batches_left -= 1
        way = with_static_steps(self.model, self.way, int(to_come), at_most)
        if not way.is_static:
            return DecodingBatch(self.model, capacity, way)
        if self.cache is None:
            self.cache = ReusedCache(self.model.config)
        return DecodingBatch(self.model, capacity_for(capacity, self.longest), way, self.cache, self.recorded)

    def _append(self, rows: list[_Row], tokens: list[int], last: bool) -> None:
        for row, token in zip(rows, tokens, strict=True):
            if row.finished:
                continue
            row.token_ids.append(token)
            row.finished = self.stop.ends(row.token_ids)
            self.tokens += 1
            self.complete += row.finished or last
        if self.progress is not None:
            self.progress(self.tokens, self.complete)

    def _draw(self, logits: Tensor, rows: list[_Row], step: int) -> Tensor:
        peak = logits.amax(-1)
        if not peak.isfinite().all():
            row = rows[int((~peak.isfinite()).nonzero()[0])]
            raise ValueError(
                f"the model's logits are NaN or infinite for prompt {row.prompt_index} at new token {step + 1}: check "
                f"the weights and the dtype ({logits.dtype}; float16 overflows in many models, bfloat16 does not)"
            )
        uniforms = torch.tensor([row.generator.random() for row in rows], dtype=torch.float64)
        if logits.device.type == "mps":  # which has no float64
            return self._draw_on_cpu(logits.cpu(), uniforms).to(logits.device)
        if logits.device.type == "cpu":
            return self._draw_on_cpu(logits, uniforms)
        return draw_tokens(logits, uniforms.to(logits.device), self.settings)

    def _draw_on_cpu(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        # A few rows at a time: float64 sums of a whole batch are memory that comes fresh from the system at every step,
        # and getting its pages takes longer than the sums. Small arrays are used again.
        parts = zip(logits.split(ROWS_AT_ONCE), uniforms.split(ROWS_AT_ONCE), strict=True)
        return torch.cat([draw_tokens(*part, self.settings) for part in parts])
