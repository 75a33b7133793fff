"""Every number that the exact benchmark chooses, in one object that its record repeats."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .trees import Tree


@dataclass(frozen=True)
class Settings:
    """What is asked (trees, rewards, targets) and how the learners learn. KLs are nats a response."""

    seed: int = 0
    trees: tuple[Tree, ...] = (Tree(7), Tree(20), Tree(3, 3))
    finite_trees: tuple[Tree, ...] = (Tree(7), Tree(3, 3))
    finite_rewards: tuple[str, ...] = ("rare",)  # where a learner has most to find
    most_modes: int = 6  # good responses of a problem, at most
    least_reward: float = 0.4  # of a good response, where rewards are graded from here to 1
    draws: int = 16  # responses to a prompt, of which coverage is asked
    preference_scale: float = 4.0  # a response that is worth 1 more is preferred with probability σ(4) = 0.98
    alpha: float = 0.5  # of TDPO2, as the paper has it
    held_beta: float = 0.1  # of DPO beside which a KL term stands
    strengths: int = 8  # of every method, from the strongest hold to the weakest
    gains: tuple[float, ...] = (0.5, 0.8)  # of the reward between the reference's and 1, where methods are compared
    forward_kl: float = 0.2  # where methods are compared at equal KL(reference‖policy)
    reverse_kl: float = 0.2  # where methods are compared at equal KL(policy‖reference)
    finite_gain: float = 0.5  # the strength of the studies of finite data is the one that has this gain without end
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
        """As plain data; a tree is written as 7^1, 20^1, 3^3: symbols to the power of tokens."""
        names = {key: [tree.name for tree in getattr(self, key)] for key in ("trees", "finite_trees")}
        return {**asdict(self), **names}
