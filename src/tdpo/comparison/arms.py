"""The arms of a study, in their order: label, loss or constraint, and which key of the recipe its strength sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

LABELS = {
    "reference": "Reference",
    "sft": "SFT on chosen",
    "dpo": "DPO",
    "tdpo1": "TDPO1",
    "tdpo2": "TDPO2",
    "ppo_reverse": "PPO (reverse KL)",
    "ppo_reverse_exact": "PPO (exact reverse KL)",
    "ppo_forward": "PPO (forward KL)",
}
Kind = Literal["reference", "preferences", "ppo"]


@dataclass(frozen=True)
class ArmKind:
    """`key` is the recipe's key that a strength is written to, `fixed` are the keys that make the arm what it is."""

    kind: Kind
    what: str
    strength: str = ""
    key: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)


def _loss(name: str, what: str) -> ArmKind:
    return ArmKind("preferences", what, "β", "loss.beta", {"loss.name": name})


def _ppo(direction: str, form: str, place: str, what: str) -> ArmKind:
    constraint = {"kl.direction": direction, "kl.form": form, "kl.place": place, "kl.controller": "fixed"}
    return ArmKind("ppo", what, "KL coefficient", "kl.coefficient", constraint)


ARM_KINDS: dict[str, ArmKind] = {
    "reference": ArmKind("reference", "the model before training"),
    "sft": ArmKind(
        "preferences",
        "supervised fine-tuning on the chosen responses",
        "learning rate",
        "training.learning_rate",
        {"loss.name": "sft"},
    ),
    "dpo": _loss("dpo", "−log σ(β h), h the difference of the log-ratios"),
    "tdpo1": _loss("tdpo1", "DPO with the difference of the exact forward sequence KLs in the margin"),
    "tdpo2": _loss("tdpo2", "DPO with α times the rejected response's exact forward sequence KL in the margin"),
    "ppo_reverse": _ppo("reverse", "sampled", "reward", "PPO with the sampled reverse KL taken off every reward"),
    "ppo_reverse_exact": _ppo("reverse", "exact", "loss", "PPO with the exact reverse KL added to the loss"),
    "ppo_forward": _ppo("forward", "exact", "loss", "PPO with the exact forward KL added to the loss"),
}
