"""What a cache belongs to: this model, this precision, these tokens, this kind of content. Nothing else may use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..batches import PromptResponses

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


def tokens_digest(prompt: PromptResponses) -> bytes:
    """16 bytes that stand for the tokens of a prompt and its responses, and for which of them are counted."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (prompt.prompt_ids, *prompt.responses):
        digest.update(len(part).to_bytes(8, "little") + np.asarray(part, dtype="<u4").tobytes())
    if any(prompt.gaps):  # other tokens are counted
        digest.update(repr(prompt.gaps).encode())
    return digest.digest()


def data_digest(digests: Iterable[bytes]) -> str:
    """Stands for a set of prompts with their responses, given the digest of each; their order does not matter."""
    total = hashlib.sha256()
    for digest in sorted(digests):
        total.update(digest)
    return total.hexdigest()[:32]


@torch.no_grad()
def model_digest(lm: torch.nn.Module, adapter_prefix: str | None = None) -> str:
    """Stands for the weights and the configuration of a causal language model.

    Args:
        lm: the causal language model.
        adapter_prefix: how the names of an adapter's weights begin, where the adapter is to be left out. The digest is
            then that of the model without an adapter.
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
