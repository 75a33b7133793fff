"""The prompts of a recipe that learns from own responses, as what a training run begins with."""

from __future__ import annotations

from ..config import OwnResponsesRecipe
from ..models import load_tokenizer
from ..recipe_data.input_digests import prompts_inputs
from ..recipe_data.prompts import read_usable_prompts
from .training_run import TrainingData


def prompts_to_train_on(recipe: OwnResponsesRecipe) -> TrainingData:
    """Read, check and describe the prompts. Raises what `read_usable_prompts` raises."""
    model = recipe.model
    tokenizer = load_tokenizer(model.name, trust_remote_code=model.trust_remote_code)
    prompts, held_out, described = read_usable_prompts(recipe, tokenizer)
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
        length=recipe.optimization.iterations,
    )
