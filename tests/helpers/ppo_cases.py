"""PPO trainers for tests, and a bandit whose best policies are known: one prompt, one token to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, set_seed

from helpers.devices import device
from helpers.tiny_models import build_model, build_tokenizer
from tdpo.training import OnlineTDPOConfig, OnlineTDPOTrainer, PPOConfig, PPOTrainer

# Two good modes far apart in the reference's eyes, one that is half as good, and the rest.
WORDS = {"north": 1.0, "south": 0.1, "east": 0.95, "west": 0.0, "here": 0.5, "there": 0.2, "up": 0.9, "down": 0.0}
PROMPT = "north here"

# Direction, form and place of the KL that may be combined, and the estimator that each uses.
ACCEPTED = [
    ("reverse", "sampled", "reward", "k1"),
    ("reverse", "sampled", "loss", "k2"),
    ("reverse", "exact", "loss", "exact"),
    ("forward", "sampled", "loss", "k3"),
    ("forward", "exact", "loss", "exact"),
]


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")


def bandit_model(seed: int = 0) -> Any:
    """A model of ten words, the least likely after the prompt about a tenth as likely as the likeliest."""
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=2 + len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(0.0, 0.2)
    return model.eval()


def bandit_reward(prompts: list[Any], completions: list[str], **_: Any) -> list[float]:
    return [WORDS.get(text.strip(), 0.0) for text in completions]


def reward_of_tokens() -> Tensor:
    return torch.tensor([0.0, 0.0, *WORDS.values()], dtype=torch.float64)


def distribution(model: Any, tokenizer: Any) -> Tensor:
    """The model's log-probabilities `[V]` of the one token that it says."""
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]], device=model.device)
    with torch.no_grad():
        return model(input_ids=ids).logits[0, -1].cpu().double().log_softmax(-1)


def optimum(reference: Tensor, direction: str, beta: float) -> Tensor:
    """log π* that maximises E[r] − β·KL: π_ref·exp(r/β)/Z for the reverse KL, β·π_ref/(λ − r) for the forward one."""
    rewards = reward_of_tokens()
    if direction == "reverse":
        return (reference + rewards / beta).log_softmax(-1)
    low, high = rewards.max().item(), rewards.max().item() + 10.0 * beta + 10.0  # Σ falls as λ rises
    for _ in range(200):
        middle = (low + high) / 2
        if float((beta * reference.exp() / (middle - rewards)).sum()) > 1.0:
            low = middle
        else:
            high = middle
    return (beta * reference.exp() / (high - rewards)).log()


def total_divergence(a: Tensor, b: Tensor) -> float:
    """KL(a‖b) + KL(b‖a) of log-probabilities `[V]`."""
    return float(((a.exp() - b.exp()) * (a - b)).sum())


# ---- any trainer ----

PROMPTS = ["the cat", "a dog ran", "what a wonderful day", "on the mat the"]


def letters(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """More of the letter a is better."""
    return [text.count("a") - 0.1 * len(text) for text in completions]


def logs(trainer: PPOTrainer) -> list[dict[str, float]]:
    """What was logged of each iteration."""
    return [line for line in trainer.state.log_history if "penalized_reward_mean" in line]


def ppo_settings(folder: Path | str, **changes: Any) -> PPOConfig:
    common: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": device() == "cpu", "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True,
        "iterations": 2, "completions": 8, "samples_per_prompt": 2, "max_new_tokens": 6, "ppo_epochs": 2,
        "per_device_train_batch_size": 4, "learning_rate": 1e-2,
    }  # fmt: skip
    return PPOConfig(**{**common, **changes})


def make_ppo(model: Any, folder: Path | str, tokenizer: Any, reward: Any, prompts: Any, **changes: Any) -> PPOTrainer:
    own = ("peft_config", "ref_model", "value_model", "eval_dataset", "callbacks")
    given = {name: changes.pop(name) for name in own if name in changes}
    trainer = PPOTrainer(
        model, reward, args=ppo_settings(folder, **changes), train_dataset=prompts, processing_class=tokenizer, **given
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def online_settings(folder: Path, **changes: Any) -> OnlineTDPOConfig:
    common: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": device() == "cpu", "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True,
        "iterations": 2, "completions": 16, "samples_per_prompt": 4, "max_new_tokens": 6, "loss": "tdpo2",
        "per_device_train_batch_size": 4, "learning_rate": 1e-2,
    }  # fmt: skip
    return OnlineTDPOConfig(**{**common, **changes})


def make_online(folder: Path, *, reward: Any = letters, prompts: Any = PROMPTS, **changes: Any) -> OnlineTDPOTrainer:
    own = {name: changes.pop(name) for name in ("peft_config", "eval_dataset", "ref_model") if name in changes}
    model, tokenizer = changes.pop("model", None), changes.pop("tokenizer", None)
    trainer = OnlineTDPOTrainer(
        model or build_model("llama"), reward, online_settings(folder, **changes), prompts,
        processing_class=tokenizer or build_tokenizer(), **own,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer
