"""What the trainers that learn from own responses record of themselves, and their model cards."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ...models import Reference
from ..model_card import own_responses_model_card
from ..recorded_settings import described_source, optimizing_settings, policy_settings, reference_facts
from ..run_record import numbers_for_the_card
from .config import FIELDS, PPOConfig
from .pairs_config import FIELDS as ONLINE_FIELDS


def ppo_record(trainer: Any, given: Any, start: Reference, ref_model: Any) -> dict[str, Any]:
    """The content of trainer.json; `given` and `ref_model` are the models as the trainer got them."""
    return {
        "trainer": type(trainer).__name__,
        "method": "ppo",
        "settings": {
            "model": policy_settings(given, trainer.model, ref_model), **_settings(trainer.args),
            "rewards": _rewards(trainer),
        },
        "reference": reference_facts(given, trainer.model, start, ref_model),
    }  # fmt: skip


def own_responses_card(trainer: Any) -> str:
    """The card of the model as it is now."""
    assert trainer.record is not None
    train = trainer.described_data()["train"]
    settings = trainer.record.content["settings"]
    return own_responses_model_card(settings, train["source"], train["prompts"], **numbers_for_the_card(trainer))


def online_pairs_record(trainer: Any, given: Any, start: Reference, ref_model: Any) -> dict[str, Any]:
    """The content of trainer.json of `OnlineTDPOTrainer`; arguments as those of `ppo_record`."""
    args = trainer.args
    sections = ONLINE_FIELDS.sections(args)
    update = args.moving_reference
    settings = {
        "seed": args.seed,
        "model": policy_settings(given, trainer.model, ref_model),
        "loss": {
            **sections["loss"],
            **args.recorded_strengths(),
            "kl": None if args.kl_term is None else asdict(args.kl_term),
        },
        "rollouts": sections["rollouts"],
        "online": {
            **sections["online"],
            "reference_update": None if update is None else update.model_dump(),
            **optimizing_settings(args),
            "minibatch_size": args.update_size,
        },
        "rewards": _rewards(trainer),
    }
    return {
        "trainer": type(trainer).__name__,
        "method": args.loss,
        "settings": settings,
        "reference": reference_facts(given, trainer.model, start, ref_model),
    }


def _rewards(trainer: Any) -> list[dict[str, Any]]:
    parts = trainer.rewards.parts if trainer.rewards is not None else []
    return [{"name": part.name, "weight": part.weight} for part in parts]


def described_prompts(train: Any, held_out: Any, counts: dict[str, int]) -> dict[str, Any]:
    """What data.json says of the prompts that a trainer got, and of how many there are."""
    return {
        name: {"source": described_source(dataset), "prompts": counts[name], "skipped": 0, "problems": []}
        for name, dataset in (("train", train), ("eval", held_out))
        if dataset is not None
    }


def _settings(args: PPOConfig) -> dict[str, Any]:
    """The arguments by section and key as in a recipe."""
    sections: dict[str, Any] = FIELDS.sections(args)
    sections["ppo"] |= {**optimizing_settings(args), "minibatch_size": args.update_size}
    return {"seed": args.seed, **sections, "kl": asdict(args.constraint)}
