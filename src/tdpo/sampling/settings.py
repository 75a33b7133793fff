"""How to sample: the settings of every engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample.

    Args:
        num_samples: responses to each prompt.
        max_new_tokens: the most tokens of a response.
        temperature: 0 takes the most probable token.
        top_p: 1 keeps every token.
        top_k: 0 keeps every token.
        seed: of the random numbers.
        batch_size: rows that the model computes at once, one for each response.
    """

    num_samples: int = 1
    max_new_tokens: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.temperature != 0 and not 1e-6 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be 0 (the most probable token) or at least 1e-6, not {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (keep all) or a positive number, not {self.top_k}")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"temperature=0 with num_samples={self.num_samples} would give {self.num_samples} identical texts; "
                "use num_samples=1 or a temperature above 0"
            )
