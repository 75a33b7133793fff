"""A GPU in the benchmarks: shapes of known models, time by events, torch's own peak of memory, and which card it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import torch

from _harness import MIB

# Hidden size and vocabulary; the weights are random, so that nothing is downloaded.
SHAPES = {
    "smollm2-135m": (576, 49152),
    "qwen3-0.6b": (1024, 151936),
    "qwen3-1.7b": (2048, 151936),
    "llama-3-8b": (4096, 128256),
    "qwen3-8b": (4096, 151936),
}


# Of whole models: layers, intermediate size, heads, key-value heads, head size; hidden size and vocabulary are above.
BODIES = {
    "smollm2-135m": (30, 1536, 9, 3, 64),
    "qwen3-0.6b": (28, 3072, 16, 8, 128),
    "qwen3-1.7b": (28, 6144, 16, 8, 128),
    "llama-3-8b": (32, 14336, 32, 8, 128),
    "qwen3-8b": (36, 12288, 32, 8, 128),
    "tiny": (2, 64, 4, 2, 16),  # of a try without a GPU
}
TIED = ("smollm2-135m", "qwen3-0.6b", "qwen3-1.7b", "tiny")
SHAPES_OF_BODIES = {**SHAPES, "tiny": (64, 49152)}


def random_model(shape: str, dtype: str, device: str) -> Any:
    """A model in the shape of a known one with random weights: times depend on shapes, and nothing is downloaded."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, set_seed

    hidden, vocabulary = SHAPES_OF_BODIES[shape]
    layers, intermediate, heads, key_value_heads, size = BODIES[shape]
    kind: Any = Qwen3Config if shape.startswith("qwen3") else LlamaConfig
    config = kind(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_value_heads, head_dim=size, max_position_embeddings=8192,
        tie_word_embeddings=shape in TIED, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    set_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model.config.name_or_path = f"random-{shape}"
    return model


def byte_tokenizer() -> Any:
    """A tokenizer for random weights: a token a byte, behind those for padding, beginning and end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    pad, begin, end = special
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end)
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    return fast


class CardMemory:
    """As `_harness.PeakMemory`, of what torch has allocated on the current GPU."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self.before = torch.cuda.memory_allocated()
        self.reset()

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def read(self) -> float:
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - self.before) / MIB


def settle_library(like: torch.Tensor) -> None:
    """Multiply once, so that what the library of products keeps for itself is no contestant's memory."""
    square = like.new_ones(256, 256)
    torch.mm(square, square)


def timed(step: Callable[[], Any]) -> tuple[float, float, Any]:
    """(milliseconds, MiB at most over the state before, the step's result) of one step on the current GPU."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end), (torch.cuda.max_memory_allocated() - before) / MIB, result


def card() -> dict[str, Any]:
    """Name, memory, driver and CUDA of the current GPU; empty where there is none."""
    if not torch.cuda.is_available():
        return {}
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "card": device.name,
        "card memory MiB": round(device.total_memory / MIB),
        "multiprocessors": device.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return lines[0] if lines else "unknown"
