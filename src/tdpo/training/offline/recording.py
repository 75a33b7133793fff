"""What `TDPOTrainer` records of itself, and its model card."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ...models import Reference
from ..model_card import pair_model_card
from ..recorded_settings import batch_size, optimizing_settings, policy_settings, reference_facts
from ..run_record import numbers_for_the_card
from .config import FIELDS, TDPOConfig


def pair_record(trainer: Any, given: Any, start: Reference, ref_model: Any) -> dict[str, Any]:
    """The content of trainer.json; `given` and `ref_model` are the models as the trainer got them."""
    settings = {"model": policy_settings(given, trainer.model, ref_model), **_settings(trainer.args)}
    files = trainer.data_files
    settings["data"] |= {"train": files.get("train"), "eval": files.get("eval")}
    return {
        "trainer": type(trainer).__name__,
        "method": trainer.args.loss,
        "settings": settings,
        "reference": reference_facts(given, trainer.model, start, ref_model),
    }


def pair_card(trainer: Any) -> str:
    """The card of the model as it is now."""
    assert trainer.record is not None
    return pair_model_card(
        trainer.record.content["settings"], trainer.described_data(), **numbers_for_the_card(trainer)
    )


def _settings(args: TDPOConfig) -> dict[str, Any]:
    """The arguments by section and key as in a recipe; β, α and γ are null where the loss has none."""
    sections: dict[str, Any] = FIELDS.sections(args)
    sections["loss"] |= args.recorded_strengths()
    sections["loss"]["kl"] = None if args.kl_term is None else asdict(args.kl_term)
    has_limit = args.max_steps > 0
    sections["training"] |= {
        **optimizing_settings(args),
        "batch_size": batch_size(args),
        "max_steps": args.max_steps if has_limit else None,
        "epochs": None if has_limit else args.num_train_epochs,
    }
    return {"seed": args.seed, **sections}
