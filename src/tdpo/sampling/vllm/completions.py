"""Completions: what is asked of a vLLM server for one response, and what its answer must look like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...chat_templates import Stopping
from ..sampler import SamplingSettings


@dataclass(frozen=True)
class Completion:
    """Tokens that a server drew, with their log-probabilities in nats, None where they were not asked for."""

    token_ids: list[int]
    logps: list[float] | None


def completion_request(
    model: str, prompt_ids: list[int], settings: SamplingSettings, stop: Stopping, seed: int, *, with_logps: bool
) -> dict[str, Any]:
    """The body of a request for one response.

    Nothing is left to the server, whose defaults come from the model's generation config: a temperature or a repetition
    penalty there would draw from another distribution than the model's. Its ends are ours alone (`ignore_eos`).
    """
    return {
        "model": model,
        "prompt": [prompt_ids],
        "n": 1,
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stop_token_ids": sorted(stop.ids),
        "ignore_eos": True,
        "stop": [stop.text] if stop.text else [],
        "skip_special_tokens": False,
        "return_token_ids": True,
        "logprobs": 0 if with_logps else None,
    }


def read_completion(answer: Any, *, max_new_tokens: int, vocab_size: int, with_logps: bool) -> Completion:
    """The completion in a server's answer.

    Raises:
        ValueError: it is not there, or is none of this model; the message says what is wrong.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ValueError(f"expected one choice, got {answer!r}")
    ids = choices[0].get("token_ids")
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise ValueError(f"expected token_ids below {vocab_size} (return_token_ids), got {ids!r}")
    if not 1 <= len(ids) <= max_new_tokens:
        raise ValueError(f"expected 1 to {max_new_tokens} tokens, got {len(ids)}")
    return Completion(ids, _logps(choices[0], len(ids)) if with_logps else None)


def _logps(choice: dict[str, Any], tokens: int) -> list[float]:
    part = choice.get("logprobs")
    values = part.get("token_logprobs") if isinstance(part, dict) else None
    if not isinstance(values, list) or len(values) != tokens:
        raise ValueError(f"expected {tokens} token_logprobs, got {part!r}")
    if not all(isinstance(value, int | float) and math.isfinite(value) and value < 1e-3 for value in values):
        raise ValueError(f"expected token_logprobs that are finite and not above 0, got {values!r}")
    return [min(float(value), 0.0) for value in values]


def until_the_end(completion: Completion, stop: Stopping, max_new_tokens: int) -> tuple[Completion, bool]:
    """The completion up to its first end, and whether it has one.

    Raises:
        ValueError: it stopped short where neither an end of ours nor the length asks for it.
    """
    for length in range(1, len(completion.token_ids) + 1):
        if stop.ends(completion.token_ids[:length]):
            logps = completion.logps
            return Completion(completion.token_ids[:length], None if logps is None else logps[:length]), True
    if len(completion.token_ids) < max_new_tokens:
        raise ValueError(
            f"it stopped after {len(completion.token_ids)} of {max_new_tokens} tokens, at token "
            f"{completion.token_ids[-1]}, which ends no response of this model: start the server with "
            "--generation-config vllm"
        )
    return completion, False
