"""A small tokenizer and tiny random models of several architecture families, made without a download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from helpers.devices import device

FAMILIES = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox")

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> Any:
    """A byte-level BPE tokenizer with a chat template, trained on a few sentences: 384 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    text = ["the cat sat on the mat and the dog ran away", "what a wonderful day it was", "a terrible answer"]
    core.train_from_iterator(text * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(family: str, vocab_size: int = 384, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random two-layer model of `family` in which no component is trivial: soft caps, scales and biases are on."""
    import transformers as hf

    small = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    configs: dict[str, Callable[[], Any]] = {
        "llama": lambda: hf.LlamaConfig(**small, **heads, **ids, tie_word_embeddings=False),
        "qwen2": lambda: hf.Qwen2Config(**small, **heads, **ids, tie_word_embeddings=True),
        "gemma2": lambda: hf.Gemma2Config(
            **small, **heads, **ids, head_dim=8, final_logit_softcapping=5.0, sliding_window=16
        ),
        "gpt2": lambda: hf.GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=256, **ids),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**small, num_attention_heads=4, max_position_embeddings=256, **ids),
    }
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(configs[family]())
    # Default initialisation gives nearly uniform outputs, on which every wrong formula looks right.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
        model.get_output_embeddings().weight.mul_(5.0)
    return model.to(dtype).eval()


def model_here(family: str, **options: Any) -> Any:
    """`build_model` on the GPU where there is one."""
    return build_model(family, **options).to(device())


def shake_adapter(policy: Any, seed: int, std: float) -> None:
    """Give the last factors of a LoRA adapter, which begin at zero, random values: it then changes what is said."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weights in policy.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=std)
