"""The reference: the policy with its adapter off, a second model, or the policy's start, itself or as a frozen copy."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..token_statistics import Head
from .adapters import has_adapter
from .hidden_states import causal_lm_of, find_head, probe, response_hidden, select_logits
from .probing import check_causal
from .sharded_weights import release

logger = logging.getLogger(__name__)

# What accelerate wraps single layers of the policy in, and none of the reference: recomputing, and compiling by region.
WRAPPER_OF_LAYERS = re.compile(r"_checkpoint_wrapped_module\.|_orig_mod\.")


@dataclass(frozen=True)
class Reference:
    """Computes the reference's hidden states (or logits), without gradients.

    `model` is None where the reference is the policy with its adapter switched off. With the kind "start", `model` is
    the policy itself, which is the reference only until it is trained.
    """

    kind: Literal["adapter-off", "second model", "start", "copy"]
    model: Any | None
    head: Callable[[], Head] | None

    @torch.no_grad()
    def hidden_and_head(self, policy: Any, inputs: Mapping[str, Tensor], index: Tensor) -> tuple[Tensor, Head]:
        """Hidden states `[N, D]` at the flat positions `index` `[N]`, and the head that belongs to them."""
        assert self.head is not None
        model = policy if self.model is None else self.model
        with self._as_reference(policy):
            return response_hidden(model, inputs, index), _detached(self.head())

    @torch.no_grad()
    def logits(self, policy: Any, inputs: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Logits `[N, V]` from the model's own forward, for heads that `find_head` refuses."""
        with self._as_reference(policy):
            return select_logits(policy if self.model is None else self.model, inputs, index)

    def _as_reference(self, policy: Any) -> Any:
        if self.model is not None:
            return nullcontext()
        return _adapter_off(policy)


@contextmanager
def _adapter_off(policy: Any) -> Iterator[None]:
    """A context in which the policy's adapter is switched off and its weights still require gradients."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    with _unwrapped(policy).disable_adapter():
        # peft freezes the adapter in this context. If FSDP2 gathers its weights here and keeps them whole, only the
        # whole weights are unfrozen afterwards; their shards would stay frozen and be missing in checkpoints.
        for parameter in trained:
            parameter.requires_grad_(True)
        yield


def reference_at_start(policy: Any, ref_model: Any | None = None) -> Reference:
    """The reference of a policy before it is trained; where `reference_for` would make a copy, of the kind "start".

    Arguments and errors are those of `reference_for`. A start is due also for some adapters: one that changes the model
    already, and one that is trained along with weights of its base. Switched off, they would not give the start.
    """
    if ref_model is not None or (has_adapter(policy) and not _start_needs_copy(policy)):
        return reference_for(policy, ref_model)
    return Reference("start", policy, find_head(policy))


def kept_reference(policy: Any, start: Reference, *, moves: bool = False) -> Reference:
    """`start` as a reference that stays the same while the policy is trained: a copy where it is of that kind.

    With `moves` it is a copy also in place of an adapter switched off, for `move_reference`.
    """
    if start.kind == "second model" or not (moves or start.kind == "start"):
        return start
    # What is not trained is never changed, so the copy shares it.
    untrained = {id(p): p for p in policy.parameters() if not p.requires_grad}
    copied = _frozen(copy.deepcopy(policy, untrained))
    return Reference("copy", copied, find_head(copied))


def weights_that_follow(policy: Any, reference: Reference) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Of each weight that is trained, by its name in the policy: the reference's, and the policy's own.

    Args:
        policy: the model that is trained, unwrapped; sharded by FSDP2 if the reference is.
        reference: its copy, as `kept_reference` makes it.
    """
    assert reference.kind == "copy" and reference.model is not None
    for model in (policy, reference.model):
        release(model)  # what is written into whole weights that FSDP2 made of its shards would be lost
    copies = dict(reference.model.named_parameters())
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    plain = {name: WRAPPER_OF_LAYERS.sub("", name) for name in trained}
    return {plain[name]: (copies[plain[name]], p) for name, p in trained.items()}


@torch.no_grad()
def move_reference(policy: Any, reference: Reference, weight: float) -> None:
    """Move the weights of the copy, in place: reference ← (1 − weight)·reference + weight·policy; 1 copies to the bit.

    TR-DPO's soft and hard update (Gorbatovski et al. 2024, arXiv 2404.09656). Arguments are those of
    `weights_that_follow`.
    """
    for old, new in weights_that_follow(policy, reference).values():
        if weight == 1:
            old.copy_(new)
        else:
            old.lerp_(new, weight)


def reference_for(policy: Any, ref_model: Any | None = None) -> Reference:
    """The reference of `policy`: `ref_model`, else the policy's adapter switched off, else a frozen copy of it.

    Args:
        policy: the model that is trained or evaluated.
        ref_model: the model to use as reference; it is frozen and put into evaluation mode.

    Raises:
        ValueError: `ref_model` looks ahead, shares trained weights with the policy, or its vocabulary has another
            size.
    """
    if ref_model is not None:
        check_causal(ref_model, "the reference")
        _check_apart(policy, ref_model)
        check_vocabulary(policy, ref_model)
        return Reference("second model", _frozen(ref_model), find_head(ref_model))
    if has_adapter(policy):
        return Reference("adapter-off", None, find_head(policy))
    copied = _frozen(copy.deepcopy(policy))
    return Reference("copy", copied, find_head(copied))


def _start_needs_copy(policy: Any) -> bool:
    """Whether `policy` with its adapter off differs from what it is now, or will differ once it is trained."""
    adapter = (getattr(policy.base_model, "prefix", "lora_"), "modules_to_save.", "token_adapter.")
    if any(p.requires_grad and not any(part in name for part in adapter) for name, p in policy.named_parameters()):
        return True
    with_adapter = probe(policy)
    with policy.disable_adapter():
        without = probe(policy)
    return with_adapter is not None and without is not None and not torch.equal(with_adapter[1], without[1])


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
