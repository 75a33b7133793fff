"""The KL between policy and reference: PPO's constraint, and the term beside a loss of pairs.

In PPO, direction, form and place must go together. A sampled KL is an estimate from the sampled token, named after
Schulman (http://joschu.net/blog/kl-approx.html); an exact one is a sum over the vocabulary. Not every
combination has the gradient that its name promises. These have:

    direction  form     place   estimator
    reverse    sampled  reward  k1         KL(policy‖reference), through the policy gradient
    reverse    sampled  loss    k2         its gradient at each position
    reverse    exact    loss    exact
    forward    sampled  loss    k3         KL(reference‖policy), its gradient at each position
    forward    exact    loss    exact

The recipe's sections `kl` and `loss.kl` have the fields, the defaults and the rules of `KLConstraint` and `KLTerm`,
which is why nothing heavy is imported here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

KLDirection = Literal["reverse", "forward"]
KLForm = Literal["sampled", "exact"]
KLPlace = Literal["reward", "loss"]
KLController = Literal["fixed", "adaptive", "dual"]
KLEstimator = Literal["k1", "k2", "k3", "exact"]

_ESTIMATORS: dict[tuple[KLDirection, KLForm, KLPlace], KLEstimator] = {
    ("reverse", "sampled", "reward"): "k1",
    ("reverse", "sampled", "loss"): "k2",
    ("reverse", "exact", "loss"): "exact",
    ("forward", "sampled", "loss"): "k3",
    ("forward", "exact", "loss"): "exact",
}


def kl_obstacle(direction: KLDirection, form: KLForm, place: KLPlace) -> str | None:
    """Why these three cannot be used together, and what to use; None where they can."""
    for name, value, choices in (
        ("direction", direction, KLDirection),
        ("form", form, KLForm),
        ("place", place, KLPlace),
    ):
        if value not in get_args(choices):
            return f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}"
    if (direction, form, place) in _ESTIMATORS:
        return None
    if form == "exact":
        return (
            "the exact KL of a position is one number whatever token was drawn there, so as a reward it has no "
            "gradient at that position; use place: loss, or form: sampled with direction: reverse"
        )
    return (
        "no estimator of the drawn token has the forward KL's gradient in a detached reward (k3 there gives that of "
        "reverse minus forward); use place: loss"
    )


def estimator_of(direction: KLDirection, form: KLForm, place: KLPlace) -> KLEstimator:
    """The estimator of a combination. Raises ValueError, with the reason, for one that cannot be used."""
    obstacle = kl_obstacle(direction, form, place)
    if obstacle is not None:
        raise ValueError(obstacle)
    return _ESTIMATORS[direction, form, place]


def shortest_horizon(responses: int) -> int:
    """The smallest horizon with which one iteration changes the adaptive coefficient by at most half.

    An iteration of that many `responses` multiplies the coefficient by 1 + error·responses/horizon, where the relative
    error of the KL is clipped to ±0.2 (Ziegler et al. 2019).
    """
    return -(-2 * responses // 5)


def coefficient_obstacle(coefficient: float, controller: KLController) -> str | None:
    """Why a constraint cannot begin with this coefficient; None where it can."""
    if coefficient == 0 and controller != "fixed":
        return (
            f"0 can never rise under the {controller} controller, which multiplies it; start above 0, or choose "
            "kl.controller fixed"
        )
    return None


def controller_obstacle(value: float | str | None, controller: KLController, name: str = "target") -> str | None:
    """Why a target, its direction or a horizon of this value cannot stand beside the controller; None where it can."""
    if value is not None and controller == "fixed":
        return "has no effect with kl.controller fixed; remove it (or null), or choose adaptive"
    if value is not None and controller == "dual" and name == "horizon":
        return "has no effect with kl.controller dual, which has none; remove it (or null), or choose adaptive"
    return None


@dataclass(frozen=True)
class KLConstraint:
    """How PPO holds the policy to the reference; the section `kl` of a recipe has the same fields and defaults.

    `direction`: "reverse" is KL(policy‖reference), PPO's; "forward" is KL(reference‖policy), TDPO's. `form`: estimated
    from the "sampled" token, or "exact" over the vocabulary. `place`: taken off the "reward", or added to the "loss".
    `controller`: a "fixed" coefficient, or one that holds the KL at `target` nats per sequence: "adaptive" (Ziegler
    et al. 2019, arXiv 1909.08593, section 2.2) adjusts it over `horizon` responses, "dual" is dual ascent with a look
    ahead (`scoring.kl_target`), after every update where the KL is in the loss and after every iteration where it is in
    the reward. A target of None becomes `DEFAULT_TARGET` under both, a horizon of None `DEFAULT_HORIZON` under the
    adaptive controller. `target_direction`: which exact KL along the policy's responses is held at the target; None is
    `direction`.

    Raises:
        ValueError: a combination whose gradient would be another one's, numbers out of range, or a target, its
            direction or a horizon without a controller that reads it.
    """

    DEFAULT_TARGET: ClassVar[float] = 6.0
    DEFAULT_HORIZON: ClassVar[int] = 10_000

    direction: KLDirection = "reverse"
    form: KLForm = "sampled"
    place: KLPlace = "reward"
    controller: KLController = "adaptive"
    coefficient: float = 0.05
    target: float | None = None
    horizon: int | None = None
    target_direction: KLDirection | None = None

    def __post_init__(self) -> None:
        if obstacle := kl_obstacle(self.direction, self.form, self.place):
            raise ValueError(
                f"kl: direction {self.direction}, form {self.form}, place {self.place} is refused: {obstacle}"
            )
        if self.controller not in get_args(KLController):
            raise ValueError(f"kl.controller must be fixed, adaptive or dual, got {self.controller!r}")
        if self.target_direction not in (None, *get_args(KLDirection)):
            raise ValueError(f"kl.target_direction must be reverse, forward or None, got {self.target_direction!r}")
        if not (math.isfinite(self.coefficient) and self.coefficient >= 0):
            raise ValueError(f"kl.coefficient must be finite and ≥ 0, got {self.coefficient}")
        if obstacle := coefficient_obstacle(self.coefficient, self.controller):
            raise ValueError(f"kl.coefficient {obstacle}")
        for name in ("target", "horizon", "target_direction"):
            if obstacle := controller_obstacle(getattr(self, name), self.controller, name):
                raise ValueError(f"kl.{name} {obstacle}")
        if self.controller == "fixed":
            return
        object.__setattr__(self, "target", self.DEFAULT_TARGET if self.target is None else self.target)
        if self.controller == "adaptive":
            object.__setattr__(self, "horizon", self.DEFAULT_HORIZON if self.horizon is None else self.horizon)
        positive = (self.target or 0) > 0 and (self.horizon is None or self.horizon > 0)
        if not (math.isfinite(self.target or 0) and positive):
            raise ValueError(f"kl.target and kl.horizon must be > 0, got {self.target} and {self.horizon}")

    @property
    def held_direction(self) -> KLDirection:
        """Which exact KL a controller holds at the target."""
        return self.target_direction or self.direction

    @property
    def estimator(self) -> KLEstimator:
        """ "k1", "k2", "k3" or "exact"."""
        return estimator_of(self.direction, self.form, self.place)


TermDirection = Literal["forward", "reverse", "js"]
PairSide = Literal["chosen", "rejected", "both"]


def weight_obstacle(weight: float | None, direction: TermDirection) -> str | None:
    """Why a weight of the mixture cannot stand beside this direction; None where it can."""
    if weight is not None and direction != "js":
        return f"has no effect with direction {direction}; remove it (or null), or choose js"
    return None


def target_obstacle(target: float | None, loss: str) -> str | None:
    """Why a KL beside this loss cannot have a target; None where it can."""
    if target is not None and loss == "kl":
        return (
            "has no effect where the KL is the whole loss: nothing pulls against it, whatever its coefficient; remove "
            "it, or choose another loss"
        )
    return None


def target_direction_obstacle(direction: KLDirection | None, target: float | None) -> str | None:
    """Why the direction of a target cannot stand beside this target; None where it can."""
    if direction is not None and target is None:
        return "has no effect without a target: nothing is held; set the target, or remove it (or null)"
    return None


@dataclass(frozen=True)
class KLTerm:
    """An exact KL beside a loss of pairs, with its gradient: loss + λ·KL; the recipe's section `loss.kl`.

    `direction`: "forward" is KL(reference‖policy), "reverse" is KL(policy‖reference), "js" is the generalised
    Jensen–Shannon divergence w·KL(reference‖m) + (1 − w)·KL(policy‖m) with m = w·reference + (1 − w)·policy
    (`divergences.jensen_shannon`). `on`: the responses along which it is summed, in nats per sequence; "both" is the
    mean of the chosen and the rejected response. `coefficient`: λ, per nat; None is `DEFAULT_COEFFICIENT`. `weight`: w,
    of "js" alone; None is `DEFAULT_WEIGHT` there. `target`: nats per sequence at which the KL is held by moving λ
    (`scoring.kl_target`), which begins at the coefficient; None: λ stays as it is. `target_direction`: which exact KL
    along the same responses is held at the target, "forward" or "reverse"; None is `direction`.

    Raises:
        ValueError: a name that is none of these, a coefficient or a target that is not finite and > 0, a weight that is
            not between 0 and 1, or stands beside another direction, or the direction of a target without a target.
    """

    DEFAULT_COEFFICIENT: ClassVar[float] = 0.1
    DEFAULT_WEIGHT: ClassVar[float] = 0.5

    direction: TermDirection = "forward"
    on: PairSide = "both"
    coefficient: float | None = None
    weight: float | None = None
    target: float | None = None
    target_direction: KLDirection | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (("direction", self.direction, TermDirection), ("on", self.on, PairSide)):
            if value not in get_args(choices):
                raise ValueError(f"kl.{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
        if self.coefficient is None:
            object.__setattr__(self, "coefficient", self.DEFAULT_COEFFICIENT)
        elif not (math.isfinite(self.coefficient) and self.coefficient > 0):
            raise ValueError(
                f"kl.coefficient must be finite and > 0, got {self.coefficient}; without a KL beside the loss, leave "
                "kl out"
            )
        if self.target is not None and not (math.isfinite(self.target) and self.target > 0):
            raise ValueError(f"kl.target must be finite and > 0, in nats a sequence, got {self.target}")
        if self.target_direction not in (None, *get_args(KLDirection)):
            raise ValueError(f"kl.target_direction must be reverse, forward or None, got {self.target_direction!r}")
        if obstacle := target_direction_obstacle(self.target_direction, self.target):
            raise ValueError(f"kl.target_direction {obstacle}")
        if obstacle := weight_obstacle(self.weight, self.direction):
            raise ValueError(f"kl.weight {obstacle}")
        if self.direction == "js" and self.weight is None:
            object.__setattr__(self, "weight", self.DEFAULT_WEIGHT)
        if self.weight is not None and not 0.0 < self.weight < 1.0:
            raise ValueError(f"kl.weight must lie strictly between 0 and 1, got {self.weight}")

    def weighted_in_words(self) -> str:
        """The KL with its coefficient, and the target at which it is held where there is one."""
        if self.target is None:
            return f"{self.coefficient:g} × the {self.in_words()}"
        if self.holds_another:
            other = self.held.in_words().removesuffix(f", {self.held.where}")
            return f"λ × the {self.in_words()}; moving λ holds the {other}, at {self.target:g}"
        return f"λ × the {self.in_words()}, held at {self.target:g} by moving λ"

    @property
    def holds_another(self) -> bool:
        """Whether the KL that is held at the target is another one than the term's own."""
        return self.target_direction not in (None, self.direction)

    @property
    def held(self) -> KLTerm:
        """The KL that is held at the target: this one, or that of `target_direction` along the same responses."""
        return KLTerm(self.target_direction or self.direction, self.on) if self.holds_another else self

    @property
    def where(self) -> str:
        """The responses along which it is summed, in words."""
        both = "along chosen and rejected responses (their mean)"
        return both if self.on == "both" else f"along {self.on} responses"

    def in_words(self) -> str:
        """For logs and model cards: which KL it is, and along which responses."""
        what = {
            "forward": "forward KL(reference‖policy)",
            "reverse": "reverse KL(policy‖reference)",
            "js": f"Jensen–Shannon divergence (weight of the reference {self.weight})",
        }[self.direction]
        return f"exact {what}, nats per sequence, {self.where}"
