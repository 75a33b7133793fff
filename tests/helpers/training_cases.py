"""Pairs, trainers and an oracle of everything that is logged, for tests that train tiny models."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

from helpers import oracle
from helpers.devices import device
from tdpo.batches import TokenizedPair
from tdpo.training import TDPOConfig, TDPOTrainer

gc.freeze()  # transformers collects garbage before every training: 0.8 s over everything imported, 0.01 s without

Row = dict[str, Any]
METRICS = (
    "loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp",
    "chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl", "rejected_reverse_kl", "policy_entropy",
)  # fmt: skip
TRAIN_ONLY = ("learning_rate", "grad_norm", "tokens_per_second", "pairs_per_second", "peak_memory_mib")


def plain_rows(count: int, seed: int = 0) -> list[Row]:
    """Pairs of ragged lengths, all different."""
    draw = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "away", "what", "wonderful", "day"]

    def text(most: int) -> str:
        return "".join(f" {draw.choice(words)}" for _ in range(draw.randint(1, most)))

    return [{"prompt": f"q{i}{text(6)}", "chosen": f"{text(6)} yes", "rejected": f"{text(9)} no"} for i in range(count)]


def settings(folder: Path | str, **changes: Any) -> TDPOConfig:
    common: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": device() == "cpu",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_steps": 2,
        "reference": "model",
    }
    if changes.get("reference", "model") != "model":
        common["reference_cache_dir"] = f"{folder}-reference"
    return TDPOConfig(**{**common, **changes})


def make_trainer(
    model: Any,
    folder: Path | str,
    tokenizer: Any,
    rows: Any = None,
    *,
    ref_model: Any = None,
    peft_config: Any = None,
    eval_rows: Any = None,
    callbacks: list[Any] | None = None,
    **changes: Any,
) -> TDPOTrainer:
    trainer = TDPOTrainer(
        model,
        ref_model=ref_model,
        args=settings(folder, **changes),
        train_dataset=plain_rows(8) if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def lora(*targets: str, **more: Any) -> Any:
    from peft import LoraConfig

    modules = list(targets) or "all-linear"
    return LoraConfig(r=4, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM", **more)


def train_logs(trainer: TDPOTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


def trained_weights(trainer: TDPOTrainer) -> dict[str, torch.Tensor]:
    """Copies on the host."""
    return {
        n: p.detach().cpu().clone()
        for n, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
        if p.requires_grad
    }


def interrupt() -> None:
    raise KeyboardInterrupt


class StopAt(TrainerCallback):
    def __init__(self, step: int, how: Callable[[], None] = interrupt) -> None:
        self.step, self.how = step, how

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.how()


# ---- the oracle ----


def sequence_numbers(policy: Any, reference: Any, prompt: list[int], response: list[int]) -> dict[str, float]:
    """Sums over one response, from the full logits of both models for this sequence alone."""
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        logits = [model(input_ids=ids.to(model.device)).logits[0].cpu() for model in (policy, reference)]
    shown = slice(len(prompt) - 1, len(ids[0]) - 1)
    stats = oracle.statistics(logits[0][shown], logits[1][shown], torch.tensor(response))
    return {
        "logp": stats.policy_logp.sum(),
        "log_ratio": (stats.policy_logp - stats.reference_logp).sum(),
        "forward_kl": stats.forward_kl.sum(),
        "reverse_kl": stats.reverse_kl.sum(),
        "entropy": stats.policy_entropy.sum(),
        "tokens": float(len(response)),
    }


def pair_numbers(policy: Any, reference: Any, pairs: Sequence[TokenizedPair]) -> list[tuple[dict[str, float], ...]]:
    """(chosen, rejected) of each pair; both models must say what they are meant to as they are called."""
    return [
        (
            sequence_numbers(policy, reference, p.prompt_ids, p.chosen_ids),
            sequence_numbers(policy, reference, p.prompt_ids, p.rejected_ids),
        )
        for p in pairs
    ]


# Of f-DPO, with u the ratio of a response; without the constant log 2.
F_PRIME = {"f_dpo_forward": lambda u: -1 / u, "f_dpo_js": lambda u: np.log(u / (1 + u))}


def expected_logs(
    numbers: Sequence[tuple[dict[str, float], ...]],
    loss: str,
    *,
    beta: float | None = None,
    alpha: float = 0.5,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
    kl: tuple[float, Callable[[dict[str, float], dict[str, float]], float]] = (0.0, lambda chosen, rejected: 0.0),
) -> dict[str, float]:
    """The logged averages over pairs, written out from the papers' formulas; `kl` beside the loss as (λ, which KL)."""
    weight = {"tdpo1": 1.0, "tdpo2": alpha}.get(loss, 0.0)
    if beta is None:
        beta = 2.0 if loss == "simpo" else 0.1
    rows = []
    for chosen, rejected in numbers:
        chosen_reward = beta * (chosen["log_ratio"] + weight * chosen["forward_kl"])
        rejected_reward = beta * (rejected["log_ratio"] + weight * rejected["forward_kl"])
        if loss in F_PRIME:
            chosen_reward, rejected_reward = (beta * F_PRIME[loss](np.exp(r["log_ratio"])) for r in (chosen, rejected))
        if loss == "simpo":
            chosen_reward, rejected_reward = (beta * r["logp"] / r["tokens"] for r in (chosen, rejected))
        margin = chosen_reward - rejected_reward
        wrong, right = np.logaddexp(0, margin), np.logaddexp(0, -margin)
        if loss == "ipo":
            right = (chosen["log_ratio"] - rejected["log_ratio"] - 1 / (2 * beta)) ** 2
        if loss == "simpo":
            right = np.logaddexp(0, gamma - margin)
        rows.append(
            {
                "loss": (1 - label_smoothing) * right + label_smoothing * wrong + kl[0] * kl[1](chosen, rejected),
                "accuracy": float(margin > 0),
                "margin": margin,
                "chosen_reward": chosen_reward,
                "rejected_reward": rejected_reward,
                **{f"chosen_{k}": chosen[k] for k in ("logp", "forward_kl", "reverse_kl")},
                **{f"rejected_{k}": rejected[k] for k in ("logp", "forward_kl", "reverse_kl")},
            }
        )
    averaged = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    tokens = sum(side["tokens"] for pair in numbers for side in pair)
    averaged["policy_entropy"] = sum(side["entropy"] for pair in numbers for side in pair) / tokens
    return averaged


def different_model(model: Any, size: float = 0.02) -> Any:
    """A copy of `model` a little away from it, so that no KL is 0."""
    return move_away(copy.deepcopy(model), size)


def move_away(model: Any, size: float = 0.02) -> Any:
    """Every weight moves by `size` of its tensor's spread."""
    make = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=make).to(parameter.device)
            parameter += (size * parameter.float().std().nan_to_num(0.0) * noise).to(parameter.dtype)
    return model
