"""The coefficient of a KL beside a loss follows a target: its arithmetic, what it says, and what it reaches."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import build_model
from helpers.training_cases import make_trainer, plain_rows, train_logs
from tdpo.kl_choices import KLTerm
from tdpo.scores import score_pairs
from tdpo.scoring.configured_loss import configured_loss
from tdpo.scoring.kl_target import KLTargetController
from tdpo.token_statistics import MixtureTokenStats


def test_the_arithmetic_by_hand() -> None:
    """Four updates at target 2: one at the reference, one of four pairs far below it, two of two pairs on the way."""
    controller = KLTargetController(2.0, 0.1)
    assert controller.kl is None and controller.coefficient == pytest.approx(0.1 * math.exp(-6.0))
    controller.move(0.0, 4)  # far below, and there has been no time to see whether it rises
    assert controller.at_target == 0.1 and controller.coefficient == pytest.approx(0.1 * math.exp(-6.0))
    controller.move(0.74, 4)  # (0.85·0 + 0.74)/(0.85·4 + 4) = 0.1 nat: far below, and it will be 1.3 twelve updates on
    assert controller.kl == pytest.approx(0.1) and controller.at_target == 0.1
    assert controller.coefficient == pytest.approx(0.1 * math.exp(5 * math.log(1.3 / 2)))
    sums, pairs = 0.85 * 0.74 + 2.0, 0.85 * 7.4 + 2  # two pairs now: an average over pairs, not over updates
    controller.move(2.0, 2)
    third = sums / pairs
    assert third + 5 * (third - 0.1) < 2.0 < third + 12 * (third - 0.1), "the dual variable waits, λ does not"
    assert controller.kl == pytest.approx(third) and controller.at_target == 0.1
    assert controller.coefficient == pytest.approx(0.1 * math.exp(5 * math.log((third + 12 * (third - 0.1)) / 2.0)))
    controller.move(4.0, 2)
    fourth = (0.85 * sums + 4.0) / (0.85 * pairs + 2)
    rise = fourth - third
    assert fourth + 5 * rise > 2.0, "on its way beyond the target, so the dual variable moves too"
    at_target = 0.1 * math.exp(0.5 * math.log((fourth + 5 * rise) / 2.0))
    assert controller.at_target == pytest.approx(at_target)
    assert controller.coefficient == pytest.approx(at_target * math.exp(5 * math.log((fourth + 12 * rise) / 2.0)))


def test_at_the_target_nothing_moves_and_beside_it_lambda_moves_by_orders_of_magnitude() -> None:
    def after(kl: float, updates: int = 30) -> float:
        controller = KLTargetController(3.0, 0.1)
        for _ in range(updates):
            controller.move(kl * 4, 4)
        return controller.at_target

    assert after(9.0, 31) == pytest.approx(after(9.0, 30) * math.exp(0.5)), "the limit of a step"
    assert after(9.0, 1000) == 1e8, "a target out of reach makes no number overflow"
    assert after(1.5, 1000) == after(1.5) == 0.005 / 3.0, "below, λ₀ stays where it can come back from in time"
    assert after(9.0) > 1e3
    assert after(3.0, 40) == pytest.approx(after(3.0, 20))


def test_far_below_the_target_the_dual_variable_waits_as_long_as_the_kl_rises() -> None:
    """Or it would fall all the way there, and be too small when the target is reached."""
    rising, stopped = KLTargetController(10.0, 0.1), KLTargetController(10.0, 0.1)
    for update in range(12):
        rising.move(0.6 * update * 4, 4)
        stopped.move(1.0 * 4, 4)
    assert rising.at_target == 0.1 and rising.kl == pytest.approx(4.394, abs=1e-3)
    # Four updates show no pace. From the fifth on it is not on target within 40 updates, though it leapt at the start.
    assert stopped.at_target == pytest.approx(0.1 * math.exp(-0.5 * 8))


def test_held_out_pairs_move_the_aim_and_not_while_the_kl_is_far_from_it() -> None:
    controller = KLTargetController(3.0, 0.1)
    controller.move(4 * 0.5, 4)
    controller.see_held_out(0.2)
    assert controller.aim == 3.0, "a sixth of the target: k lags, so the ratio says nothing"
    for _ in range(40):
        controller.move(4 * 3.0, 4)
    controller.see_held_out(1.5)
    assert controller.held_out == pytest.approx(0.4 * math.log(0.5), rel=1e-3)
    assert controller.aim == pytest.approx(3 * 2**0.4, rel=1e-3)
    for _ in range(30):
        controller.see_held_out(1.5)
    assert controller.aim == pytest.approx(6.0, rel=1e-3) and controller.missed(), "held-out pairs are at 1.5"
    before = controller.coefficient
    controller.move(4 * 3.0, 4)
    assert controller.coefficient < before, "it holds less, since 3 nats are half of the way"
    for _ in range(60):
        controller.move(4 * 6.0, 4)
    assert not controller.missed() and controller.kl == pytest.approx(6.0, rel=1e-3)
    for wrong in (0.0, math.nan, math.inf):
        controller.see_held_out(wrong)
    assert controller.aim == pytest.approx(6.0, rel=1e-3)
    controller.see_held_out(1e-9)
    assert controller.held_out == pytest.approx(0.6 * math.log(0.5) - 0.4 * math.log(3), rel=1e-3), "at most a third"
    other = KLTargetController(3.0, 0.1)
    other.load_state_dict(controller.state_dict())
    assert other.aim == controller.aim and other.coefficient == controller.coefficient


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (KLTerm(direction="forward", target=3.0), 2.5),
        (KLTerm(direction="forward", target=3.0, target_direction="reverse"), 4.5),
        (KLTerm(direction="reverse", on="rejected", target=3.0, target_direction="forward"), 7.0),
        (None, None),
    ],
)
def test_an_evaluation_says_what_is_held_on_held_out_pairs(term: Any, expected: Any) -> None:
    loss = configured_loss("dpo", 0.1, None, 0.0, kl=term)
    metrics = {"eval_kl_term": 2.5, "eval_chosen_reverse_kl": 4.0, "eval_rejected_reverse_kl": 5.0}
    assert loss.held_out_kl({**metrics, "eval_chosen_forward_kl": 6.0, "eval_rejected_forward_kl": 7.0}) == expected
    assert loss.held_out_kl({"eval_reward_mean": 1.0}) is None


def test_what_processes_see_is_summed_and_an_interrupted_update_is_forgotten() -> None:
    """A sum that is doubled stands for two processes that see the same; micro-batches of an update are one batch."""
    loss = configured_loss("dpo", 0.1, None, 0.0, KLTerm(target=1.0))
    one, kls = KLTargetController(1.0, 0.1), torch.tensor([0.5, 1.5, 2.5])
    one.move(9.0, 6)
    assert loss.controller is not None and loss.kl_coefficient == KLTargetController(1.0, 0.1).coefficient
    loss.controller.observe(kls * 100)
    loss.controller.forget_update()
    loss.controller.observe(kls[:1])
    loss.controller.observe(kls[1:])
    loss.end_update(lambda sums: 2 * sums)
    assert loss.kl_coefficient == one.coefficient
    loss.end_update(lambda sums: sums)
    assert loss.kl_coefficient == one.coefficient, "an update without a pair changes nothing"
    other = configured_loss("dpo", 0.1, None, 0.0, KLTerm(target=1.0))
    other.load_state_dict(loss.state_dict())
    for each in (loss, other):
        each.controller.observe(kls)  # type: ignore[union-attr]
        each.end_update(lambda sums: sums)
    assert loss.state_dict() == other.state_dict() and loss.kl_coefficient != one.coefficient


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_a_target_is_met_on_held_out_pairs(target: float, tokenizer: Any, tmp_path: Path, caplog: Any) -> None:
    """Over the last third of a run whose λ nobody knew."""
    trainer = make_trainer(
        build_model("llama"), tmp_path, tokenizer, plain_rows(240, seed=1), eval_rows=plain_rows(12, seed=99),
        loss="dpo", kl={"target": target}, learning_rate=3e-4, lr_scheduler_type="constant", max_steps=60,
        eval_strategy="steps", eval_steps=7, logging_steps=1,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="tdpo"):
        trainer.train()
    held_out = [line["eval_kl_term"] for line in trainer.state.log_history if "eval_loss" in line][-3:]
    assert sum(held_out) / 3 == pytest.approx(target, rel=0.15)
    coefficients = [line["kl_coefficient"] for line in train_logs(trainer)]
    assert max(coefficients) > 10 * min(coefficients) and "held at" in trainer.describe()
    assert "its target was" not in caplog.text


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
@pytest.mark.parametrize("held", ["forward", "reverse"])
def test_the_target_may_be_of_another_kl_than_the_term(direction: Any, held: Any) -> None:
    """The controller gets the KL of `target_direction` along the term's own responses, and no gradient."""
    numbers = torch.rand(4, 6, dtype=torch.float64)
    stats = MixtureTokenStats(*numbers[:2], numbers[2], numbers[3], jensen_shannon=numbers[2] / 2)
    index = torch.tensor([0, 0, 1, 2, 3, 3])  # pairs 0 and 1: chosen are 0 and 1, rejected 2 and 3
    term = KLTerm(direction, "rejected", target=3.0, target_direction=held)
    loss = configured_loss("dpo", 0.1, None, 0.0, term)
    result = loss(stats, score_pairs(stats, index, 2), index, 2)
    loss.observe(result, stats, index, 2)
    loss.end_update(lambda sums: sums)
    expected = numbers[2 if held == "forward" else 3]
    assert loss.controller is not None
    assert loss.controller.kl == pytest.approx(float(expected[3:].sum()) / 2)
    assert ("held_kl" in loss.aim) == (direction != held) and loss.aim["kl_target"] == 3.0 and "kl_aim" not in loss.aim
    loss.controller.held_out = math.log(0.5)
    assert loss.aim["kl_aim"] == pytest.approx(6.0) and loss.aim["kl_target"] == 3.0
    said = loss.describe("tiled")
    assert (f"moving λ holds the exact {held} KL" in said) == (direction != held) and "along rejected responses" in said


def test_a_target_out_of_reach_is_said(tokenizer: Any, tmp_path: Path, caplog: Any) -> None:
    trainer = make_trainer(build_model("llama"), tmp_path, tokenizer, kl={"target": 500.0})
    with caplog.at_level(logging.WARNING, logger="tdpo"):
        trainer.train()
    assert "its target was 500: with λ = " in caplog.text and "Raise the learning rate, train longer" in caplog.text
    controller = KLTargetController(1.0, 0.1)
    assert controller.missed() == "", "before the first update there is nothing to say"
    controller.move(8.0, 2)
    assert "has not brought the policy back yet. Lower the learning rate" in controller.missed()


@pytest.mark.parametrize(
    ("loss", "kl", "reason"),
    [
        ("kl", {"target": 3.0}, "kl.target has no effect where the KL is the whole loss"),
        ("dpo", {"target": 0.0}, "kl.target must be finite and > 0, in nats a sequence, got 0.0"),
        ("dpo", {"target": math.inf}, "kl.target must be finite and > 0"),
        ("dpo", {"target_direction": "reverse"}, "kl.target_direction has no effect without a target"),
        ("dpo", {"target": 3.0, "target_direction": "js"}, "kl.target_direction must be reverse, forward or None"),
        ("dpo", {"target": 3.0, "horizon": 100}, "kl must be a dictionary with some of direction, on"),
    ],
)
def test_what_makes_no_sense_is_refused(loss: str, kl: Any, reason: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        make_trainer(build_model("llama"), tmp_path, tokenizer, loss=loss, kl=kl)
