"""The KL between policy and reference in PPO: which direction, form and place go together.

A sampled KL is an estimate from the sampled token, named after Schulman (http://joschu.net/blog/kl-approx.html);
an exact one is a sum over the vocabulary. Not every combination has the gradient that its name promises. These have:

    direction  form     place   estimator
    reverse    sampled  reward  k1         KL(policy‖reference), through the policy gradient
    reverse    sampled  loss    k2         its gradient at each position
    reverse    exact    loss    exact
    forward    sampled  loss    k3         KL(reference‖policy), its gradient at each position
    forward    exact    loss    exact

Recipes are checked against this table too, so this module imports nothing heavy.
"""

from __future__ import annotations

from typing import Literal, get_args

KLDirection = Literal["reverse", "forward"]
KLForm = Literal["sampled", "exact"]
KLPlace = Literal["reward", "loss"]
KLController = Literal["fixed", "adaptive"]
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
