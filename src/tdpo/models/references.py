"""The reference: the adapter switched off, a second model, or a frozen copy of the policy's start."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..token_stats import Head
from .adapters import has_adapter
from .hidden_states import find_head, policy_hidden, select_logits


@dataclass
class Reference:
    """Gives the reference's hidden states (or logits); never a gradient.

    `model` is None where the reference is the policy itself with its adapter switched off.
    """

    kind: Literal["adapter-off", "second model", "copy"]
    model: Any | None
    head: Callable[[], Head] | None

    @torch.no_grad()
    def hidden_and_head(self, policy: Any, inputs: Mapping[str, Tensor], index: Tensor) -> tuple[Tensor, Head]:
        """Hidden states `[N, D]` and the head as it acts on them."""
        assert self.head is not None
        model = policy if self.model is None else self.model
        with self._as_reference(policy):
            return policy_hidden(model, inputs, index), _detached(self.head())

    @torch.no_grad()
    def logits(self, policy: Any, inputs: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Logits `[N, V]` from the model's own forward, for heads that are not understood."""
        with self._as_reference(policy):
            return select_logits(policy if self.model is None else self.model, inputs, index)

    def _as_reference(self, policy: Any) -> Any:
        if self.model is not None:
            return nullcontext()
        return _unwrapped(policy).disable_adapter()


def reference_for(policy: Any, given: Any | None = None) -> Reference:
    """The reference of `policy`: the one given, else its adapter switched off, else a frozen copy made now.

    Raises:
        ValueError: the given model is the policy itself, or its vocabulary has another size.
    """
    if given is policy and given is not None:
        raise ValueError(
            "ref_model is the very object that is trained, so it would change with it. "
            "Leave ref_model out: the start of the policy is then the reference."
        )
    if given is not None:
        _check_vocabulary(policy, given)
        return Reference("second model", _frozen(given), find_head(given))
    if has_adapter(policy):
        return Reference("adapter-off", None, find_head(policy))
    copied = _frozen(copy.deepcopy(policy))
    return Reference("copy", copied, find_head(copied))


def _frozen(model: Any) -> Any:
    model.requires_grad_(False)
    return model.eval()


def _detached(head: Head) -> Head:
    return Head(
        head.weight.detach(), None if head.bias is None else head.bias.detach(), scale=head.scale, softcap=head.softcap
    )


def _check_vocabulary(policy: Any, reference: Any) -> None:
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the policy has {sizes[0]} vocabulary entries and the reference {sizes[1]}: "
            "a KL over the vocabulary needs one tokenizer for both"
        )


def _unwrapped(model: Any) -> Any:
    while not hasattr(model, "disable_adapter"):
        model = model.module
    return model
