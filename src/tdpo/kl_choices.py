"""How PPO may hold a policy to its reference: which direction, form and place of the KL go together.

A sampled KL is an estimate from the token that was drawn, named after Schulman (http://joschu.net/blog/kl-approx.html);
an exact one is a sum over the vocabulary. Not every combination has the gradient that its name promises:

    direction  form     place   estimator
    reverse    sampled  reward  k1         KL(policy‖reference), through the policy gradient
    reverse    sampled  loss    k2         its gradient at each position
    reverse    exact    loss    exact
    forward    sampled  loss    k3         KL(reference‖policy), its gradient at each position
    forward    exact    loss    exact

The recipe is checked against this table too, which is why nothing heavy is imported here.
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
    """What the KL is computed with. Raises ValueError, with the reason, for a combination that is none."""
    obstacle = kl_obstacle(direction, form, place)
    if obstacle is not None:
        raise ValueError(obstacle)
    return _ESTIMATORS[direction, form, place]


def shortest_horizon(completions: int) -> int:
    """The smallest horizon with which an iteration of so many completions changes the adaptive coefficient by at most
    half: the relative error of the KL is cut at 0.2 (Ziegler et al. 2019), and the change is error·completions/horizon.
    """
    return -(-2 * completions // 5)
