"""What a user names to judge the responses of an evaluation, in place of the environment's own reward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..config import Reward as RewardEntry
from ..environments import Environment
from ..recipe_data.prompts import part_of_recipe
from ..rewards.functions import Reward


@dataclass(frozen=True)
class Judge:
    """A reward function or a reward model, with the words that named it."""

    source: str
    reward: Reward

    @classmethod
    def load(cls, entry: RewardEntry, tokenizer: Any, device: Any, *, trust_remote_code: bool) -> Judge:
        """The judge, a model on `device`.

        Raises what `part_of_recipe` raises: FunctionError, FileNotFoundError or ValueError.
        """
        reward = part_of_recipe(entry, tokenizer, trust_remote_code, device)
        return cls(str(entry.function or entry.model), reward)

    def over(self, environment: Environment) -> Environment:
        """The environment's prompts, with responses scored by this judge."""
        return replace(environment, reward=self.reward.function, reward_name=self.reward.name)
