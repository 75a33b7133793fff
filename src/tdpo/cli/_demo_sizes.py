"""How much `tdpo demo` does: what each size changes in the example recipes."""

from __future__ import annotations

from dataclasses import dataclass

from . import _demo_text as text


@dataclass(frozen=True)
class Size:
    """A size of the demo.

    Attributes:
        folder: where its runs lie within `runs`, unless the user names another place.
        remark: a sentence on how large it is and what its numbers are worth, with places for the counts.
        common: overrides of every recipe.
        on_pairs: further overrides of the recipes that train on pairs.
        on_rewards: further overrides of those that train on rewards.
    """

    folder: str
    remark: str
    common: tuple[str, ...] = ()
    on_pairs: tuple[str, ...] = ()
    on_rewards: tuple[str, ...] = ()


# The example recipes as they are.
FULL = Size("demo-full", text.FULL_SIZE)
# Within eight minutes on two cores with AVX2 alone, installing included. Every method gets as many scored responses.
SHORT = Size(
    "demo",
    text.SHORT_SIZE,
    common=(
        "environment.max_prompts=24",
        "evaluation.samples_per_prompt=2",
        "evaluation.max_new_tokens=24",
        "evaluation.max_prompts=16",
    ),
    on_pairs=(
        "sampling.max_new_tokens=24",
        "training.batch_size=8",
        "training.learning_rate=1e-3",
    ),
    on_rewards=(
        "ppo.iterations=4",
        "rollouts.completions=24",
        "rollouts.max_new_tokens=24",
        "ppo.epochs=1",
        "ppo.minibatch_size=8",
        "ppo.learning_rate=1e-3",
    ),
)
# Every stage, as fast as it goes.
QUICK = Size(
    "demo-quick",
    text.QUICK_SIZE,
    common=(
        "environment.max_prompts=8",
        "evaluation.samples_per_prompt=1",
        "evaluation.max_new_tokens=8",
        "evaluation.max_prompts=4",
    ),
    on_pairs=(
        "sampling.samples_per_prompt=2",
        "sampling.pairs_per_prompt=1",
        "sampling.max_new_tokens=8",
        "training.epochs=null",
        "training.max_steps=2",
        "training.batch_size=4",
    ),
    on_rewards=(
        "ppo.iterations=2",
        "ppo.epochs=1",
        "rollouts.completions=16",
        "ppo.minibatch_size=16",
        "rollouts.max_new_tokens=8",
    ),
)
