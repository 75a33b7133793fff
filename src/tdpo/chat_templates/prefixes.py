"""The common prefix of texts or of lists of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def prefix_length(*sequences: Sequence[Any]) -> int:
    """The length of the longest common prefix."""
    length = 0
    for parts in zip(*sequences, strict=False):
        if any(part != parts[0] for part in parts):
            break
        length += 1
    return length
