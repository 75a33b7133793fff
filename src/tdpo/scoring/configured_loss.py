"""The loss that a recipe or a configuration names, and the KL beside it, as one function of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ..batches import ResponseBatch
from ..kl_choices import KLTerm
from ..losses import (
    LossBesideKL,
    PreferenceLoss,
    beside_kl,
    dpo_loss,
    f_dpo_loss,
    ipo_loss,
    pair_kl,
    sft_loss,
    simpo_loss,
    tdpo1_loss,
    tdpo2_loss,
    zero_loss,
)
from ..scores import PairScores
from ..token_statistics import Extra, JensenShannon, TokenStats
from .head_path import PathName
from .kl_target import KLTargetController
from .readings import Reading

# The fields of `TokenStats` that a KL beside the loss can be, by its direction.
KL_NAMES = {"forward": "forward_kl", "reverse": "reverse_kl", "js": "jensen_shannon"}
MEASURED: tuple[Extra, ...] = ("reverse_kl", "policy_entropy")  # of every pair that is trained on


@dataclass
class ConfiguredLoss:
    """A loss of pairs, and the KL beside it if there is one.

    Args:
        of_pairs: the loss alone.
        kl: which KL stands beside it; None for none, and then nothing is computed for it.
        kl_coefficient: λ as it is now. It changes between two updates where there is a target; checkpoints keep it.
        controller: what changes it; None where there is no target.
    """

    of_pairs: Callable[[PairScores], PreferenceLoss]
    kl: KLTerm | None = None
    kl_coefficient: float = 0.0
    controller: KLTargetController | None = None

    def __call__(self, stats: TokenStats, scores: PairScores, sequence_index: Tensor, num_pairs: int) -> PreferenceLoss:
        """The loss of P pairs from their `scores`, and of the KL from the `stats` that these were made of.

        Arguments are those of `score_pairs`.
        """
        loss = self.of_pairs(scores)
        if self.kl is None:
            return loss
        return beside_kl(loss, pair_kl(stats, sequence_index, num_pairs, self.kl), self.kl_coefficient)

    @property
    def extras(self) -> tuple[Extra, ...]:
        """What the loss and its metrics need of each token beside the usual statistics."""
        if self.kl is None or self.kl.direction != "js":
            return MEASURED
        assert self.kl.weight is not None
        return (*MEASURED, JensenShannon(self.kl.weight))

    def learned_tokens(self, batch: ResponseBatch) -> dict[str, range]:
        """The tokens of a batch whose KLs have a gradient in this loss, by the KL's name in `TokenStats`."""
        sides = {"forward_kl": self._sides_of_loss, "reverse_kl": frozenset[str]()}
        if self.kl is not None:
            name = KL_NAMES[self.kl.direction]
            of_term = {"chosen", "rejected"} if self.kl.on == "both" else {self.kl.on}
            sides[name] = sides.get(name, frozenset()) | of_term
        tokens, chosen = len(batch.target_ids), batch.counts.first_tokens
        return {
            name: range(0 if "chosen" in of else chosen, tokens if "rejected" in of else chosen)
            for name, of in sides.items()
        }

    @cached_property
    def _sides_of_loss(self) -> frozenset[str]:
        """The responses whose forward KL has a gradient in the loss alone; it is asked."""
        with torch.inference_mode(False), torch.enable_grad():  # wherever it is asked first
            one, chosen, rejected = torch.ones(1), torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
            scores = PairScores(one, one, chosen, rejected, one, one, one.long(), one.long())
            of_pair = self.of_pairs(scores).per_pair
            if not of_pair.requires_grad:
                return frozenset()
            gradients = torch.autograd.grad(of_pair.sum(), [chosen, rejected], allow_unused=True)
        sides = zip(("chosen", "rejected"), gradients, strict=True)
        return frozenset(side for side, gradient in sides if gradient is not None)

    def describe(self, path: PathName) -> str:
        """The KL beside the loss, in a sentence for the log; empty without one. `path` is the head path."""
        if self.kl is None:
            return ""
        walk = "; its gradient is one more walk" if path == "frozen" and self.kl.direction == "reverse" else ""
        place = "The loss" if self.of_pairs is zero_loss else "Beside the loss"
        return f" {place}: {self.kl.weighted_in_words()}{walk}."

    def logged(self, numbers: dict[str, float]) -> dict[str, float]:
        """`numbers` of pairs, with λ as it is now; without the column of a KL where none stands beside the loss."""
        if self.kl is not None:
            return {**numbers, "kl_coefficient": self.kl_coefficient}
        return {name: value for name, value in numbers.items() if name != "kl_term"}

    @property
    def aim(self) -> dict[str, float]:
        """What is held at which target, for the log of an update; empty without one.

        Where another KL is held than the one beside the loss, its average over the last updates is logged as well; and
        where evaluations have moved it, what is held on pairs that are learned from.
        """
        if self.controller is None:
            return {}
        assert self.kl is not None
        kl = self.controller.kl
        held = {"held_kl": kl} if self.kl.holds_another and kl is not None else {}
        moved = {"kl_aim": self.controller.aim} if self.controller.held_out else {}
        return {**held, "kl_target": self.controller.target, **moved}

    def observe(self, loss: PreferenceLoss, stats: TokenStats, sequence_index: Tensor, num_pairs: int) -> None:
        """Take in a micro-batch that is learned from, for the controller where there is one.

        `loss` is what a call with the other arguments gave.
        """
        if self.controller is None or not isinstance(loss, LossBesideKL):
            return
        assert self.kl is not None
        if not self.kl.holds_another:
            self.controller.observe(loss.kl_term)
            return
        with torch.no_grad():
            self.controller.observe(pair_kl(stats, sequence_index, num_pairs, self.kl.held))

    def held_out_kl(self, metrics: Mapping[str, float]) -> float | None:
        """The held KL in the numbers of an evaluation on pairs, nats per sequence; None where they have none."""
        if self.kl is None:
            return None
        if not self.kl.holds_another:
            return metrics.get("eval_kl_term")
        held = self.kl.held
        sides = ("chosen", "rejected") if held.on == "both" else (held.on,)
        found = [metrics.get(f"eval_{side}_{held.direction}_kl") for side in sides]
        return None if None in found else sum(value or 0.0 for value in found) / len(found)

    @property
    def readings(self) -> list[Reading]:
        """What the controller has observed, where there is one."""
        return [] if self.controller is None else [self.controller.observed]

    def end_update(self, total: Callable[[Tensor], Tensor]) -> None:
        """Let the controller change λ, where there is one; `total` sums a vector over processes."""
        if self.controller is not None:
            self.controller.end_update(total)
            self.kl_coefficient = self.controller.coefficient

    def state_dict(self) -> dict[str, Any]:
        """What a run changes and a checkpoint keeps; empty without a KL beside the loss."""
        if self.kl is None:
            return {}
        of_controller = {} if self.controller is None else self.controller.state_dict()
        return {"kl_coefficient": self.kl_coefficient, **of_controller}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; an empty one changes nothing."""
        if self.controller is not None:
            self.controller.load_state_dict(state)
        self.kl_coefficient = float(state.get("kl_coefficient", self.kl_coefficient))


def configured_loss(
    name: str,
    beta: float | None,
    alpha: float | None,
    label_smoothing: float,
    kl: KLTerm | None = None,
    gamma: float | None = None,
) -> ConfiguredLoss:
    """`name` is a loss of `methods.py`; only tdpo2 has `alpha`, only simpo `gamma`; ipo and f-DPO have `beta` alone,
    sft and kl nothing.

    `kl` stands beside the loss; the loss named kl is nothing else.
    """
    loss = _loss_of_pairs(name, beta, alpha, label_smoothing, gamma)
    if kl is None:
        return ConfiguredLoss(loss)
    assert kl.coefficient is not None
    if kl.target is None:
        return ConfiguredLoss(loss, kl, kl.coefficient)
    controller = KLTargetController(kl.target, kl.coefficient)
    return ConfiguredLoss(loss, kl, controller.coefficient, controller)


def _loss_of_pairs(
    name: str, beta: float | None, alpha: float | None, label_smoothing: float, gamma: float | None
) -> Callable[[PairScores], PreferenceLoss]:
    if name in ("sft", "kl"):
        return sft_loss if name == "sft" else zero_loss
    assert beta is not None
    if name == "ipo":
        return partial(ipo_loss, beta=beta)
    if name in ("f_dpo_forward", "f_dpo_js"):
        return partial(f_dpo_loss, beta=beta, divergence="forward" if name == "f_dpo_forward" else "js")
    if name == "simpo":
        assert gamma is not None
        return partial(simpo_loss, beta=beta, gamma=gamma)
    if name == "tdpo2":
        assert alpha is not None
        return partial(tdpo2_loss, beta=beta, alpha=alpha, label_smoothing=label_smoothing)
    return partial({"dpo": dpo_loss, "tdpo1": tdpo1_loss}[name], beta=beta, label_smoothing=label_smoothing)


def beta_of(loss: Callable[[PairScores], PreferenceLoss]) -> float:
    """What a nat of a log-ratio (of SimPO, of a mean) counts in the margin of a loss that `configured_loss` made: β, or
    1 for SFT."""
    return float(getattr(loss, "keywords", {}).get("beta", 1.0))


def is_per_token(loss: Callable[[PairScores], PreferenceLoss]) -> bool:
    """Whether the margin of a loss that `configured_loss` made is of means over tokens, and not of sums."""
    return getattr(loss, "func", loss) is simpo_loss
