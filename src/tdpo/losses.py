"""DPO, TDPO1, TDPO2, IPO, f-DPO, SimPO, SFT, and a KL beside any of them: from pair scores to one loss value per pair.

`margin` is chosen_reward − rejected_reward for each method. In DPO and TDPO it is what stands inside the sigmoid:
every reward contains all that its loss contains, so accuracy (margin > 0) cannot disagree with the loss. SimPO has the
margin less γ there. IPO has no sigmoid; its loss pulls the margin to ½ and rises again beyond. SFT has no margin in its
loss; the one it reports is a measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .kl_choices import KLTerm
from .scores import PairScores, mean_over_tokens, sum_by_sequence
from .token_statistics import MixtureTokenStats, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


ResponseDivergence = Literal["forward", "js"]


@dataclass(frozen=True)
class PreferenceLoss:
    """One value per pair, `[P]` each; the caller reduces.

    `per_pair` is the loss in nats (of IPO in nats²), the rewards are implicit rewards (β·nats; of SimPO β·nats per
    token), `margin` is their difference and the argument of the sigmoid where there is one (of SimPO before γ is taken
    off). Rewards and margin keep their gradient.
    """

    per_pair: Float[Tensor, " P"]
    margin: Float[Tensor, " P"]
    chosen_reward: Float[Tensor, " P"]
    rejected_reward: Float[Tensor, " P"]


@dataclass(frozen=True)
class LossBesideKL(PreferenceLoss):
    """A loss with a KL beside it: `per_pair` contains coefficient·`kl_term`, which is `[P]` nats per sequence."""

    kl_term: Float[Tensor, " P"]


def dpo_loss(scores: PairScores, *, beta: float, label_smoothing: float = 0.0) -> PreferenceLoss:
    """DPO: −log σ(β·h), h = chosen_log_ratio − rejected_log_ratio (Rafailov et al. 2023, eq. 7).

    Args:
        scores: of P pairs.
        beta: inverse strength of the change, > 0.
        label_smoothing: probability ε that a preference is flipped, in [0, 0.5):
            (1 − ε)·(−log σ(margin)) + ε·(−log σ(−margin)) (Mitchell 2023, conservative DPO).

    Raises:
        ValueError: beta or label_smoothing out of range.
    """
    return _preference_loss(beta * scores.chosen_log_ratio, beta * scores.rejected_log_ratio, beta, label_smoothing)


def tdpo1_loss(scores: PairScores, *, beta: float, label_smoothing: float = 0.0) -> PreferenceLoss:
    """TDPO1: −log σ(β·(h − (D_l − D_w))), both KLs with gradient (arXiv 2404.11999, eq. 14).

    D_w and D_l are the forward sequence KLs of the chosen and the rejected response; the rewards are
    β·(log_ratio + D). Arguments and errors as `dpo_loss`.
    """
    return _preference_loss(
        beta * (scores.chosen_log_ratio + scores.chosen_sequence_kl),
        beta * (scores.rejected_log_ratio + scores.rejected_sequence_kl),
        beta,
        label_smoothing,
    )


def tdpo2_loss(scores: PairScores, *, beta: float, alpha: float, label_smoothing: float = 0.0) -> PreferenceLoss:
    """TDPO2: −log σ(β·(h − α·(D_l − sg(D_w)))), sg stopping the gradient (arXiv 2404.11999, eq. 17).

    Args:
        scores: of P pairs.
        beta: inverse strength of the change, > 0.
        alpha: weight of the KL term, ≥ 0; 0 is DPO exactly, in value and in gradient.
        label_smoothing: as in `dpo_loss`.

    Raises:
        ValueError: beta, alpha or label_smoothing out of range.
    """
    if not (alpha >= 0.0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be finite and ≥ 0, got {alpha}")
    if alpha == 0.0:  # 0·inf would be NaN where the policy lacks the reference's support
        return dpo_loss(scores, beta=beta, label_smoothing=label_smoothing)
    return _preference_loss(
        beta * (scores.chosen_log_ratio + alpha * scores.chosen_sequence_kl.detach()),
        beta * (scores.rejected_log_ratio + alpha * scores.rejected_sequence_kl),
        beta,
        label_smoothing,
    )


def ipo_loss(scores: PairScores, *, beta: float) -> PreferenceLoss:
    """IPO: (h − 1/(2β))², h = chosen_log_ratio − rejected_log_ratio; β is the paper's τ (arXiv 2310.12036, eq. 17).

    h is a difference of sums over the responses, as the paper writes it; TRL divides each by the response's length. The
    loss is in nats², is least at h = 1/(2β), where the margin β·h is ½, and punishes going beyond it. Its gradient
    with respect to h, 2·(h − 1/(2β)), is not bounded. The KLs do not enter it.

    Args:
        scores: of P pairs.
        beta: inverse strength of the change, > 0. There is no label_smoothing: up to a constant, that would be the same
            loss with β/(1 − 2ε).

    Raises:
        ValueError: beta out of range.
    """
    _check_beta(beta)
    chosen_reward, rejected_reward = beta * scores.chosen_log_ratio, beta * scores.rejected_log_ratio
    per_pair = (scores.chosen_log_ratio - scores.rejected_log_ratio - 0.5 / beta).square()
    return PreferenceLoss(per_pair, chosen_reward - rejected_reward, chosen_reward, rejected_reward)


def f_dpo_loss(scores: PairScores, *, beta: float, divergence: ResponseDivergence) -> PreferenceLoss:
    """f-DPO: −log σ(β·f′(u_w) − β·f′(u_l)), u = π/π_ref of a response (Wang et al. 2023, arXiv 2309.16240, eq. 9).

    It transforms the ratio of a *response*, and is no KL over the vocabulary at each position: the divergence is that
    between distributions of responses, which holds its optimum. The reverse KL, f(u) = u·log u, gives DPO.

    Args:
        scores: of P pairs.
        beta: inverse strength of the change, > 0.
        divergence: "forward", f(u) = −log u, f′(u) = −1/u; or "js", f(u) = u·log u − (u + 1)·log((u + 1)/2),
            f′(u) = log(2u/(1 + u)), of which the constant log 2 cancels in a pair and is left out. The rewards are
            β·f′(u); "forward" gives them in float64, since 1/u grows exponentially as the policy leaves a response.

    Raises:
        ValueError: beta out of range, or a divergence that is none of the two.
    """
    _check_beta(beta)
    if divergence not in get_args(ResponseDivergence):
        raise ValueError(f"divergence must be one of {', '.join(get_args(ResponseDivergence))}, got {divergence!r}")
    chosen, rejected = scores.chosen_log_ratio, scores.rejected_log_ratio
    if divergence == "forward":
        chosen_reward, rejected_reward = (-beta * torch.exp(-ratio.double()) for ratio in (chosen, rejected))
    else:
        chosen_reward, rejected_reward = beta * logsigmoid(chosen), beta * logsigmoid(rejected)
    margin = chosen_reward - rejected_reward
    return PreferenceLoss(-logsigmoid(margin).to(chosen.dtype), margin, chosen_reward, rejected_reward)


def simpo_loss(scores: PairScores, *, beta: float, gamma: float) -> PreferenceLoss:
    """SimPO: −log σ(β·log π(y_w)/|y_w| − β·log π(y_l)/|y_l| − γ), without a reference (arXiv 2405.14734, eq. 6).

    |y| counts the tokens that are learned from, the end token included: a response that was cut off is judged by what
    is left of it. A response without any has no mean: its reward is 0, without a gradient. The rewards are β times the
    mean log-probability of a token. γ is neither in them nor in the margin, so the accuracy (margin > 0) is that of the
    rewards.

    Args:
        scores: of P pairs, with `*_logp` and `*_tokens`. Log-ratios and KLs do not enter.
        beta: scale of the rewards, > 0; the paper takes 2 to 10, since means are smaller than sums.
        gamma: the margin that is aimed at, ≥ 0, in the rewards' unit.

    Raises:
        ValueError: beta or gamma out of range, or scores without log-probabilities.
    """
    _check_beta(beta)
    if not (gamma >= 0.0 and math.isfinite(gamma)):
        raise ValueError(f"gamma must be finite and ≥ 0, got {gamma}")
    logp, tokens = (scores.chosen_logp, scores.rejected_logp), (scores.chosen_tokens, scores.rejected_tokens)
    if logp[0] is None or logp[1] is None or tokens[0] is None or tokens[1] is None:
        raise ValueError("SimPO needs log-probabilities and numbers of tokens; make the scores with score_pairs")
    chosen_reward = beta * mean_over_tokens(logp[0], tokens[0])
    rejected_reward = beta * mean_over_tokens(logp[1], tokens[1])
    margin = chosen_reward - rejected_reward
    return PreferenceLoss(-logsigmoid(margin - gamma), margin, chosen_reward, rejected_reward)


def sft_loss(scores: PairScores) -> PreferenceLoss:
    """SFT on the chosen response: −log π(chosen) + log π_ref(chosen) = −chosen_log_ratio, nats per sequence.

    The reference's part is a constant, so the gradient is that of the negative log-likelihood, and the value is 0 at
    the start. Margin and rewards are those of a preference loss with β = 1, the log-ratios themselves. The loss does
    not contain them, so the rejected response gets no gradient.
    """
    chosen, rejected = scores.chosen_log_ratio, scores.rejected_log_ratio
    return PreferenceLoss(-chosen, chosen - rejected, chosen, rejected)


def zero_loss(scores: PairScores) -> PreferenceLoss:
    """0 for each pair: for a KL that stands alone, as in distillation. Margin and rewards are those of `sft_loss`."""
    chosen, rejected = scores.chosen_log_ratio, scores.rejected_log_ratio
    return PreferenceLoss(torch.zeros_like(chosen), chosen - rejected, chosen, rejected)


def pair_kl(
    stats: TokenStats, sequence_index: Int64[Tensor, " N"], num_pairs: int, term: KLTerm
) -> Float[Tensor, " P"]:
    """The KL of each pair that `term` names, with its gradient and before its coefficient: `[P]` nats per sequence.

    It is Σ_t KL_t over the positions of the chosen or the rejected response, or the mean of the two. The other
    arguments are those of `score_pairs`.

    Raises:
        ValueError: the statistics lack it: the reverse KL and the Jensen–Shannon divergence are extras.
    """
    mixture = stats.jensen_shannon if isinstance(stats, MixtureTokenStats) else None
    per_token = {"forward": stats.forward_kl, "reverse": stats.reverse_kl, "js": mixture}[term.direction]
    if per_token is None:
        extra = "'reverse_kl'" if term.direction == "reverse" else f"JensenShannon({term.weight})"
        raise ValueError(f"a KL with direction {term.direction} needs statistics with extras=[{extra}]")
    chosen, rejected = sum_by_sequence(per_token, sequence_index, num_pairs)
    return {"chosen": chosen, "rejected": rejected, "both": 0.5 * (chosen + rejected)}[term.on]


def beside_kl(loss: PreferenceLoss, kl: Float[Tensor, " P"], coefficient: float) -> LossBesideKL:
    """`loss` + coefficient·`kl`: outside the sigmoid, so that margin and rewards stay what they are.

    Args:
        loss: any loss of P pairs.
        kl: `[P]` nats per sequence with gradient, as `pair_kl` gives it.
        coefficient: λ per nat, > 0.

    Raises:
        ValueError: the coefficient is out of range.
    """
    if not (coefficient > 0.0 and math.isfinite(coefficient)):
        raise ValueError(f"coefficient must be finite and > 0, got {coefficient}")
    per_pair = loss.per_pair + coefficient * kl
    return LossBesideKL(per_pair, loss.margin, loss.chosen_reward, loss.rejected_reward, kl)


def _preference_loss(
    chosen_reward: Tensor, rejected_reward: Tensor, beta: float, label_smoothing: float
) -> PreferenceLoss:
    _check_beta(beta)
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    margin = chosen_reward - rejected_reward
    per_pair = -logsigmoid(margin)
    if label_smoothing:
        per_pair = (1.0 - label_smoothing) * per_pair - label_smoothing * logsigmoid(-margin)
    return PreferenceLoss(per_pair, margin, chosen_reward, rejected_reward)


def _check_beta(beta: float) -> None:
    if not (beta > 0.0 and math.isfinite(beta)):
        raise ValueError(f"beta must be finite and > 0, got {beta}")
