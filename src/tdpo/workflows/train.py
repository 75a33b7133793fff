"""From a recipe for preferences and a run directory to a trained model: what `tdpo train` does."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, Unpack

from ..batches import TokenizedPairs
from ..config import Precision, Recipe, Training
from ..models import load_tokenizer, model_facts
from ..recipe_data.input_digests import pairs_inputs
from ..recipe_data.pairs import RecipeData, read_data, tokenize_data
from ..records.metric_names import nats
from ..runs import RunDirectory
from ..training.callbacks import Progress, Say
from ..training.offline.config import TDPOConfig
from ..training.offline.trainer import TDPOTrainer
from .model_card import model_card
from .trainer_arguments import pair_arguments
from .training_run import MakeTrainer, Method, Numbers, RunOptions, TrainingData, logger, run_training


def train(
    recipe: Recipe,
    run: RunDirectory,
    *,
    cache_progress: Progress | None = None,
    say: Say = logger.info,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Train on preferences as the recipe says; arguments, files and what is returned are those of `run_training`.

    Args:
        recipe: the resolved recipe.
        run: its directory, as `RunDirectory.training` gives it.
        cache_progress: called while a reference cache is made, with pairs done and in all.
        say: told what is being done, in sentences.
        options: the other arguments of `run_training`.
    """
    return run_training(LearningFromPairs(recipe, say, cache_progress), run, say=say, **options)


@dataclass(frozen=True)
class LearningFromPairs(Method):
    """Every loss of pairs, and distillation: `TDPOTrainer` on the rows of a recipe."""

    recipe: Recipe
    say: Say
    cache_progress: Progress | None

    @property
    def recording(self) -> Training:
        return self.recipe.training

    @property
    def optimizing(self) -> Training:
        return self.recipe.training

    def read(self) -> TrainingData:
        recipe = self.recipe
        if recipe.environment is not None:
            recipe.environment.load()  # training does not use it, but evaluating the run will
        rows = read_data(recipe)
        trust = recipe.model.trust_remote_code
        tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=trust)
        facts = model_facts(recipe.model.name, tokenizer, trust_remote_code=trust)
        pairs, held_out = tokenize_data(rows, recipe, tokenizer, facts)
        reports = [part.report for part in (pairs, held_out) if part is not None]
        return TrainingData(
            tokenizer=tokenizer,
            train=pairs,
            held_out=held_out,
            inputs=lambda: pairs_inputs(pairs.pairs, held_out and held_out.pairs),
            described=_described(rows, pairs, held_out),
            remarks=[
                *(sentence for part in (rows.train, rows.eval) if part is not None for sentence in part.remarks()),
                *(sentence for report in reports for sentence in report.warnings()),
            ],
            amount=f"{len(pairs.pairs)} pairs, {_length(recipe.training)}",
            length=updates_of(recipe.training, len(pairs.pairs)),
        )

    def arguments(self, **changes: Any) -> TDPOConfig:
        return pair_arguments(self.recipe, **changes)

    def prepare(self, data: TrainingData) -> MakeTrainer:
        def trainer(policy: Any, callbacks: Any, precision: Precision) -> TDPOTrainer:
            return TDPOTrainer(
                policy,
                ref_model=self.recipe.model.reference,
                args=self.arguments(precision=precision),
                train_dataset=data.train,
                eval_dataset=data.held_out,
                processing_class=data.tokenizer,
                callbacks=callbacks,
                say=self.say,
                cache_progress=self.cache_progress,
            )

        return trainer

    def note(self, logs: dict[str, Any]) -> str | None:
        if "margin" not in logs:
            return None
        term = f"KL term {nats(logs['kl_term'])} nats · " if "kl_term" in logs else ""
        return (
            f"loss {logs['loss']:.3f} · margin {logs['margin']:+.2f} · {term}"
            f"chosen KL {nats(logs['chosen_forward_kl'])} nats · {logs['tokens_per_second']:.0f} tokens/s"
        )

    def card(self, data: TrainingData, train: Numbers, held_out: Numbers | None, versions: dict[str, Any]) -> str:
        return model_card(self.recipe, data.described, train, held_out, versions)


def _described(rows: RecipeData, pairs: TokenizedPairs, held_out: TokenizedPairs | None) -> dict[str, Any]:
    """What data.json says of each side: what was read, and what became of it."""
    described = {}
    for name, source, tokenized in (("train", rows.train, pairs), ("eval", rows.eval, held_out)):
        if source is not None and tokenized is not None:
            described[name] = {**tokenized.report.as_dict(), **source.summary()}
    return described


def updates_of(training: Training, pairs: int) -> int:
    """How many updates a run on so many pairs makes."""
    return training.max_steps or ceil(pairs / training.batch_size * (training.epochs or 1))


def _length(training: Training) -> str:
    if training.max_steps:
        return "1 update" if training.max_steps == 1 else f"{training.max_steps} updates"
    return "1 epoch" if training.epochs == 1 else f"{training.epochs:g} epochs"
