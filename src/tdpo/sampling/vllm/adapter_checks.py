"""Whether a server computes all of an adapter that it took: asked with weights that matter, before any work.

vLLM answers "Success" for layers that it then leaves out: those that its `--lora-target-modules` does not name, and
those that its own class calls otherwise. An adapter is a product of zeros before it is trained, and small for long
after. So its completions do not tell.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from .adapters import AdapterHandover, adapter_weights, kind_of
from .checks import ServedModel, check_same_model, greedy_completion, log_probabilities, tolerance_of
from .client import Client, WrongServer
from .completions import Completion

logger = logging.getLogger(__name__)

# What the adapter adds to a weight, as a share of the weight (Frobenius norms). The first is enough where both sides
# compute in float32; where they round more, more must be at stake. At 0.4 bfloat16 is as far off as its tolerance.
STRENGTHS = (0.1, 0.2)
# A layer takes part where the server is this many times nearer to this model than this model is to itself without it,
# and is left out where the server is this many times nearer to the model without it.
NEARER = 3.0
ALL = "the whole adapter"


@dataclass(frozen=True)
class Comparison:
    """A server's completion beside what is computed here: how far they are apart, in nats per token on average.

    Attributes:
        apart: from the model with the whole adapter.
        without: from the model without one kind of layer, by kind.
        moved: what leaving out that kind changes here. 0 where text does not pass these layers.
    """

    apart: float
    without: dict[str, float]
    moved: dict[str, float]

    @classmethod
    def of(cls, theirs: Tensor, ours: Tensor, without: Mapping[str, Tensor]) -> Self:
        """From the log-probabilities of T tokens, `[T]` in nats each: the server's, ours, ours without each kind."""
        return cls(
            _apart(theirs, ours),
            {kind: _apart(theirs, logps) for kind, logps in without.items()},
            {kind: _apart(ours, logps) for kind, logps in without.items()},
        )

    def left_out(self) -> list[str]:
        """The kinds each of which, left out alone, explains what the server says."""
        return [kind for kind, apart in self.without.items() if NEARER * apart < self.apart]

    def unsure(self) -> list[str]:
        """The kinds that may take part or not, since rounding hides what they change."""
        return [kind for kind, moved in self.moved.items() if 0 < moved < NEARER * self.apart]


def check_whole_adapter(
    client: Client, served: ServedModel, adapters: AdapterHandover, model: Any, prompt_ids: list[int]
) -> None:
    """Compare the server's base with `model` without its adapter. Then hand the adapter over with random weights, and
    compare a greedy completion with what is computed here with all of it, and with all but one kind of layer at a time.
    Afterwards `model` is what it was, to the last bit.

    Args:
        client: of the server.
        served: its base model.
        adapters: hands the adapter over; that of the random weights stays until another one is handed over.
        model: a peft model with plain LoRA layers.
        prompt_ids: of a real prompt.

    Raises:
        WrongServer: the server has another base, does not take the adapter, or leaves out layers of it.
    """
    adapter_weights(model)  # before the base is asked: what is refused here needs no server
    kinds, adapter, tolerance = layers_by_kind(model), str(model.active_adapter), tolerance_of(model)
    with _left_out(kinds[ALL], adapter):
        check_same_model(client, served, served.name, model, prompt_ids)
    for strength in STRENGTHS:
        with random_adapter(kinds[ALL], adapter, strength):
            name = adapters.hand_over(model)
            completion, whole = greedy_completion(client, served, name, model, prompt_ids)
            probe = _Probe(model, prompt_ids, completion, kinds)
            comparison = Comparison.of(probe.theirs, probe.of_its_tokens(whole), {k: probe.without([k]) for k in kinds})
            if comparison.left_out() or comparison.apart > tolerance:
                raise WrongServer(_not_whole(client, comparison, tolerance, probe))
        if not (unsure := comparison.unsure()):
            logger.info("The server computes the whole adapter, to %.2g nats a random token.", comparison.apart)
            return
    logger.warning(
        "Whether the server computes %s of the adapter cannot be told: without, log-probabilities would change by less "
        "than they differ from those here (%.2g nats a token).",
        ", ".join(unsure), comparison.apart,
    )  # fmt: skip


class _Probe:
    """A server's completion with a random adapter, and what is computed here of its tokens, with layers left out."""

    def __init__(
        self, model: Any, prompt_ids: list[int], completion: Completion, kinds: Mapping[str, list[Any]]
    ) -> None:
        self.model, self.prompt_ids, self.token_ids, self.kinds = model, prompt_ids, completion.token_ids, kinds
        self.theirs = torch.tensor(completion.logps)

    def of_its_tokens(self, logps: Tensor) -> Tensor:
        """Of every token at each place `[T, V]`, those of the completion's tokens `[T]`."""
        return logps.gather(1, torch.tensor(self.token_ids)[:, None])[:, 0]

    def without(self, kinds: list[str]) -> Tensor:
        """What the tokens have here without these kinds of layers, `[T]` in nats."""
        layers = [layer for kind in kinds for layer in self.kinds[kind]]
        with _left_out(layers, str(self.model.active_adapter)):
            return self.of_its_tokens(log_probabilities(self.model, self.prompt_ids, self.token_ids))

    def explanation(self) -> tuple[list[str], float]:
        """Kinds without which the server is near, and how near: one more left out at a time, the best of each size."""
        missing: list[str] = []
        path: list[tuple[float, list[str]]] = []
        while rest := [kind for kind in self.kinds if kind not in (ALL, *missing)]:
            apart, kind = min((_apart(self.theirs, self.without([*missing, kind])), kind) for kind in rest)
            missing.append(kind)
            path.append((apart, list(missing)))
        apart, missing = min(path)
        return missing, apart


def _not_whole(client: Client, comparison: Comparison, tolerance: float, probe: _Probe) -> str:
    missing, apart = probe.explanation()
    names = f"; without {', '.join(missing)} by {apart:.2g}" if apart < comparison.apart else ""
    return (
        f"the vLLM server at {client.url} took the adapter and does not compute all of it. With random weights in the "
        f"adapter, log-probabilities of its tokens differ from those here by {comparison.apart:.2g} nats on average "
        f"(allowed: {tolerance:g}){names}. Start it with this model and without --lora-target-modules; or name in "
        "model.lora.targets only layers that it computes, or take sampling.engine built-in"
    )


def layers_by_kind(model: Any) -> dict[str, list[Any]]:
    """The layers of a peft model's active LoRA adapter by kind (`kind_of`), and all of them under `ALL`."""
    from peft.tuners.lora import LoraLayer

    adapter = str(model.active_adapter)
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    layers: dict[str, Any] = {name: module for name, module in modules if adapter in module.lora_B}
    kinds: dict[str, list[Any]] = {ALL: list(layers.values())}
    for name, layer in layers.items():
        kinds.setdefault(kind_of(name), []).append(layer)
    return kinds


@contextmanager
def random_adapter(layers: list[Any], adapter: str, strength: float) -> Iterator[None]:
    """A context in which the last factor of each layer is random, so that the adapter adds `strength` times the norm of
    the layer's weight to it."""
    draws = torch.Generator().manual_seed(0)
    with _restored([layer.lora_B[adapter].weight for layer in layers]), torch.no_grad():
        for layer in layers:
            first, last = layer.lora_A[adapter].weight.float(), layer.lora_B[adapter].weight
            factor = torch.randn(last.shape, generator=draws).to(first)
            # ‖BA‖² = tr(BᵀB·AAᵀ), without a product as large as the layer's weight.
            adds = ((factor.T @ factor) * (first @ first.T)).sum().clamp(min=0).sqrt() * abs(layer.scaling[adapter])
            base = layer.get_base_layer().weight.float().norm()
            if adds > 0:  # a first factor of zeros leaves nothing to see
                factor *= strength * torch.where(base > 0, base, 1.0) / adds
            last.copy_(factor)
        yield


@contextmanager
def _left_out(layers: list[Any], adapter: str) -> Iterator[None]:
    """A context in which these layers have no adapter."""
    factors = [layer.lora_B[adapter].weight for layer in layers]
    with _restored(factors), torch.no_grad():
        for factor in factors:
            factor.zero_()
        yield


@contextmanager
def _restored(weights: list[Tensor]) -> Iterator[None]:
    were = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, was in zip(weights, were, strict=True):
                weight.copy_(was)


def _apart(logps: Tensor, others: Tensor) -> float:
    return float((logps - others).abs().mean())
