"""TDPO2 in a training loop of your own: three functions, torch only.

The model is a small new network. The task is a toy: of two responses to a prompt, the one with more even
tokens is preferred. The lines between the hidden states and the loss are the same for a real model.

    python examples/plain_loop.py
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tdpo import Head, PairScores, PreferenceLoss, linear_token_stats, score_pairs, tdpo2_loss

VOCABULARY, SIZE, PROMPT, RESPONSE, PAIRS = 50, 32, 4, 8, 32


class TinyModel(nn.Module):
    """A body that returns hidden states `[R, T, D]` and a head that stays outside the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, SIZE)
        self.body = nn.GRU(SIZE, SIZE, batch_first=True)
        self.lm_head = nn.Linear(SIZE, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.embedding(ids))[0]


def make_batch() -> tuple[Tensor, Tensor]:
    """Return rows `[2P, T]`, chosen ones first, and a mask of the counted response tokens, as lengths differ."""
    prompts = torch.randint(VOCABULARY, (PAIRS, PROMPT))
    responses = torch.randint(VOCABULARY, (2, PAIRS, RESPONSE))
    evenness = (responses % 2 == 0).sum(dim=2)
    order = evenness.argsort(dim=0, descending=True)[:, :, None].expand_as(responses)
    responses = responses.gather(0, order)
    ids = torch.cat([prompts.repeat(2, 1), responses.flatten(0, 1)], dim=1)
    lengths = torch.randint(RESPONSE // 2, RESPONSE + 1, (2 * PAIRS, 1))
    position = torch.arange(PROMPT + RESPONSE)
    return ids, (position >= PROMPT) & (position < PROMPT + lengths)


def pair_scores(policy: TinyModel, reference: TinyModel, ids: Tensor, counted: Tensor) -> PairScores:
    # The hidden state before a token predicts it; padding and prompt never reach the head.
    row, column = counted.nonzero(as_tuple=True)
    hidden = policy(ids)[row, column - 1]
    with torch.no_grad():
        reference_hidden = reference(ids)[row, column - 1]
    stats = linear_token_stats(
        hidden,
        Head(policy.lm_head.weight),
        reference_hidden,
        Head(reference.lm_head.weight),
        ids[row, column],
    )
    return score_pairs(stats, sequence_index=row, num_pairs=PAIRS)  # row p is chosen, row P + p rejected


def main() -> list[float]:
    torch.manual_seed(0)
    policy = TinyModel()
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    losses = []
    for step in range(61):
        ids, counted = make_batch()
        scores = pair_scores(policy, reference, ids, counted)
        loss: PreferenceLoss = tdpo2_loss(scores, beta=0.5, alpha=0.5)
        optimizer.zero_grad()
        loss.per_pair.mean().backward()
        optimizer.step()
        losses.append(loss.per_pair.mean().item())
        if step % 20 == 0:
            print(
                f"step {step:2}  loss {losses[-1]:.3f}  accuracy {(loss.margin > 0).float().mean():.2f}  "
                f"margin {loss.margin.mean():+.2f}  KL(reference‖policy), nats per sequence: "
                f"chosen {scores.chosen_sequence_kl.mean():.2f}, rejected {scores.rejected_sequence_kl.mean():.2f}"
            )
    return losses


if __name__ == "__main__":
    main()
