"""The lines of samples.jsonl: one for each response that an evaluation drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..environments import Prompt
from ..sampling.sampler import SampledResponse
from .held_out_responses import Distances, HeldOutResponses

# What is measured of each response, by its name in samples.jsonl; an empty column is null in every line.
Numbers = Mapping[str, Sequence[float]]
UNMEASURED_BASE: Numbers = {"forward_kl": [], "policy_entropy": []}
UNMEASURED: Numbers = {"reverse_kl": [], "policy_entropy": []}


def base_numbers(measured: Distances) -> Numbers:
    """What is measured of the base model's responses."""
    return {"forward_kl": measured.forward_kl, "policy_entropy": measured.reference_entropy}


def trained_numbers(measured: Distances) -> Numbers:
    """What is measured of the trained model's own responses."""
    return {"reverse_kl": measured.reverse_kl, "policy_entropy": measured.policy_entropy}


def sample_lines(
    model: str, prompts: list[Prompt], sampled: HeldOutResponses, numbers: Numbers
) -> list[dict[str, Any]]:
    """Lines of samples.jsonl, one for each response; `numbers` are of the first few to every prompt, else null."""
    rewards: Sequence[float | None] = sampled.rewards or [None] * len(sampled.responses)
    values = {name: sampled.table(column) for name, column in numbers.items()}
    return [
        {
            "prompt_id": prompts[response.prompt_index].id,
            "prompt": _last_turn(prompts[response.prompt_index].prompt),
            "sample_index": response.sample_index,
            "model": model,
            "text": response.text,
            "reward": reward,
            "tokens": len(response.token_ids),
            "finished": response.finished,
            **{name: _entry(table, response) for name, table in values.items()},
        }
        for response, reward in zip(sampled.responses, rewards, strict=True)
    ]


def _entry(table: NDArray[np.float64], response: SampledResponse) -> float | None:
    measured = response.sample_index < table.shape[1]
    return float(table[response.prompt_index, response.sample_index]) if measured else None


def _last_turn(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
