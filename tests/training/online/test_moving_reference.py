"""The reference of online pairs that follows the policy: by hand, resumed, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ppo_cases import PROMPTS, make_online, online_settings
from helpers.tiny_models import build_model
from helpers.training_cases import lora, trained_weights
from tdpo import OnlineTDPOTrainer

ROUNDING = 1e-12  # a frozen head sums both models in two orders; every other KL of two equal models is 0
COPY: dict[str, Any] = {"every": 1, "weight": 1.0}


def lines(trainer: OnlineTDPOTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "prompts_without_pair" in line]


def of_reference(trainer: OnlineTDPOTrainer) -> dict[str, Tensor]:
    """The weights of the reference that the policy trains, by name."""
    reference = dict(trainer.statistics.reference_model.named_parameters())
    return {name: reference[name].detach().clone() for name in trained_weights(trainer)}


def policies_of(trainer: OnlineTDPOTrainer) -> list[dict[str, Tensor]]:
    """Train, and return the policy's weights as each iteration began with them."""
    begun, begin = [], trainer._begin_iteration

    def watched(number: int) -> None:
        begun.append({name: weight.clone() for name, weight in trained_weights(trainer).items()})
        begin(number)

    trainer._begin_iteration = watched  # type: ignore[method-assign]
    trainer.train()
    return begun


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_after_a_copy_the_kl_begins_at_zero(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An iteration has one update here, so what it logs is of the policy that the reference was made of."""
    adapter = None if kind == "full" else lora()
    caplog.set_level("INFO")
    trainer = make_online(tmp_path / "moves", iterations=3, peft_config=adapter, reference_update={"every": 2})
    text = "after every 2 iterations it becomes a copy of the policy"
    assert text in trainer.describe() and "with which `tdpo evaluate` compares" in trainer.describe()
    begun = policies_of(trainer)
    assert f"Iteration 2: the reference moved: {text}" in caplog.text
    first, second, third = lines(trainer)
    assert abs(first["chosen_forward_kl"]) < ROUNDING and second["chosen_forward_kl"] > 1e-6
    names = ("chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl", "margin")
    assert all(abs(third[name]) < ROUNDING for name in names)
    assert [line["reference_updates"] for line in lines(trainer)] == [0, 0, 1]
    assert all(torch.equal(weight, begun[2][name]) for name, weight in of_reference(trainer).items())
    assert any(not torch.equal(weight, begun[2][name]) for name, weight in trained_weights(trainer).items())
    card = trainer.model_card()
    assert "3 iterations of 16 completions, 1 pass each" in card
    assert f"- reference: the policy before training; {text}. KLs of the training are to the reference as it" in card
    assert trainer.record is not None
    assert trainer.record.content["settings"]["online"]["reference_update"] == {"every": 2, "weight": 1.0}

    stays = make_online(tmp_path / "stays", iterations=3, peft_config=adapter)
    stays.train()
    fixed = lines(stays)
    assert (stays.statistics.reference_model is None) == (kind == "lora"), "no copy where nothing moves"
    for line, other in zip(lines(trainer)[:2], fixed[:2], strict=True):  # until it moves, nothing differs
        assert {name: line[name] for name in (*names, "loss")} == {name: other[name] for name in (*names, "loss")}
    assert fixed[2]["chosen_forward_kl"] > 0 and "reference_updates" not in fixed[2]
    assert "it becomes" not in stays.describe() + stays.model_card()


def test_an_average_by_hand(tmp_path: Path) -> None:
    trainer = make_online(tmp_path, iterations=5, reference_update='{"every": 2, "weight": 0.25}')
    begun = policies_of(trainer)
    for name, weight in of_reference(trainer).items():
        expected = 0.75 * (0.75 * begun[0][name] + 0.25 * begun[2][name]) + 0.25 * begun[4][name]
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(weight, begun[0][name]) for name, weight in of_reference(trainer).items())
    assert lines(trainer)[4]["chosen_forward_kl"] > 0
    assert "it becomes 0.25 × the policy + 0.75 × itself" in trainer.describe()


@pytest.mark.parametrize(("kind", "step"), [("average", 3), ("adapter", 4)])
def test_resumed_it_ends_at_the_same_weights(kind: str, step: int, tmp_path: Path) -> None:
    """Iterations have two updates: step 3 lies within the second, and after step 4 the reference is about to move."""
    torch.set_num_threads(1)

    def new(name: str, **more: Any) -> OnlineTDPOTrainer:
        common = {
            "peft_config": lora(lora_dropout=0.3) if kind == "adapter" else None,
            "reference_update": COPY if kind == "adapter" else {"weight": 0.5},
        }
        return make_online(
            tmp_path / name, per_device_train_batch_size=2, iterations=3, save_strategy="steps", save_steps=step,
            **{**common, **more},
        )  # fmt: skip

    whole = new("whole")
    whole.train()
    checkpoint = str(tmp_path / f"whole/checkpoint-{step}")
    with pytest.raises(ValueError, match=r"run whose reference moves .* one whose reference stays"):
        new("again", reference_update=None).train(resume_from_checkpoint=checkpoint)
    again = new("again")
    again.train(resume_from_checkpoint=checkpoint)
    for mine, theirs in ((trained_weights(again), trained_weights(whole)), (of_reference(again), of_reference(whole))):
        assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
    for name in ("margin", "chosen_forward_kl", "reference_updates"):
        assert [line[name] for line in lines(again)][1:] == [line[name] for line in lines(whole)][1:], name
    assert lines(whole)[2]["reference_updates"] == 2


def test_the_best_model_gets_the_reference_of_its_numbers(tmp_path: Path) -> None:
    trainer = make_online(
        tmp_path, iterations=3, reference_update=COPY, eval_dataset=PROMPTS, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="forward_kl",
        greater_is_better=True,
    )  # fmt: skip
    begun = policies_of(trainer)
    best = int(str(trainer.state.best_model_checkpoint).rpartition("-")[2])
    assert best < 3, "it is not the last one, whose reference needs no loading"
    assert all(torch.equal(weight, begun[best - 1][name]) for name, weight in of_reference(trainer).items())
    assert trainer.evaluate()["eval_forward_kl"] == trainer.state.best_metric


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reference_update": {"evry": 2}}, "reference_update must be a dictionary with some of every"),
        ({"reference_update": "yes"}, "or JSON of one, got 'yes'"),
        ({"reference_update": {"weight": 0}}, r"weight \(a number > 0 and ≤ 1\), or JSON of one, got {'weight': 0}"),
        ({"reference_update": {"weight": 1.5}}, "reference_update must be"),
        ({"reference_update": {"every": 0}}, "reference_update must be"),
        ({"reference_update": {"every": 2}}, "reference_update.every 2 has no effect: .* of 2; use at most 1"),
        ({"reference_update": {}, "iterations": 1}, "reference_update.every 1 has no effect: .* of 1; remove it"),
        ({"reference_update": {}, "loss": "kl"}, "reference_update has no place with loss kl: its reference is the te"),
        ({"reference_update": {}, "loss": "sft"}, "reference_update has no effect with loss sft, which has no ref"),
        ({"reference_update": {"weight": 0.5}, "precision": "bfloat16"}, "reference_update.weight 0.5 would move weig"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        online_settings(tmp_path, **changes)


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert online_settings(tmp_path, loss="sft", kl={}, reference_update={}).moving_reference is not None
    with pytest.raises(ValueError, match="moves the policy's own start, and another model was named as the reference"):
        make_online(tmp_path, ref_model=build_model("llama"), reference_update={})
    with pytest.raises(ValueError, match=r"reference_update.weight: 0.5 would average the two factors of each adapter"):
        make_online(tmp_path, peft_config=lora(), reference_update={"weight": 0.5})
