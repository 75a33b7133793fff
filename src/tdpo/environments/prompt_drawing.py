"""Some of the prompts to train on, drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tdpo.environments.environment import Prompt


def drawn_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` of the prompts in the order in which they are drawn without replacement; the seed alone decides.

    Raises:
        ValueError: there are fewer.
    """
    return random.Random(seed).sample(list(prompts), count)
