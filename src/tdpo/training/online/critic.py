"""The critic of PPO: the value V(s) of the state before each token.

It reads the policy's own hidden states, or those of a model of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...batches import ResponseBatch
from ...config import VALUE_LEARNING_RATES
from ...models import causal_lm_of, check_causal, has_adapter, response_hidden
from ...models.quantization import is_quantized_model
from ..resumption import check_alike

FROZEN = (
    "the critic's model would not be trained: it holds quantised weights, or is an adapter, which is loaded frozen. "
    "Give a whole model that is not quantised; `tdpo merge` makes one of an adapter"
)


class Critic(nn.Module):
    """A linear value head, float32, that starts at zero.

    Args:
        width: D of the hidden states it reads.
        body: a causal language model of its own, trained with it; None: the head reads the policy's hidden states, and
            the value loss reaches the policy's body through them.
    """

    def __init__(self, width: int, body: Any | None = None) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def of(cls, policy: Any, value_model: Any | None) -> Critic:
        """The critic of a policy; `value_model` is a loaded causal language model with its tokenizer, or None.

        Raises:
            ValueError: the critic model has another vocabulary than the policy, looks ahead, or would not be trained.
        """
        if value_model is None:
            return cls(_width(policy))
        in_few_bits = is_quantized_model(value_model) and not has_adapter(value_model)
        if in_few_bits or not any(p.requires_grad for p in value_model.parameters()):
            raise ValueError(FROZEN)
        check_causal(value_model, "the critic's model")
        ours, theirs = (causal_lm_of(m).get_input_embeddings().weight.shape[0] for m in (policy, value_model))
        if ours != theirs:
            raise ValueError(
                f"the policy has {ours} vocabulary entries and the critic {theirs}: they need one tokenizer"
            )
        lm = causal_lm_of(value_model)
        output = lm.get_output_embeddings()
        if output is not None and output.weight is not lm.get_input_embeddings().weight:
            output.requires_grad_(False)  # never used here, and DDP would wait for its gradient
        return cls(_width(value_model), value_model)

    @property
    def default_learning_rate(self) -> float:
        """The rate where none was chosen: a new head takes larger steps than a model that has been trained."""
        return VALUE_LEARNING_RATES["head" if self.body is None else "model"]

    def is_trained_by(self, optimizer: Any) -> bool:
        """Whether the optimizer has parameters of this critic."""
        ours = {id(p) for p in self.parameters()}
        return any(id(p) in ours for group in optimizer.param_groups for p in group["params"])

    def forward(self, hidden: Tensor, batch: ResponseBatch) -> Tensor:
        """Values `[N]` of the batch's response tokens; `hidden` `[N, D]` are the policy's states."""
        if self.body is not None:
            hidden = response_hidden(self.body, batch.model_inputs(), batch.response_index)
        values: Tensor = self.head(hidden.float())[:, 0]
        return values


CRITIC_FILE = "critic.pt"  # in a checkpoint


def check_critic_of(checkpoint: Path, critic: Critic | None) -> None:
    """Raise ValueError if one of a checkpoint and the run that goes on from it has a critic and the other has none."""
    check_alike(
        checkpoint,
        there=(checkpoint / CRITIC_FILE).exists(),
        here=critic is not None,
        yes="with a critic (advantage gae)",
        no="without a critic (advantage rloo or group)",
        advice="Put advantage back, or start anew.",
    )


def _width(model: Any) -> int:
    """D of the final hidden states: what the output layer takes."""
    output = causal_lm_of(model).get_output_embeddings()
    return int(output.weight.shape[1])
