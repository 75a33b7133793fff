"""Where tests run models: on the GPU where there is one, which `make test` hides and `make test-gpu` shows.

Asked when a test runs and not when it is imported: a process that is forked later could not use the GPU.
"""

from __future__ import annotations

import torch


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def rounding() -> float:
    """How many times as far as on a CPU two ways to the same numbers may round apart.

    On a GPU the library chooses another order of summation for another shape, and the head's kernels sum by blocks.
    """
    return 10.0 if device() == "cuda" else 1.0


def make_deterministic() -> None:
    """On a GPU: of operations that add in any order, those that always add in the same, where there are such."""
    if device() == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)


# Arguments of a trainer, for what is refused on a CPU whatever else is there.
ON_THE_CPU = {"use_cpu": True}
