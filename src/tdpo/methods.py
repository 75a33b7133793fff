"""The table of methods: names, papers, and what each learns from; and the arms of a study. Loads no torch.

A method is what a recipe trains with: a loss on pairs, or PPO on rewards. An arm of a study is a method with the keys
that make it what it is (which KL holds it, and where) and the key that its strengths, or its KL targets, are written
to. Whoever names a method to a person takes the name from here: recipes, model cards, studies, reports.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["pairs", "rewards"]
Family = Literal["reference", "baseline", "offline pairs", "online pairs", "rewards"]
Direction = Literal["forward", "reverse"]
RecipeKind = Literal["reference", "baseline", "preferences", "online", "ppo"]


@dataclass(frozen=True)
class Method:
    """`key` is the name in a recipe, `name` the public one. `paper` is an arXiv number, `equation` the loss in it.

    `has_*` says of each key of a recipe's section `loss` whether it has an effect; `loss_unit` is that of the loss.
    `is_per_token`: its rewards and margin are β times means over the tokens of a response, not sums over them.
    """

    key: str
    name: str
    title: str
    learns_from: Source
    summary: str
    paper: str | None = None
    equation: str = ""
    has_beta: bool = False
    has_alpha: bool = False
    has_gamma: bool = False
    has_label_smoothing: bool = False
    loss_unit: str = "nats"
    is_per_token: bool = False


METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        Method(
            "tdpo2",
            "TDPO2",
            "Token-level Direct Preference Optimization",
            "pairs",
            "DPO with α times the rejected response's exact forward sequence KL in the margin",
            paper="2404.11999",
            equation="eq. 17",
            has_beta=True,
            has_alpha=True,
            has_label_smoothing=True,
        ),
        Method(
            "tdpo1",
            "TDPO1",
            "Token-level Direct Preference Optimization",
            "pairs",
            "DPO with the difference of the exact forward sequence KLs in the margin",
            paper="2404.11999",
            equation="eq. 14",
            has_beta=True,
            has_label_smoothing=True,
        ),
        Method(
            "dpo",
            "DPO",
            "Direct Preference Optimization",
            "pairs",
            "−log σ(β h), h the difference of the log-ratios",
            paper="2305.18290",
            equation="eq. 7",
            has_beta=True,
            has_label_smoothing=True,
        ),
        Method(
            "ipo",
            "IPO",
            "Identity Preference Optimization",
            "pairs",
            "(h − 1/(2β))², h the difference of the log-ratios",
            paper="2310.12036",
            equation="eq. 17",
            has_beta=True,
            loss_unit="nats²",
        ),
        Method(
            "f_dpo_forward",
            "f-DPO (forward KL)",
            "Direct Preference Optimization held by the forward KL between responses",
            "pairs",
            "−log σ(β (f′(u_w) − f′(u_l))), f′(u) = −1/u, u the ratio of a whole response",
            paper="2309.16240",
            equation="eq. 9",
            has_beta=True,
        ),
        Method(
            "f_dpo_js",
            "f-DPO (Jensen–Shannon)",
            "Direct Preference Optimization held by the Jensen–Shannon divergence between responses",
            "pairs",
            "−log σ(β (f′(u_w) − f′(u_l))), f′(u) = log(2u/(1 + u)), u the ratio of a whole response",
            paper="2309.16240",
            equation="eq. 9",
            has_beta=True,
        ),
        Method(
            "simpo",
            "SimPO",
            "Simple Preference Optimization",
            "pairs",
            "−log σ(β (m_w − m_l) − γ), m the mean log-probability of a response's tokens, without a reference",
            paper="2405.14734",
            equation="eq. 6",
            has_beta=True,
            has_gamma=True,
            is_per_token=True,
        ),
        Method(
            "sft",
            "SFT",
            "supervised fine-tuning on the chosen responses",
            "pairs",
            "supervised fine-tuning on the chosen responses",
        ),
        Method(
            "kl",
            "KL distillation",
            "distillation by the exact KL to a teacher",
            "pairs",
            "the exact KL between the policy and a teacher along given responses: forward, reverse or Jensen–Shannon",
            paper="2306.13649",
        ),
        Method(
            "ppo",
            "PPO",
            "Proximal Policy Optimization",
            "rewards",
            "the clipped policy gradient on rewards, held by a KL to the reference",
            paper="1707.06347",
            equation="eq. 7",
        ),
    )
}


def public_name(key: str) -> str:
    """The public name of a method; a key that is not known is its own name."""
    method = METHODS.get(key.lower())
    return key if method is None else method.name


def method_named(name: str) -> Method | None:
    """The method with this public name; None where there is none."""
    return next((method for method in METHODS.values() if method.name == name), None)


@dataclass(frozen=True)
class ArmKind:
    """An arm of a study. `method` is None for what is only sampled: the reference, and baselines made of it.

    `family` says what it learns from, `direction` which KL holds it (None where none does but its loss). These two are
    the factors by which a study compares. `strength` says in words what its strengths are, `key` is the key of the
    recipe that a strength is written to, and `fixed` are the keys that make the arm what it is. An arm that can be held
    at a KL has `target_key`, to which a target is written, and `held`, the keys that it then has besides.
    """

    label: str
    what: str
    method: str | None = None
    family: Family = "reference"
    direction: Direction | None = None
    strength: str = ""
    key: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)
    target_key: str = ""
    held: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> RecipeKind:
        """Which recipe it is trained with: one for preferences, for pairs of own responses or for PPO, or none."""
        return _RECIPES[self.family]

    @property
    def is_trained(self) -> bool:
        return self.method is not None


_RECIPES: dict[Family, RecipeKind] = {
    "reference": "reference",
    "baseline": "baseline",
    "offline pairs": "preferences",
    "online pairs": "online",
    "rewards": "ppo",
}
_COEFFICIENT = "coefficient of the KL beside the loss"


def _loss(name: str) -> ArmKind:
    method = METHODS[name]
    return ArmKind(method.name, method.summary, name, "offline pairs", None, "β", "loss.beta", {"loss.name": name})


def _dpo_and_kl(direction: Direction, family: Family) -> ArmKind:
    """DPO with an exact KL beside its loss, on pairs that were made beforehand or on those of its own responses."""
    label = "DPO" if family == "offline pairs" else "Online DPO"
    pairs = "" if family == "offline pairs" else ", on pairs of its own responses"
    return ArmKind(
        f"{label}, {direction} KL",
        f"DPO with the exact {direction} KL beside its loss{pairs}",
        "dpo",
        family,
        direction,
        _COEFFICIENT,
        "loss.kl.coefficient",
        {"loss.name": "dpo", "loss.kl.direction": direction},
        "loss.kl.target",
    )


def _tdpo2(label: str, what: str, family: Family) -> ArmKind:
    """TDPO2, whose strengths are β; at a target its forward KL stands beside the loss as well, which moves."""
    fixed, held = {"loss.name": "tdpo2"}, {"loss.kl.direction": "forward"}
    return ArmKind(label, what, "tdpo2", family, "forward", "β", "loss.beta", fixed, "loss.kl.target", held)


def _on_rewards(label: str, what: str, direction: Direction, form: str, place: str, **more: Any) -> ArmKind:
    constraint = {"kl.direction": direction, "kl.form": form, "kl.place": place, "kl.controller": "fixed"}
    controller = {"kl.controller": "dual"}
    fixed = {**constraint, **{key.replace("_", "."): value for key, value in more.items()}}
    return ArmKind(
        label, what, "ppo", "rewards", direction, "KL coefficient", "kl.coefficient", fixed, "kl.target", controller
    )


REFERENCE, BEST_OF, TEMPERATURE = "reference", "best_of", "temperature"
# In the order in which they appear everywhere.
ARMS: dict[str, ArmKind] = {
    REFERENCE: ArmKind("Reference", "the model before training"),
    BEST_OF: ArmKind(
        "Best of n", "the best of n responses of the reference, by reward", family="baseline", strength="n"
    ),
    TEMPERATURE: ArmKind(
        "Temperature", "the reference at another temperature", family="baseline", strength="temperature"
    ),
    "sft": ArmKind(
        "SFT on chosen",
        METHODS["sft"].summary,
        "sft",
        "offline pairs",
        None,
        "learning rate",
        "training.learning_rate",
        {"loss.name": "sft"},
    ),
    "dpo": _loss("dpo"),
    "dpo_forward": _dpo_and_kl("forward", "offline pairs"),
    "dpo_reverse": _dpo_and_kl("reverse", "offline pairs"),
    "tdpo1": _loss("tdpo1"),
    "tdpo2": _tdpo2("TDPO2", METHODS["tdpo2"].summary, "offline pairs"),
    "online_dpo_forward": _dpo_and_kl("forward", "online pairs"),
    "online_dpo_reverse": _dpo_and_kl("reverse", "online pairs"),
    "online_tdpo2": _tdpo2("Online TDPO2", "TDPO2 on pairs of its own responses", "online pairs"),
    "ppo_reverse": _on_rewards(
        "PPO (reverse KL)", "PPO with the sampled reverse KL taken off every reward", "reverse", "sampled", "reward"
    ),
    "ppo_reverse_exact": _on_rewards(
        "PPO (exact reverse KL)", "PPO with the exact reverse KL added to the loss", "reverse", "exact", "loss"
    ),
    "ppo_forward": _on_rewards(
        "PPO (forward KL)", "PPO with the exact forward KL added to the loss", "forward", "exact", "loss"
    ),
    "rloo_reverse": _on_rewards(
        "RLOO (reverse KL)",
        "RLOO, which has no critic, with the exact reverse KL added to the loss",
        "reverse",
        "exact",
        "loss",
        ppo_advantage="rloo",
    ),
    "rloo_forward": _on_rewards(
        "RLOO (forward KL)",
        "RLOO, which has no critic, with the exact forward KL added to the loss",
        "forward",
        "exact",
        "loss",
        ppo_advantage="rloo",
    ),
}
