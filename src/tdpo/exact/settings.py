"""Every number of the exact benchmark that is a choice, in one object that the benchmark writes down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .trees import Tree


@dataclass(frozen=True)
class Settings:
    """The problems (trees, rewards, targets) and how the learners learn. KLs are in nats per response."""

    seed: int = 0
    trees: tuple[Tree, ...] = (Tree(7), Tree(20), Tree(3, 3))
    finite_trees: tuple[Tree, ...] = (Tree(7), Tree(3, 3))
    finite_rewards: tuple[str, ...] = ("rare",)  # the reward that is hardest to learn
    most_modes: int = 6  # good responses of a problem, at most
    least_reward: float = 0.4  # of a good response, where rewards are graded from here to 1
    draws: int = 16  # responses to a prompt, whose coverage of the modes is measured
    preference_scale: float = 4.0  # a response that is worth 1 more is preferred with probability σ(4) = 0.98
    alpha: float = 0.5  # of TDPO2, as in the paper
    held_beta: float = 0.1  # of DPO beside a KL term
    strengths: int = 8  # of every method, from the strongest tie to the reference to the weakest
    gains: tuple[float, ...] = (0.5, 0.8)  # of the reward between the reference's and 1, where methods are compared
    forward_kl: float = 0.2  # where methods are compared at equal KL(reference‖policy)
    reverse_kl: float = 0.2  # where methods are compared at equal KL(policy‖reference)
    finite_gain: float = 0.5  # studies of finite data have the strength that gives this gain with infinite data
    rates: tuple[float, ...] = (
        0.03,
        0.1,
        0.3,
    )  # Adam's learning rates, the best of which a trial on another seed finds
    studies: int = 100
    trial_studies: int = 10
    pair_updates: int = 100
    # (responses in all, responses of an iteration of PPO and RLOO)
    rollouts: tuple[tuple[int, int], ...] = ((50, 10), (500, 20), (5000, 100))
    passes: int = 4  # of PPO over the responses of an iteration
    clip: float = 0.2
    gae_lambda: float = 0.95
    critic_rate: float = 0.1

    def record(self) -> dict[str, Any]:
        """The settings as plain data; a tree is written as symbols to the power of tokens: 7^1, 20^1, 3^3."""
        names = {key: [tree.name for tree in getattr(self, key)] for key in ("trees", "finite_trees")}
        return {**asdict(self), **names}
