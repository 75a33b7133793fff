"""What trainers on own responses need of a server that samples for them: who hands the adapter over, and what its
log-probabilities are beside the policy's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ...divergences import sampled_kl
from ...records.names import ADAPTERS_FOLDER
from ...sampling.engines import ResponseSampler, response_sampler
from ...sampling.sampler import SampledResponse
from .arguments import OnlineArguments
from .rewarded_responses import Total

if TYPE_CHECKING:
    from ...sampling.vllm.sampler import OnceForAll

logger = logging.getLogger(__name__)
SUSPICIOUS_KL = 0.05  # nats a token: about what a difference of 0.3 nats at every token makes (k3 ≈ d²/2)


def sampler_of(args: OnlineArguments) -> ResponseSampler:
    """The sampler of a trainer. Raises as `response_sampler`."""
    folder = (Path(str(args.output_dir)) / ADAPTERS_FOLDER).absolute()
    return response_sampler(
        args.sampling, folder=folder, owner=str(folder), with_logps=True, once_for_all=_once_for_all(args)
    )


def _once_for_all(args: OnlineArguments) -> OnceForAll:
    """Does something on the first process alone. Where it fails, all fail: none waits for the others for ever."""

    def do(make: Callable[[], str]) -> str:
        if args.world_size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if args.process_index == 0:
            try:
                outcome[0] = make()
            except Exception as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return str(outcome[0])

    return do


def flat_logps(responses: Sequence[SampledResponse], order: Sequence[int]) -> Tensor | None:
    """What the server says of the tokens of the responses in this order, `[N]` float64; None where none was asked."""
    if not responses or responses[0].logps is None:
        return None
    values = [value for number in order for value in responses[number].logps or ()]
    return torch.tensor(values, dtype=torch.float64)


def mismatch_numbers(logp: Tensor, sampler_logp: Tensor, total: Total) -> dict[str, float]:
    """How far the sampler is from the policy on N tokens that it drew.

    Args:
        logp: `[N]`, of the policy that learns, before it has learned from them.
        sampler_logp: `[N]`, of what drew them.
        total: sums a vector over processes.

    Returns:
        `sampler_kl`: KL(sampler‖policy), estimated by k3, nats per token; `sampler_ratio_mean` and `_max`: of
        π/μ at the drawn tokens, with the policy's π and the sampler's μ, whose expectation is 1, the largest one on
        this process; `sampler_logp_difference_max`: the largest |log π − log μ| there.
    """
    difference = logp.double().cpu() - sampler_logp
    sums = torch.stack([sampled_kl(sampler_logp, logp.double().cpu(), "k3").sum(), difference.exp().sum()])
    kl, ratio, tokens = total(torch.cat([sums, sums.new_tensor([float(len(difference))])])).tolist()
    if kl / tokens > SUSPICIOUS_KL:
        logger.warning(
            "The server draws from another distribution than the policy: KL %.3g nats a token. Does it run in the "
            "policy's dtype, without quantization, and with its adapter?",
            kl / tokens,
        )
    return {
        "sampler_kl": kl / tokens,
        "sampler_ratio_mean": ratio / tokens,
        "sampler_ratio_max": float(difference.max().exp()),
        "sampler_logp_difference_max": float(difference.abs().max()),
    }
