"""The losses as the papers write them, from full logits, sequence by sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tdpo.batches import TokenizedPair


def naive_loss(
    policy: Any, reference: Any, pairs: list[TokenizedPair], loss: str, *, beta: float, alpha: float
) -> Tensor:
    """The mean loss with its gradient, as the papers write it, from log-softmaxes over the whole vocabulary."""

    def ratio_and_kl(prompt: list[int], response: list[int]) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([prompt + response])
        shown = slice(len(prompt) - 1, ids.shape[1] - 1)
        logp = policy(input_ids=ids).logits[0, shown].log_softmax(-1)
        with torch.no_grad():
            reference_logp = reference(input_ids=ids).logits[0, shown].log_softmax(-1)
        target = torch.tensor(response)[:, None]
        ratio = (logp - reference_logp).gather(1, target).sum()
        return ratio, (reference_logp.exp() * (reference_logp - logp)).sum()

    losses = []
    for pair in pairs:
        chosen, chosen_kl = ratio_and_kl(pair.prompt_ids, pair.chosen_ids)
        rejected, rejected_kl = ratio_and_kl(pair.prompt_ids, pair.rejected_ids)
        h = chosen - rejected
        margin = {
            "dpo": h,
            "tdpo1": h - (rejected_kl - chosen_kl),
            "tdpo2": h - alpha * (rejected_kl - chosen_kl.detach()),
        }[loss]
        losses.append(-logsigmoid(beta * margin))
    return torch.stack(losses).mean()
