"""From a PPO recipe and a run directory to a trained model: what `tdpo ppo` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

from ..config import PPO, PPORecipe, Precision
from ..recipe_data.prompts import recipe_rewards
from ..records.metric_names import nats
from ..runs import RunDirectory
from ..training.callbacks import Say
from ..training.online.config import PPOConfig
from ..training.online.trainer import PPOTrainer
from .model_card import own_responses_model_card
from .prompts_reading import prompts_to_train_on
from .trainer_arguments import ppo_arguments
from .training_run import MakeTrainer, Method, Numbers, RunOptions, TrainingData, logger, run_training


def train_ppo(
    recipe: PPORecipe, run: RunDirectory, *, say: Say = logger.info, **options: Unpack[RunOptions]
) -> dict[str, Any]:
    """Train on rewards as the recipe says; arguments and what is returned are those of `run_training`.

    Responses of the policy are left in completions.jsonl of the run directory, beside the files of any training.

    Args:
        recipe: the resolved recipe.
        run: its directory, as `RunDirectory.training` gives it.
        say: told what is being done, in sentences.
        options: the other arguments of `run_training`.
    """
    return run_training(LearningFromRewards(recipe), run, say=say, **options)


@dataclass(frozen=True)
class LearningFromRewards(Method):
    """`PPOTrainer` on the prompts and the rewards of a recipe."""

    recipe: PPORecipe

    @property
    def recording(self) -> PPO:
        return self.recipe.ppo

    @property
    def optimizing(self) -> PPO:
        return self.recipe.ppo

    def read(self) -> TrainingData:
        return prompts_to_train_on(self.recipe)

    def arguments(self, **changes: Any) -> PPOConfig:
        return ppo_arguments(self.recipe, **changes)

    def prepare(self, data: TrainingData) -> MakeTrainer:
        recipe, rewards = self.recipe, recipe_rewards(self.recipe, data.tokenizer)

        def trainer(policy: Any, callbacks: Any, precision: Precision) -> PPOTrainer:
            return PPOTrainer(
                policy,
                rewards,
                args=self.arguments(precision=precision),
                train_dataset=data.train,
                eval_dataset=data.held_out,
                processing_class=data.tokenizer,
                callbacks=callbacks,
                ref_model=recipe.model.reference,
                value_model=recipe.ppo.value_model,
            )

        return trainer

    def note(self, logs: dict[str, Any]) -> str | None:
        if "penalized_reward_mean" not in logs:
            return None
        return (
            f"reward {logs['reward_mean']:.3f} · KL {nats(logs['reverse_kl'])} reverse, {nats(logs['forward_kl'])} "
            f"forward · coefficient {logs['kl_coefficient']:.3g}"
        )

    def card(self, data: TrainingData, train: Numbers, held_out: Numbers | None, versions: dict[str, Any]) -> str:
        return own_responses_model_card(self.recipe, len(data.train), train, held_out, versions)
