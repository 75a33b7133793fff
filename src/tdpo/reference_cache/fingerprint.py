"""What a cache belongs to: this model in this precision, these pairs, this kind of content. Nothing else may use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..batches import TokenizedPair

FORMAT = 1  # raised whenever what the files mean changes
# Of a model's configuration, what does not change what it says.
VOLATILE = ("_name_or_path", "transformers_version", "use_cache", "_attn_implementation_autoset")


@dataclass(frozen=True)
class Fingerprint:
    """The parts by which two caches are told apart, each a short text."""

    model: str
    precision: str
    data: str
    content: str
    layout: str
    format: int = FORMAT

    @property
    def key(self) -> str:
        """32 hexadecimal digits: the name of the cache's folder."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """The parts in which `other`, read from a cache, is not this one."""
        return [name for name, value in asdict(self).items() if other.get(name) != value]


def pair_digest(pair: TokenizedPair) -> bytes:
    """16 bytes that stand for the tokens of a pair, and for which of them are counted."""
    parts = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + np.asarray(part, dtype="<u4").tobytes())
    if pair.chosen_gaps or pair.rejected_gaps:  # other tokens are counted
        digest.update(repr((pair.chosen_gaps, pair.rejected_gaps)).encode())
    return digest.digest()


def data_digest(digests: Iterable[bytes]) -> str:
    """Of a set of pairs, whatever their order."""
    total = hashlib.sha256()
    for digest in sorted(digests):
        total.update(digest)
    return total.hexdigest()[:32]


@torch.no_grad()
def model_digest(lm: torch.nn.Module, adapter_prefix: str | None = None) -> str:
    """Of a causal language model's weights and configuration; `adapter_prefix` names what is switched off in it.

    The weights of a model with its adapter off have the digest of the model without an adapter.
    """
    total = hashlib.sha256(json.dumps(_configuration(lm), sort_keys=True, default=str).encode())
    for name, tensor in sorted(_base_weights(lm, adapter_prefix)):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        bits: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        total.update(bits)
    return total.hexdigest()[:32]


def _configuration(lm: Any) -> dict[str, Any]:
    facts = lm.config.to_dict() if hasattr(lm, "config") else {}
    return {name: value for name, value in facts.items() if name not in VOLATILE}


def _base_weights(lm: torch.nn.Module, adapter_prefix: str | None) -> Iterable[tuple[str, torch.Tensor]]:
    for name, tensor in lm.state_dict().items():
        if adapter_prefix is not None and (adapter_prefix in name or "modules_to_save." in name):
            continue
        yield name.replace(".base_layer.", ".").replace(".original_module.", "."), tensor
