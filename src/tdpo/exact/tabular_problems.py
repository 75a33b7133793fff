"""The problems of the benchmark: a reference, a reward of every response, and which responses are good.

There are three shapes of reference (how its probability is spread) and three rewards (which good responses are worth
more), on choices among a few symbols and on trees. Good responses, the *modes*, are every second response in the order
of the reference's probability, six at most, so that some are common and some are rare. All others have reward 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .settings import Settings
from .trees import Tree

SHAPES = ("peaked", "flat", "multimodal")
REWARDS = ("equal", "common", "rare")


@dataclass(frozen=True)
class Problem:
    """`reference` [nodes, symbols] is node_logp, `rewards` [K], `modes` [K] bool; all float64."""

    tree: Tree
    shape: str
    reward: str
    reference: Tensor
    rewards: Tensor
    modes: Tensor
    settings: Settings

    @property
    def name(self) -> str:
        """For instance 3^3 peaked equal."""
        return f"{self.tree.name} {self.shape} {self.reward}"

    @cached_property
    def reference_logp(self) -> Tensor:
        """log π_ref(y) [K]."""
        return self.tree.response_logp(self.reference)


def make_problem(
    tree: Tree, shape: str, reward: str, settings: Settings | None = None, seed: int | None = None
) -> Problem:
    """A problem of this shape and reward; `seed` (default: that of the settings) decides which symbols are likely.

    Raises:
        ValueError: `shape` is not in SHAPES or `reward` not in REWARDS.
    """
    if shape not in SHAPES or reward not in REWARDS:
        raise ValueError(
            f"shape must be one of {', '.join(SHAPES)} and reward one of {', '.join(REWARDS)}, not {shape}, {reward}"
        )
    settings = settings or Settings()
    generator = torch.Generator().manual_seed(settings.seed if seed is None else seed)
    rows = [_shape(shape, tree.symbols)[torch.randperm(tree.symbols, generator=generator)] for _ in range(tree.nodes)]
    reference = torch.stack(rows).log_softmax(-1)
    order = tree.response_logp(reference).argsort(descending=True, stable=True)
    good = order[::2][: settings.most_modes]
    grades = torch.linspace(1.0, settings.least_reward, len(good), dtype=torch.float64)
    worth = {"equal": torch.ones_like(grades), "common": grades, "rare": grades.flip(0)}[reward]
    rewards = torch.zeros(tree.responses, dtype=torch.float64).index_copy(0, good, worth)
    return Problem(tree, shape, reward, reference, rewards, rewards > 0, settings)


def all_problems(settings: Settings) -> Iterator[Problem]:
    """Every shape with every reward on each of the trees."""
    for tree in settings.trees:
        for shape in SHAPES:
            for reward in REWARDS:
                yield make_problem(tree, shape, reward, settings)


def _shape(shape: str, symbols: int) -> Tensor:
    """Unnormalised log-probabilities [symbols], the likeliest first."""
    rank = torch.arange(symbols, dtype=torch.float64)
    if shape == "peaked":  # each symbol is half as likely as the one before, the last ones equally rare
        return -0.7 * rank.clamp_max(8.0)
    if shape == "flat":  # the rarest is two thirds as likely as the likeliest
        return -0.4 * rank / max(symbols - 1, 1)
    heights = rank.new_tensor([0.0, -0.2, -0.5, -1.0])  # four modes or fewer, of unlike heights, over a low floor
    peaks = min(len(heights), max(symbols // 2, 1))
    floor = rank.new_full((symbols,), -3.0)
    floor[:peaks] = heights[:peaks]
    return floor
