"""How many of a prompt's modes a model keeps, from the probabilities of known answers: computed, not sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

KEPT = 0.25  # of the uniform share: from here on a mode counts as kept


def exact_mode_metrics(
    log_probabilities: Mapping[str, float], rewards: Mapping[str, float] | None = None
) -> dict[str, float | None]:
    """Metrics of the modes of one prompt, from the log-probability (nats) of each mode under a model.

    With p(m) = exp(log_probabilities[m]) and the shares s(m) = p(m) / Σp:

    `answer_mass`: Σp, the probability that a response is one of the known answers word for word, in [0, 1].
    `exact_effective_modes`: exp(−Σ s log s), in [1, M]; the Hill number of order 1 (Hill 1973), as `mode_entropy`.
    `exact_mode_coverage`: the share of the M modes with s(m) ≥ 1/(4M), a quarter of the uniform share, in (0, 1].
    `expected_grade`: Σ s·rewards, if `rewards` has the reward of each mode's answer.

    All but the mass are None where it is 0. Without modes the result is empty.

    Raises:
        ValueError: a log-probability is NaN, or above 0 by more than rounding; or `rewards` has other modes.
    """
    if not log_probabilities:
        return {}
    for mode, value in log_probabilities.items():
        if not value <= 1e-4:
            raise ValueError(f"the log-probability of mode {mode!r} is {value}; expected a number of at most 0")
    if rewards is not None and rewards.keys() != log_probabilities.keys():
        raise ValueError(f"rewards are given for {sorted(rewards)}, probabilities for {sorted(log_probabilities)}")
    total = log_sum(list(log_probabilities.values()))
    if total == -math.inf:
        undefined = dict.fromkeys(("exact_effective_modes", "exact_mode_coverage"), None)
        return {"answer_mass": 0.0, **undefined, **({} if rewards is None else {"expected_grade": None})}
    shares = {mode: math.exp(value - total) for mode, value in log_probabilities.items()}
    entropy = -math.fsum(share * math.log(share) for share in shares.values() if share > 0)
    count = sum(share * len(shares) >= KEPT for share in shares.values())
    metrics: dict[str, float | None] = {
        "answer_mass": math.exp(total),
        "exact_effective_modes": math.exp(entropy),
        "exact_mode_coverage": count / len(shares),
    }
    if rewards is not None:
        metrics["expected_grade"] = math.fsum(share * rewards[mode] for mode, share in shares.items())
    return metrics


def log_sum(values: Sequence[float]) -> float:
    """Return log Σ exp(values), of one value at least; −inf where all of them are."""
    top = max(values)
    return top if top == -math.inf else top + math.log(math.fsum(math.exp(value - top) for value in values))
