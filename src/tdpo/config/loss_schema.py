"""The section `loss` of a recipe, and the KL beside a loss."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from ..kl_choices import (
    KLDirection,
    KLTerm,
    PairSide,
    TermDirection,
    target_direction_obstacle,
    target_obstacle,
    weight_obstacle,
)
from ..methods import METHODS
from ._sections import NonNegativeFloat, PositiveFloat, Section, key_problems

LossName = Literal["tdpo2", "tdpo1", "dpo", "ipo", "f_dpo_forward", "f_dpo_js", "simpo", "sft", "kl"]


class LossKL(Section):
    """An exact KL beside the loss, with its gradient and outside the sigmoid: loss + coefficient · Σ_t KL_t."""

    direction: TermDirection = KLTerm.direction
    """`forward` is KL(reference‖policy), which punishes forgetting; `reverse` is KL(policy‖reference), which punishes
    inventing; `js` is the Jensen–Shannon divergence between them, w·KL(reference‖m) + (1 − w)·KL(policy‖m) with
    m = w·reference + (1 − w)·policy."""
    on: PairSide = KLTerm.on
    """Along which responses it is summed, in nats per sequence; `both` is the mean of the two."""
    coefficient: PositiveFloat | None = None
    """Weight of the KL, per nat; null is 0.1, and 1 where the KL is the whole loss (`loss.name` kl)."""
    weight: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The reference's share w of the mixture in `js` (null is 0.5); the other directions have none."""
    target: PositiveFloat | None = None
    """Nats per sequence at which the KL is held: the coefficient moves after every update, and the one given here is
    only a first guess. Null leaves it as it is. Not where the KL is the whole loss."""
    target_direction: KLDirection | None = None
    """Which exact KL along the same responses is held at the target, so that runs with different terms meet at equal
    KLs; null is that of the term."""

    @field_validator("weight")
    @classmethod
    def _belongs_to_js(cls, weight: float | None, info: ValidationInfo) -> float | None:
        direction = info.data.get("direction")
        if direction is None:  # it is wrong itself, which is said elsewhere
            return weight
        obstacle = weight_obstacle(weight, direction)
        if obstacle is not None:
            raise ValueError(obstacle)
        return KLTerm.DEFAULT_WEIGHT if direction == "js" and weight is None else weight

    @field_validator("target_direction")
    @classmethod
    def _belongs_to_a_target(cls, direction: KLDirection | None, info: ValidationInfo) -> KLDirection | None:
        obstacle = target_direction_obstacle(direction, info.data.get("target"))
        if obstacle is not None and "target" in info.data:
            raise ValueError(obstacle)
        return direction

    @property
    def term(self) -> KLTerm:
        """What the loss is given."""
        return KLTerm(**self.model_dump())


class Loss(Section):
    """The objective. With h = chosen − rejected log-ratio and D = Σ_t KL(reference‖policy) of a response:
    dpo −log σ(β h); tdpo1 −log σ(β (h − (D_l − D_w))); tdpo2 −log σ(β (h − α (D_l − sg(D_w)))); ipo (h − 1/(2β))²;
    f_dpo −log σ(β (f′(u_w) − f′(u_l))) with u = π/π_ref of a whole response and f′ = −1/u (f_dpo_forward) or
    log(2u/(1 + u)) (f_dpo_js), which is no KL of tokens; simpo −log σ(β (m_w − m_l) − γ) with m = log π / tokens of a
    response; sft −log π(chosen); kl nothing but the KL of `loss.kl` to another model, `model.reference`, as a
    teacher."""

    DEFAULT_BETA: ClassVar[float] = 0.1
    DEFAULT_BETA_PER_TOKEN: ClassVar[float] = 2.0  # of simpo
    DEFAULT_ALPHA: ClassVar[float] = 0.5  # of tdpo2
    DEFAULT_GAMMA: ClassVar[float] = 0.5  # of simpo, times β

    name: LossName = "tdpo2"
    """Which of these losses; sft learns the chosen responses, without preference and without a tie to the reference.
    simpo has no such tie either: the reference runs for the reported KLs alone. kl distils: it learns what
    `model.reference`, a model with the same vocabulary, says along the responses."""
    beta: PositiveFloat | None = None
    """Strength β of the tie to the reference (null is 0.1): larger stays closer. In ipo it is the paper's τ, with
    log-ratios summed over a response, not averaged over its tokens. In simpo it scales means over tokens (null is 2),
    and ties to nothing. sft and kl have none."""
    alpha: NonNegativeFloat | None = None
    """Weight α of the sequence KLs in tdpo2 (null is 0.5; 0 is DPO exactly); the other losses have none."""
    gamma: NonNegativeFloat | None = None
    """The margin γ that simpo aims at, in the unit of β times nats per token (null is β/2); the other losses have
    none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of pairs whose two responses are swapped. Only dpo, tdpo1 and tdpo2 have it."""
    kl: LossKL | None = None
    """Null is none: `kl: {}` adds one to any of these losses."""

    @field_validator("kl")
    @classmethod
    def _resolve_kl(cls, kl: LossKL | None, info: ValidationInfo) -> LossKL | None:
        is_all = info.data.get("name") == "kl"
        if kl is None:
            return LossKL(coefficient=1.0) if is_all else None
        if obstacle := target_obstacle(kl.target, info.data.get("name", "")):
            raise key_problems(("loss.kl.target", obstacle))
        default = 1.0 if is_all else KLTerm.DEFAULT_COEFFICIENT
        return kl if kl.coefficient is not None else kl.model_copy(update={"coefficient": default})

    @field_validator("beta")
    @classmethod
    def _some_losses_have_no_beta(cls, beta: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("name")
        if name is None or METHODS[name].has_beta:
            return cls.default_beta(name) if beta is None else beta
        if beta is not None:
            raise ValueError(f"has no effect with loss.name {name}; remove it (or null), or choose dpo or tdpo2")
        return None

    @field_validator("label_smoothing")
    @classmethod
    def _some_losses_have_no_smoothing(cls, smoothing: float, info: ValidationInfo) -> float:
        name = info.data.get("name")
        if smoothing and name is not None and not METHODS[name].has_label_smoothing:
            raise ValueError(f"has no effect with loss.name {name}; remove it, or choose dpo or tdpo2")
        return smoothing

    @field_validator("alpha")
    @classmethod
    def _alpha_belongs_to_tdpo2(cls, alpha: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("name")
        if name == "tdpo2":
            return cls.DEFAULT_ALPHA if alpha is None else alpha
        if name is not None and alpha is not None:
            raise ValueError(f"has no effect with loss.name {name}; remove it (or null), or choose tdpo2")
        return alpha

    @field_validator("gamma")
    @classmethod
    def _gamma_belongs_to_simpo(cls, gamma: float | None, info: ValidationInfo) -> float | None:
        name, beta = info.data.get("name"), info.data.get("beta")
        if name is None or METHODS[name].has_gamma:
            return cls.DEFAULT_GAMMA * beta if gamma is None and name is not None and beta is not None else gamma
        if gamma is not None:
            raise ValueError(f"has no effect with loss.name {name}; remove it (or null), or choose simpo")
        return None

    @classmethod
    def default_beta(cls, name: str | None) -> float:
        """The β of a loss for which none is given; of losses that are not known or have none, that of most."""
        is_per_token = name in METHODS and METHODS[name].is_per_token
        return cls.DEFAULT_BETA_PER_TOKEN if is_per_token else cls.DEFAULT_BETA
