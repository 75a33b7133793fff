"""The table of methods: names, papers, and what each learns from; and the arms of a study. Loads no torch.

A method is what a recipe trains with: a loss on pairs, or PPO on rewards. An arm of a study is a method with the keys
that make it what it is (which KL holds PPO, and where) and the key that its strengths are written to. Whoever names a
method to a person takes the name from here: recipes, model cards, studies, reports.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["pairs", "rewards"]
RecipeKind = Literal["reference", "preferences", "ppo"]


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
    """An arm of a study. `method` is None for the reference, which is only sampled.

    `strength` says in words what its strengths are, `key` is the key of the recipe that a strength is written to, and
    `fixed` are the keys that make the arm what it is.
    """

    label: str
    what: str
    method: str | None = None
    strength: str = ""
    key: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> RecipeKind:
        """Which recipe it is trained with: one for preferences, one for PPO, or none."""
        if self.method is None:
            return "reference"
        return "preferences" if METHODS[self.method].learns_from == "pairs" else "ppo"


def _loss(name: str) -> ArmKind:
    method = METHODS[name]
    return ArmKind(method.name, method.summary, name, "β", "loss.beta", {"loss.name": name})


def _ppo(label: str, what: str, direction: str, form: str, place: str) -> ArmKind:
    constraint = {"kl.direction": direction, "kl.form": form, "kl.place": place, "kl.controller": "fixed"}
    return ArmKind(label, what, "ppo", "KL coefficient", "kl.coefficient", constraint)


REFERENCE = "reference"
# In the order in which they appear everywhere.
ARMS: dict[str, ArmKind] = {
    REFERENCE: ArmKind("Reference", "the model before training"),
    "sft": ArmKind(
        "SFT on chosen",
        METHODS["sft"].summary,
        "sft",
        "learning rate",
        "training.learning_rate",
        {"loss.name": "sft"},
    ),
    "dpo": _loss("dpo"),
    "tdpo1": _loss("tdpo1"),
    "tdpo2": _loss("tdpo2"),
    "ppo_reverse": _ppo(
        "PPO (reverse KL)", "PPO with the sampled reverse KL taken off every reward", "reverse", "sampled", "reward"
    ),
    "ppo_reverse_exact": _ppo(
        "PPO (exact reverse KL)", "PPO with the exact reverse KL added to the loss", "reverse", "exact", "loss"
    ),
    "ppo_forward": _ppo(
        "PPO (forward KL)", "PPO with the exact forward KL added to the loss", "forward", "exact", "loss"
    ),
}
