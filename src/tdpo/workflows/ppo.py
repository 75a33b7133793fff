"""From a PPO recipe and a run directory to a trained model: what `tdpo ppo` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

from ..config import PPO, PPORecipe, Precision
from ..models import load_tokenizer
from ..recipe_data.input_digests import prompts_inputs
from ..recipe_data.prompts import read_usable_prompts, recipe_rewards
from ..runs import RunDirectory
from ..training.callbacks import Say
from ..training.online.trainer import PPOTrainer
from .model_card import ppo_model_card
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
        model = self.recipe.model
        tokenizer = load_tokenizer(model.name, trust_remote_code=model.trust_remote_code)
        prompts, held_out, described = read_usable_prompts(self.recipe, tokenizer)
        return TrainingData(
            tokenizer=tokenizer,
            train=prompts,
            held_out=held_out or None,
            inputs=lambda: prompts_inputs(prompts, held_out),
            described=described,
            remarks=[
                f"{part['skipped']} broken rows of the {name} prompts were left out; data.json names them"
                for name, part in described.items()
                if part["skipped"]
            ],
            amount=f"{len(prompts)} prompts",
            length=self.recipe.ppo.iterations,
        )

    def prepare(self, data: TrainingData) -> MakeTrainer:
        recipe, rewards = self.recipe, recipe_rewards(self.recipe, data.tokenizer)

        def trainer(policy: Any, callbacks: Any, precision: Precision) -> PPOTrainer:
            return PPOTrainer(
                policy,
                rewards,
                args=ppo_arguments(recipe, precision=precision),
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
            f"reward {logs['reward_mean']:.3f} · KL {logs['reverse_kl']:z.2f} reverse, {logs['forward_kl']:z.2f} "
            f"forward · coefficient {logs['kl_coefficient']:.3g}"
        )

    def card(self, data: TrainingData, train: Numbers, held_out: Numbers | None, versions: dict[str, Any]) -> str:
        return ppo_model_card(self.recipe, len(data.train), train, held_out, versions)
