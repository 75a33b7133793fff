"""A model of two small layers in the place of the bundled one, with its tokenizer and a few words to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# Words that the reward of the built-in environment tells apart, and some that it does not.
WORDS = (
    " wonderful", " great", " happy", " love", " good", " sad", " terrible", " bad", " hate", " day", " the", " it",
    " was", " and", " very", " not",
)  # fmt: skip
PREFERENCE = 12.0  # logits by which these words, and the end of a turn, stand out of 49,152


def stand_in(tokenizer: Any) -> Any:
    """A Llama of two layers whose responses are the words above: other random models say nothing that has a reward."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=2048, tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id, **ends,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    favoured = [tokenizer.encode(word, add_special_tokens=False)[0] for word in WORDS] + [tokenizer.eos_token_id]
    with torch.no_grad():
        # Every token's hidden state has the same large first entry, which the head reads for the favoured words alone.
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight.mul_(5.0)[:, 0] = 0.0
        model.lm_head.weight[favoured, 0] = PREFERENCE / 8.0  # √64: what normalisation makes of the entry
        model.lm_head.weight[tokenizer.eos_token_id, 0] -= 0.1  # the likeliest response is not the empty one
    return model.eval()


def cache_with_stand_in(cache: Path) -> None:
    """Make `cache`, a folder for $TDPO_CACHE, hold the stand-in under the bundled model's name."""
    from transformers import AutoTokenizer

    from tdpo.models import bundled_folder

    bundled = bundled_folder()
    tokenizer = AutoTokenizer.from_pretrained(bundled)
    folder = cache / "models" / bundled.name
    stand_in(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
