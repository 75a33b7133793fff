"""From a recipe with a section `online` to a trained model: what `tdpo train` does with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

from ..config import Online, OnlineRecipe, Precision
from ..recipe_data.prompts import recipe_rewards
from ..records.metric_names import counted, nats
from ..runs import RunDirectory
from ..training.callbacks import Say
from ..training.online.pairs_config import OnlineTDPOConfig
from ..training.online.pairs_trainer import OnlineTDPOTrainer
from .model_card import own_responses_model_card
from .prompts_reading import prompts_to_train_on
from .trainer_arguments import online_arguments
from .training_run import MakeTrainer, Method, Numbers, RunOptions, TrainingData, logger, run_training


def train_online(
    recipe: OnlineRecipe, run: RunDirectory, *, say: Say = logger.info, **options: Unpack[RunOptions]
) -> dict[str, Any]:
    """Train on pairs of own responses as the recipe says; arguments and files are those of `train_ppo`."""
    return run_training(LearningFromOwnPairs(recipe), run, say=say, **options)


@dataclass(frozen=True)
class LearningFromOwnPairs(Method):
    """`OnlineTDPOTrainer` on the prompts and the rewards of a recipe."""

    recipe: OnlineRecipe

    @property
    def recording(self) -> Online:
        return self.recipe.online

    @property
    def optimizing(self) -> Online:
        return self.recipe.online

    def read(self) -> TrainingData:
        return prompts_to_train_on(self.recipe)

    def arguments(self, **changes: Any) -> OnlineTDPOConfig:
        return online_arguments(self.recipe, **changes)

    def prepare(self, data: TrainingData) -> MakeTrainer:
        recipe, rewards = self.recipe, recipe_rewards(self.recipe, data.tokenizer)

        def trainer(policy: Any, callbacks: Any, precision: Precision) -> OnlineTDPOTrainer:
            return OnlineTDPOTrainer(
                policy,
                rewards,
                args=self.arguments(precision=precision),
                train_dataset=data.train,
                eval_dataset=data.held_out,
                processing_class=data.tokenizer,
                callbacks=callbacks,
                ref_model=recipe.model.reference,
            )

        return trainer

    def note(self, logs: dict[str, Any]) -> str | None:
        if "pairs" not in logs or "loss" not in logs:
            return None
        reward = f"reward {logs['reward_mean']:.3f} · " if "reward_mean" in logs else ""
        term = f"KL term {nats(logs['kl_term'])} nats · " if "kl_term" in logs else ""
        moved = (
            f" · reference moved {counted(logs['reference_updates'], 'time')}" if "reference_updates" in logs else ""
        )
        if "margin" not in logs:
            return f"{reward}{term}reverse KL {nats(logs['reverse_kl'])} nats" if "reverse_kl" in logs else None
        return (
            f"{reward}{logs['pairs']:.0f} pairs · margin {logs['margin']:+.2f} · {term}"
            f"chosen KL {nats(logs['chosen_forward_kl'])} nats{moved}"
        )

    def card(self, data: TrainingData, train: Numbers, held_out: Numbers | None, versions: dict[str, Any]) -> str:
        return own_responses_model_card(self.recipe, len(data.train), train, held_out, versions)
