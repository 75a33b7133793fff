"""Every architecture family under every loss: what is logged and how the weights move, against full logits.

The oracle loads the checkpoint of step 1 with plain transformers (and peft), computes the second step's loss
from full logits, sequence by sequence, and takes the step by hand: w − learning rate · gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.naive_loss import naive_loss
from helpers.tiny_models import FAMILIES
from helpers.training_cases import (
    METRICS,
    expected_logs,
    lora,
    make_trainer,
    pair_numbers,
    plain_rows,
    train_logs,
)

BETA, ALPHA = 0.3, 0.7
RATES = {"full": 0.006, "lora": 0.015}


def load(folder: Path, adapter: bool) -> Any:
    """What a user without this library would write."""
    if not adapter:
        return AutoModelForCausalLM.from_pretrained(folder)
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(folder, is_trainable=True).eval()


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("loss", ["tdpo2", "tdpo1", "dpo"])
@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_of_each_loss(
    family: str, kind: str, loss: str, tiny_folder: Callable[[str], Path], tokenizer: Any, tmp_path: Path
) -> None:
    rows, adapter, rate = plain_rows(6), kind == "lora", RATES[kind]
    trainer = make_trainer(
        str(tiny_folder(family)),
        tmp_path,
        tokenizer,
        rows,
        peft_config=lora() if adapter else None,
        loss=loss,
        beta=BETA,
        **({"alpha": ALPHA} if loss == "tdpo2" else {}),
        per_device_train_batch_size=len(rows),
        optim="sgd",
        learning_rate=rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        prefix_sharing="off" if adapter else "auto",  # both layouts
        save_strategy="steps",
        save_steps=1,
    )
    assert trainer.statistics.path.head is not None, "through hidden states and head, not through full logits"
    trainer.train()
    first, second = train_logs(trainer)
    assert first["loss"] == pytest.approx(0.693147, abs=1e-6)
    for name in ("chosen_forward_kl", "rejected_reverse_kl", "margin"):
        assert first[name] == pytest.approx(0.0, abs=1e-12), name

    policy = load(tmp_path / "checkpoint-1", adapter)
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder(family))
    pairs = trainer.train_dataset
    expected = expected_logs(pair_numbers(policy, reference, pairs), loss, beta=BETA, alpha=ALPHA)
    assert abs(second["loss"] - expected["loss"]) < 1e-5
    assert second["chosen_forward_kl"] > 1e-3, "the step was large enough to tell right from wrong"
    for name in METRICS:
        assert second[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name

    naive_loss(policy, reference, pairs, loss, beta=BETA, alpha=ALPHA).backward()
    after = weights(load(tmp_path / "checkpoint-2", adapter))
    for name, weight in weights(policy).items():
        assert weight.grad is not None, name
        step = rate * weight.grad
        torch.testing.assert_close(after[name], weight - step, rtol=1e-5, atol=1e-6 + 1e-3 * float(step.abs().max()))
    assert max(float(rate * w.grad.abs().max()) for w in weights(policy).values()) > 1e-5
