"""The reference: the adapter switched off, a second model, or the policy's start, as it is or as a frozen copy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..token_statistics import Head
from .adapters import has_adapter
from .hidden_states import causal_lm_of, find_head, probe, response_hidden, select_logits
from .probing import check_causal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Gives the reference's hidden states (or logits); never a gradient.

    `model` is None where the reference is the policy itself with its adapter switched off. Of the kind "start",
    `model` is the policy itself, and the reference only until the policy is trained.
    """

    kind: Literal["adapter-off", "second model", "start", "copy"]
    model: Any | None
    head: Callable[[], Head] | None

    @torch.no_grad()
    def hidden_and_head(self, policy: Any, inputs: Mapping[str, Tensor], index: Tensor) -> tuple[Tensor, Head]:
        """Hidden states `[N, D]` and the head as it acts on them."""
        assert self.head is not None
        model = policy if self.model is None else self.model
        with self._as_reference(policy):
            return response_hidden(model, inputs, index), _detached(self.head())

    @torch.no_grad()
    def logits(self, policy: Any, inputs: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Logits `[N, V]` from the model's own forward, for heads that are not understood."""
        with self._as_reference(policy):
            return select_logits(policy if self.model is None else self.model, inputs, index)

    def _as_reference(self, policy: Any) -> Any:
        if self.model is not None:
            return nullcontext()
        return _adapter_off(policy)


@contextmanager
def _adapter_off(policy: Any) -> Iterator[None]:
    """The policy with its adapter switched off, its weights still known as trained."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    with _unwrapped(policy).disable_adapter():
        # peft freezes the adapter meanwhile. Weights that FSDP2 gathers then, and keeps whole, would be thawed as whole
        # ones only: their shards stayed frozen, and were left out of checkpoints.
        for parameter in trained:
            parameter.requires_grad_(True)
        yield


def reference_at_start(policy: Any, given: Any | None = None) -> Reference:
    """The reference of a policy that is about to be trained, without a copy: where one is due, of the kind "start".

    Arguments and errors are those of `reference_for`. An adapter that changes the model already, or that is trained
    along with weights of its base, gives the start only as it is now, and not switched off.
    """
    if given is not None or (has_adapter(policy) and not _start_needs_copy(policy)):
        return reference_for(policy, given)
    return Reference("start", policy, find_head(policy))


def kept_reference(policy: Any, start: Reference) -> Reference:
    """`start` as a reference that lasts while the policy is trained."""
    if start.kind != "start":
        return start
    # What is not trained is never changed, so the copy shares it.
    untrained = {id(p): p for p in policy.parameters() if not p.requires_grad}
    copied = _frozen(copy.deepcopy(policy, untrained))
    return Reference("copy", copied, find_head(copied))


def reference_for(policy: Any, given: Any | None = None) -> Reference:
    """The reference of `policy`: the one given, else its adapter switched off, else a frozen copy made now.

    Args:
        policy: the model that is trained or judged.
        given: the reference; it is frozen and put into evaluation mode.

    Raises:
        ValueError: the given model looks ahead, shares trained weights with the policy, or its vocabulary has another
            size.
    """
    if given is not None:
        check_causal(given, "the reference")
        _check_apart(policy, given)
        check_vocabulary(policy, given)
        return Reference("second model", _frozen(given), find_head(given))
    if has_adapter(policy):
        return Reference("adapter-off", None, find_head(policy))
    copied = _frozen(copy.deepcopy(policy))
    return Reference("copy", copied, find_head(copied))


def _start_needs_copy(policy: Any) -> bool:
    """Whether `policy` with its adapter off is another model than it is now, or will be once it is trained."""
    adapter = (getattr(policy.base_model, "prefix", "lora_"), "modules_to_save.", "token_adapter.")
    if any(p.requires_grad and not any(part in name for part in adapter) for name, p in policy.named_parameters()):
        return True
    now = probe(policy)
    with policy.disable_adapter():
        off = probe(policy)
    return now is not None and off is not None and not torch.equal(now[1], off[1])


def _frozen(model: Any) -> Any:
    model.requires_grad_(False)
    return model.eval()


def _detached(head: Head) -> Head:
    return Head(
        head.weight.detach(), None if head.bias is None else head.bias.detach(), scale=head.scale, softcap=head.softcap
    )


def _check_apart(policy: Any, reference: Any) -> None:
    trained = {id(p) for p in policy.parameters() if p.requires_grad}
    if reference is policy or any(id(p) in trained for p in reference.parameters()):
        raise ValueError(
            "ref_model holds the very weights that are trained, so it would change with them. "
            "Leave ref_model out: the start of the policy is then the reference."
        )
    if reference.dtype != policy.dtype:
        logger.warning(
            "The reference is in %s and the policy in %s: their KL is not 0 at the start. Load both in one dtype.",
            reference.dtype,
            policy.dtype,
        )


def check_vocabulary(policy: Any, reference: Any) -> None:
    """Raise ValueError where the two have vocabularies of different sizes."""
    heads = [causal_lm_of(model).get_output_embeddings() for model in (policy, reference)]
    if None in heads:
        return
    sizes = [head.weight.shape[0] for head in heads]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the policy has {sizes[0]} vocabulary entries and the reference {sizes[1]}: "
            "a KL over the vocabulary needs one tokenizer for both"
        )


def _unwrapped(model: Any) -> Any:
    while not hasattr(model, "disable_adapter"):
        model = model.module
    return model
