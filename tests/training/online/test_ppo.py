"""`PPOTrainer`: what it logs, what does not change an update, what it refuses, and what it leaves behind."""

from __future__ import annotations

import copy
import json
import math
import statistics
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import tdpo.training.online.rollout_collecting as collecting
from helpers.devices import rounding
from helpers.ppo_cases import PROMPTS, letters, logs, make_ppo, ppo_settings
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import StopAt, lora, move_away, sequence_numbers, trained_weights
from tdpo.batches import ResponseCollator, TokenizedPair
from tdpo.config import load_recipe
from tdpo.environments import RewardError
from tdpo.models import sharded_weights
from tdpo.runs.checkpoints import find_checkpoints
from tdpo.scoring.kl_target import KLTargetController
from tdpo.training import PPOTrainer
from tdpo.training.online.critic import Critic
from tdpo.training.online.critic_training import save_critic, save_critic_optimizer
from tdpo.training.online.kl_coefficients import DualCoefficient, IterationController
from tdpo.training.online.rollouts import make_rollout
from tdpo.workflows.prerequisites import check_critic

LOGGED = {
    "reward_mean", "reward_std", "reward_variance", "penalized_reward_mean", "forward_kl", "reverse_kl", "kl_k1",
    "kl_k2", "kl_k3", "kl_coefficient", "policy_entropy", "policy_loss", "value_loss", "ratio_mean", "ratio_max",
    "clip_fraction", "value_clip_fraction", "approx_kl", "explained_variance", "length_mean", "finished_share",
    "generation_tokens_per_second", "learning_tokens_per_second", "generation_seconds", "learning_seconds",
    "judging_seconds", "skipped_updates", "iteration", "loss", "grad_norm", "learning_rate",
}  # fmt: skip


def trainer_of(folder: Path, *, model: Any = None, **changes: Any) -> PPOTrainer:
    given = {"kl": {"controller": "fixed", "coefficient": 0.1}, **changes}
    reward = given.pop("reward", letters)
    prompts = given.pop("prompts", PROMPTS)
    return make_ppo(
        build_model("llama") if model is None else model, folder, build_tokenizer(), reward, prompts, **given
    )


def agree(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 2e-5) -> None:
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=rounding() * tolerance, rtol=rounding() * 1e-3), name


# ---- without a critic ----


@pytest.mark.parametrize("advantage", ["rloo", "group"])
def test_without_a_critic_each_response_is_compared_with_those_of_its_prompt(
    advantage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def watched(*args: Any) -> Any:
        made.append((args, make_rollout(*args)))
        return made[-1][1]

    monkeypatch.setattr(collecting, "make_rollout", watched)
    trainer = trainer_of(
        tmp_path, kl={"controller": "fixed", "coefficient": 0.3}, advantage=advantage, samples_per_prompt=4,
        whiten_advantages=False, save_strategy="steps", save_steps=2, optim="sgd", learning_rate=1.0,
    )  # fmt: skip
    trainer.train()
    assert trainer.critic is None and not list(tmp_path.rglob("critic.pt"))
    line = logs(trainer)[-1]
    assert LOGGED - line.keys() == {"value_loss", "value_clip_fraction", "explained_variance"}
    assert line["reverse_kl"] > 1e-3, "it learned, so that the second iteration has a penalty"
    for (_, _, scored, task_rewards, *_), (rollout, _) in made:
        order = rollout.order
        penalty = (scored.stats["policy_logp"] - scored.stats["reference_logp"]).split(order.lengths.tolist())
        penalised = {n: float(task_rewards[n] - 0.3 * kl.sum()) for n, kl in zip(order.by_prompt, penalty, strict=True)}
        for number, own in zip(order.by_prompt, rollout.advantages.split(order.lengths.tolist()), strict=True):
            first = number - number % 4
            assert own.tolist() == pytest.approx([compared(advantage, penalised, number, first)] * len(own), abs=1e-4)


def compared(advantage: str, rewards: dict[int, float], number: int, first: int) -> float:
    """The advantage of a response among the four to its prompt, by the definition."""
    group = [rewards[n] for n in range(first, first + 4)]
    if advantage == "rloo":
        return rewards[number] - (sum(group) - rewards[number]) / 3
    return (rewards[number] - sum(group) / 4) / (statistics.stdev(group) + 1e-4)


def test_a_critics_model_is_refused_where_there_is_no_critic(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="value_model has no effect with advantage=rloo"):
        trainer_of(tmp_path, advantage="rloo", value_model=build_model("llama"))


# ---- the reference ----


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("full", "a frozen copy of the start"),
        ("lora", "the policy with its adapter off"),
        ("second model", "second model"),
    ],
)
def test_the_reference_is_what_the_trainer_says(kind: str, said: str, tmp_path: Path) -> None:
    """It said "start", which is the policy itself, and its statistics would have measured a KL of 0 for ever."""
    base = build_model("llama")
    adapter = lora() if kind == "lora" else None
    reference = build_model("llama", seed=1) if kind == "second model" else None
    trainer = trainer_of(tmp_path, model=base, peft_config=adapter, ref_model=reference)
    assert trainer.describe().endswith(f" Reference: {said}.")
    batch = trainer._judge.batch([TokenizedPair.of([5, 6, 7], [20, 21, 1], [30, 1])])
    start = trainer.statistics(trainer.model, batch, extras=("reverse_kl",))
    with torch.no_grad():
        for parameter in (p for p in trainer.model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    moved = trainer.statistics(trainer.model, batch, extras=("reverse_kl",))
    assert moved.reference_logp.equal(start.reference_logp)
    assert bool(start.forward_kl.abs().max() < 1e-5) == (kind != "second model")
    assert moved.forward_kl.min() > 1e-4
    assert moved.reverse_kl is not None and moved.reverse_kl.min() > 1e-4


# ---- what is logged ----


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_logged_numbers_are_those_of_full_logits(kind: str, tmp_path: Path) -> None:
    """Every KL, estimator and entropy of the last iteration, from each model's logits on each completion alone."""
    base = build_model("llama")
    reference = copy.deepcopy(base)
    trainer = trainer_of(tmp_path, model=base, peft_config=lora() if kind == "lora" else None, learning_rate=3e-2)
    seen: dict[str, Any] = {}
    original = trainer.collector.sample

    def watched(policy: Any, iteration: int) -> Any:
        seen["policy"], seen["sampled"] = copy.deepcopy(policy).eval(), original(policy, iteration)
        return seen["sampled"]

    trainer.collector.sample = watched  # type: ignore[method-assign]
    trainer.train()
    last = logs(trainer)[-1]
    assert set(last) >= LOGGED
    sampled, sums = seen["sampled"], []
    for ids, completion in zip(sampled.prompt_ids, sampled.responses, strict=True):
        sums.append(sequence_numbers(seen["policy"], reference, ids, completion.token_ids))
    mean = {name: sum(float(s[name]) for s in sums) / len(sums) for name in sums[0]}
    assert last["forward_kl"] == pytest.approx(mean["forward_kl"], rel=2e-3, abs=1e-5)
    assert last["reverse_kl"] == pytest.approx(mean["reverse_kl"], rel=2e-3, abs=1e-5)
    assert last["kl_k1"] == pytest.approx(mean["log_ratio"], rel=2e-3, abs=1e-4)
    assert last["policy_entropy"] == pytest.approx(mean["entropy"] / mean["tokens"], rel=1e-4)
    assert last["kl_k2"] > 0 and last["kl_k3"] > 0 and last["reverse_kl"] > 1e-3
    assert last["length_mean"] == pytest.approx(mean["tokens"])
    rewards = letters([], [c.text for c in sampled.responses])
    assert last["reward_mean"] == pytest.approx(sum(rewards) / len(rewards))
    assert last["reward_variance"] == pytest.approx(last["reward_std"] ** 2)
    penalty = 0.1 * last["kl_k1"]
    assert last["penalized_reward_mean"] == pytest.approx(last["reward_mean"] - penalty, abs=1e-5)


def test_the_first_iteration_starts_at_the_reference_and_at_ratio_one(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, ppo_epochs=1, per_device_train_batch_size=8, iterations=1)
    trainer.train()
    [first] = logs(trainer)
    for name in ("forward_kl", "reverse_kl", "kl_k1", "kl_k2", "kl_k3", "approx_kl", "clip_fraction"):
        assert first[name] == pytest.approx(0.0, abs=1e-5), name
    assert first["ratio_mean"] == pytest.approx(1.0, abs=1e-5) == first["ratio_max"]


def test_one_line_an_iteration_and_samples_of_each(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, iterations=3, show_every=2)
    trainer.train()
    assert trainer.state.global_step == 3 * 4 == trainer.args.total_updates
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert [line["iteration"] for line in train] == [0, 1, 2] and [line["step"] for line in train] == [4, 8, 12]
    shown = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert {line["iteration"] for line in shown} == {0, 2}
    assert {"prompt", "text", "reward", "finished", "step"} <= set(shown[0])


def test_the_arguments_of_the_caller_stay_as_they_are(tmp_path: Path) -> None:
    args = ppo_settings(tmp_path)
    before = args.to_dict()
    trainer = PPOTrainer(build_model("llama"), letters, args, PROMPTS, processing_class=build_tokenizer())
    assert trainer.args.max_steps == args.total_updates
    assert args.to_dict() == before
    assert replace(args, iterations=7).iterations == 7, "max_steps, which is refused, would be passed on"


def test_every_prompt_comes_up_before_any_comes_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def noting(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        asked.extend(prompts[::2])
        assert columns["number"] == [int(p[-1]) for p in prompts]
        return letters(prompts, completions)

    rows = [{"prompt": f"the cat {i}", "number": i} for i in range(6)]
    trainer_of(tmp_path, prompts=rows, reward=noting, iterations=3, ppo_epochs=1).train()
    assert len(asked) == 12
    assert len(set(asked[:6])) == len(set(asked[6:])) == 6


# ---- what changes nothing ----


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"rollout_batch_size": 3},
        {"gradient_checkpointing": True},
    ],
    ids=["micro-batches", "rollout batches", "gradient checkpointing"],
)
def test_splitting_the_work_changes_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", optim="sgd", learning_rate=1.0)
    whole.train()
    split = trainer_of(tmp_path / "split", optim="sgd", learning_rate=1.0, **changes)
    split.train()
    agree(trained_weights(split), trained_weights(whole))
    assert logs(split)[-1]["reverse_kl"] == pytest.approx(logs(whole)[-1]["reverse_kl"], rel=1e-3, abs=1e-6)
    assert logs(whole)[-1]["reverse_kl"] > 1e-4


def test_any_number_of_responses_may_be_drawn_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One update learns from the whole rollout, so what shares a row, and a minibatch, may change rounding only."""
    weights, numbers = [], []
    for together in (1, 2, 4):
        monkeypatch.setattr("tdpo.training.online.rollout_collecting.drawn_together", lambda _, n=together: n)
        trainer = trainer_of(
            tmp_path / str(together), optim="sgd", learning_rate=0.1, samples_per_prompt=4, completions=8,
            per_device_train_batch_size=8, ppo_epochs=2, normalize_rewards=True, reward_clip=1.0,
        )  # fmt: skip
        sizes = watched_units(trainer)
        trainer.train()
        assert set(sizes) == {together}
        weights.append(trained_weights(trainer))
        numbers.append({name: logs(trainer)[-1][name] for name in ("penalized_reward_mean", "reverse_kl", "kl_k3")})
    for other, logged in zip(weights[1:], numbers[1:], strict=True):
        agree(other, weights[0])
        assert logged == pytest.approx(numbers[0], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("samples", [2, 4])
def test_rows_shared_by_completions_give_the_update_of_padded_rows(family: str, samples: int, tmp_path: Path) -> None:
    """gemma2's window takes no shared rows: both ways are then the same, and must work all the same."""
    weights = []
    for name in ("auto", "off"):
        trainer = trainer_of(
            tmp_path / name, model=build_model(family), optim="sgd", learning_rate=0.1, samples_per_prompt=samples,
            completions=8, per_device_train_batch_size=4,
        )  # fmt: skip
        if name == "off":
            trainer._begin_iteration = _without_sharing(trainer)  # type: ignore[method-assign]
        trainer.train()
        weights.append(trained_weights(trainer))
        if family == "llama":
            grouped = trainer.collector.judge.collator.group_prompts
            assert grouped == (name == "auto" and samples == 4), "with four samples two rows have one prompt"
    agree(weights[0], weights[1], 1e-4)


def watched_units(trainer: PPOTrainer) -> list[int]:
    """The number of responses of every unit that the trainer scores from here on."""
    sizes: list[int] = []
    original = trainer._judge.score

    def score(policy: Any, units: Any) -> Any:
        sizes.extend(len(unit.responses) for unit in units)
        return original(policy, units)

    trainer._judge.score = score  # type: ignore[method-assign]
    return sizes


def _without_sharing(trainer: PPOTrainer) -> Any:
    import tdpo.training.online.collecting as online

    original = trainer._begin_iteration

    def begin(iteration: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(online, "grouped_collator", lambda model, units, pad, **_: ResponseCollator(pad))
            original(iteration)

    return begin


def test_an_adapter_folded_in_while_sampling_changes_no_weight(tmp_path: Path) -> None:
    weights = []
    for merge in (True, False):
        trainer = trainer_of(tmp_path / str(merge), peft_config=lora(), merge_adapter=merge)
        trainer.train()
        weights.append(trained_weights(trainer))
        base = {n: p for n, p in trainer.model.named_parameters() if not p.requires_grad}
        untouched = dict(build_model("llama").named_parameters())
        assert all(torch.equal(p.cpu(), untouched[_plain(n)]) for n, p in base.items())
    agree(weights[0], weights[1], 1e-4)


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def test_a_batch_of_odd_size_or_a_single_sample_needs_no_pairs(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, samples_per_prompt=1, completions=6, per_device_train_batch_size=3)
    trainer.train()
    assert trainer.state.global_step == 2 * 2 * 2 and math.isfinite(logs(trainer)[-1]["loss"])


# ---- options ----


def test_early_stopping_skips_the_rest_of_an_iteration(tmp_path: Path) -> None:
    free = trainer_of(tmp_path / "free", iterations=1, learning_rate=5e-2, per_device_train_batch_size=8, ppo_epochs=1)
    free.train()
    stopped = trainer_of(
        tmp_path / "stopped", iterations=1, learning_rate=5e-2, per_device_train_batch_size=8, ppo_epochs=4,
        target_kl=1e-9, lr_scheduler_type="constant",
    )  # fmt: skip
    stopped.train()
    # The first update sees the policy that sampled; the second one sees how far it has moved, and is the last.
    assert logs(stopped)[0]["skipped_updates"] == 2
    assert stopped.state.global_step == 4
    never = trainer_of(tmp_path / "never", iterations=1, learning_rate=5e-2, target_kl=1e9)
    never.train()
    assert logs(never)[0]["skipped_updates"] == 0


def test_the_penalty_for_a_missing_end_is_no_part_of_the_reward_that_is_logged(tmp_path: Path) -> None:
    one = {"iterations": 1, "kl": {"controller": "fixed", "coefficient": 0.0}}
    plain, harsh = (trainer_of(tmp_path / str(p), missing_end_penalty=p, **one) for p in (0.0, 3.0))
    plain.train(), harsh.train()
    a, b = logs(plain)[0], logs(harsh)[0]
    assert a["reward_mean"] == b["reward_mean"] == pytest.approx(a["penalized_reward_mean"], abs=1e-6)
    assert b["penalized_reward_mean"] == pytest.approx(b["reward_mean"] - 3.0 * (1 - b["finished_share"]), abs=1e-6)
    assert b["finished_share"] < 1


def test_rewards_are_normalised_and_clipped_where_asked_for(tmp_path: Path) -> None:
    one = {"iterations": 1, "kl": {"controller": "fixed", "coefficient": 0.0}}
    normal = trainer_of(tmp_path / "n", normalize_rewards=True, **one)
    clipped = trainer_of(tmp_path / "c", reward_clip=0.05, **one)
    normal.train(), clipped.train()
    assert logs(normal)[0]["penalized_reward_mean"] == pytest.approx(0.0, abs=1e-6)
    assert logs(normal)[0]["reward_mean"] != pytest.approx(0.0, abs=1e-3)
    assert abs(logs(clipped)[0]["penalized_reward_mean"]) <= 0.05


def test_an_entropy_bonus_raises_the_entropy(tmp_path: Path) -> None:
    entropies = []
    for bonus in (0.0, 5.0):
        trainer = trainer_of(
            tmp_path / str(bonus), entropy_coefficient=bonus, iterations=4, optim="sgd", learning_rate=0.05,
            reward=lambda prompts, completions, **_: [float(len(c)) for c in completions],
        )  # fmt: skip
        trainer.train()
        entropies.append(logs(trainer)[-1]["policy_entropy"])
    assert entropies[1] > entropies[0]


def test_several_rewards_are_weighted_and_logged_each(tmp_path: Path) -> None:
    def short(prompts: list[Any], completions: list[str], **_: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    trainer = trainer_of(tmp_path, reward=[letters, short], reward_weights=[2.0, 0.5], iterations=1)
    trainer.train()
    [line] = logs(trainer)
    assert line["reward_mean"] == pytest.approx(2.0 * line["rewards/letters"] + 0.5 * line["rewards/short"])


@pytest.mark.parametrize("kind", ["value head", "critic model"])
def test_the_critic_learns_at_a_rate_of_its_own(kind: str, tmp_path: Path) -> None:
    critic = build_model("qwen2", seed=5) if kind == "critic model" else None
    trainer = trainer_of(
        tmp_path, value_model=critic, value_learning_rate=1e-2, learning_rate=1e-12, iterations=25,
        per_device_train_batch_size=8, value_clip_range=None, lr_scheduler_type="constant",
        reward=lambda prompts, completions, **_: [float(PROMPTS.index(p)) for p in prompts],
    )  # fmt: skip
    before = {n: p.clone() for n, p in trainer.critic.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.critic.named_parameters() if not torch.equal(p, before[n])}
    assert "head.weight" in changed and (len(changed) > 10) == (kind == "critic model")
    first, last = logs(trainer)[0], logs(trainer)[-1]
    assert first["explained_variance"] == pytest.approx(0.0, abs=1e-6) and last["explained_variance"] > 0.5


@pytest.mark.parametrize("writes", [True, False])
def test_a_checkpoint_puts_one_weight_together_at_a_time(
    writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a device would hold the whole critic with two numbers of AdamW for each weight, beside all that trains."""
    together: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def gather(weight: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, 1 + sum(ref() is not None for ref in together))
        copy = weight.detach().clone()
        together.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(sharded_weights, "whole", gather)
    critic = Critic(4, torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))
    optimizer = torch.optim.AdamW(critic.parameters())
    for weight in critic.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    save_critic(critic, tmp_path, writes=writes)
    save_critic_optimizer(critic, optimizer, tmp_path, writes=writes)
    assert len(together) == 6 + 3 * 6
    if not writes:
        assert most == 1 and not list(tmp_path.iterdir())
        return
    saved = torch.load(tmp_path / "critic.pt", weights_only=True)
    assert saved.keys() == critic.state_dict().keys()
    assert all(weight.equal(saved[name]) for name, weight in critic.state_dict().items())


def test_a_scale_of_fp16_is_taken_off_once_for_policy_and_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaler refuses to do it twice in an update; accelerate does it in each call for a list of weights."""
    trainer = trainer_of(tmp_path)
    scaler = torch.amp.GradScaler(trainer.args.device.type, init_scale=4.0)
    scaler.scale(torch.ones((), device=trainer.args.device))
    accelerator = trainer.accelerator
    accelerator.prepare_optimizer(trainer.create_optimizer())
    assert trainer.critic is not None
    for weight in (*trainer.model.parameters(), *trainer.critic.parameters()):
        weight.grad = torch.full_like(weight, 4e-4)
    monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")
    monkeypatch.setattr(accelerator, "native_amp", True)
    monkeypatch.setattr(accelerator, "scaler", scaler)
    norm = trainer._clip_grad_norm(trainer.model)
    assert float(norm) == pytest.approx(1e-4 * sum(p.numel() for p in trainer.model.parameters()) ** 0.5, rel=1e-4)
    assert trainer.critic.head.weight.grad is not None
    assert torch.allclose(trainer.critic.head.weight.grad.cpu(), torch.tensor(1e-4))


def test_the_adaptive_controller_moves_the_coefficient_as_it_says(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, kl={"coefficient": 0.1, "target": 1e-3, "horizon": 100}, iterations=3)
    trainer.train()
    lines = logs(trainer)
    for before, after in pairwise(lines):
        error = min(max(before["reverse_kl"] / 1e-3 - 1, -0.2), 0.2)
        assert after["kl_coefficient"] == pytest.approx(before["kl_coefficient"] * (1 + error * 8 / 100))
    assert lines[0]["kl_target"] == 1e-3


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_the_dual_controller_sees_the_exact_kl_of_the_target_and_moves_when_it_acts(place: Any, tmp_path: Path) -> None:
    """After every update where the KL is in the loss, after every iteration where it is in the reward; and a run that
    is resumed within an iteration ends at the same weights."""
    torch.set_num_threads(1)
    form, direction = ("exact", "forward") if place == "loss" else ("sampled", "reverse")
    kl = {
        "direction": direction, "form": form, "place": place, "controller": "dual", "coefficient": 0.1, "target": 1e-3,
        "target_direction": "reverse" if place == "loss" else "forward",
    }  # fmt: skip

    def new(name: str) -> PPOTrainer:
        return trainer_of(tmp_path / name, kl=kl, advantage="rloo", save_strategy="steps", save_steps=3)

    whole = new("whole")
    control = whole.collector.kl_coefficient
    assert isinstance(control, DualCoefficient) and control.moves_in_updates == (place == "loss")
    seen: list[tuple[float, float]] = []
    move = control.controller.move
    control.controller.move = lambda *of: (seen.append(of), move(*of))[1]  # type: ignore[assignment,method-assign,func-returns-value]
    whole.train()
    lines = logs(whole)
    assert len(seen) == (whole.args.total_updates if place == "loss" else whole.args.iterations) > 1
    first_of_iteration = seen[:: whole.args.updates_per_iteration] if place == "loss" else seen
    for line, (kl_sum, responses) in zip(lines, first_of_iteration, strict=True):
        if place == "reward":
            assert kl_sum / responses == pytest.approx(line["forward_kl"], rel=1e-4) and responses == 8
        assert responses in (4, 8)
    assert seen[0][0] == pytest.approx(0.0, abs=1e-5), "the first update begins at the reference"
    furthest = KLTargetController.POWER * KLTargetController.LIMIT if place == "loss" else 1.0
    assert lines[0]["kl_coefficient"] == pytest.approx(0.1 * math.exp(-furthest))
    # In the reward it has seen nothing but the reference before the second of two iterations.
    after = lines[1]["kl_coefficient"] if place == "loss" else control.value
    assert lines[0]["kl_coefficient"] != after and lines[0]["kl_target"] == 1e-3
    again = new("again")
    again.add_callback(StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        again.train()
    resumed = new("again")
    resumed.train(resume_from_checkpoint=True)
    expected = trained_weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in trained_weights(resumed).items())


def test_the_constants_of_an_iteration_are_those_of_an_update_by_name() -> None:
    own = {name for name in vars(IterationController) if name.isupper()}
    assert own and own <= set(vars(KLTargetController)), "the rule has other constants now: choose these anew"


def test_evaluation_samples_the_held_out_prompts(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, eval_dataset=["a dog", "the mat and"], eval_strategy="steps", eval_steps=4)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_reward_mean" in line]
    assert [line["step"] for line in lines] == [4, 8]
    assert {"eval_reward_std", "eval_forward_kl", "eval_reverse_kl", "eval_finished_share"} <= set(lines[0])
    assert trainer.evaluate() == {k: v for k, v in lines[-1].items() if k.startswith("eval_")}  # seeded
    with pytest.raises(ValueError, match="needs prompts"):
        trainer_of(tmp_path / "none").evaluate()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (
            lambda prompts, completions, **_: [1.0 / 0.0 for _ in completions],
            r"raised ZeroDivisionError.*prompt 'train_",
        ),
        (lambda prompts, completions, **_: [math.nan] * len(completions), r"gave nan for prompt 'train_dataset:"),
        (lambda prompts, completions, **_: [1.0], r"returned 1 values for 8 completions"),
    ],
    ids=["raises", "nan", "wrong length"],
)
def test_a_broken_reward_is_named_and_the_last_checkpoint_is_whole(reward: Any, reason: str, tmp_path: Path) -> None:
    calls = []

    def breaks_later(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        calls.append(1)
        return letters(prompts, completions) if len(calls) == 1 else reward(prompts, completions)

    trainer = trainer_of(tmp_path, reward=breaks_later, save_strategy="steps", save_steps=4)
    with pytest.raises(RewardError, match=reason):
        trainer.train()
    assert [p.name for p in find_checkpoints(tmp_path).complete] == ["checkpoint-4"]


def test_a_reward_that_never_differs_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(tmp_path, reward=lambda completions, **_: [0.5] * len(completions), iterations=4)
    with pytest.raises(RewardError, match=r"gave 0.5 to all 8 completions.*'train_dataset:.*each of the first 3"):
        trainer.train()
    assert [line["iteration"] for line in logs(trainer)] == [0, 1]
    assert caplog.text.count("teaches nothing but the KL") == 2


def test_an_iteration_without_a_difference_is_said_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that is learned gives its best reward to all."""
    calls = []

    def learned(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        calls.append(1)
        return letters(prompts, completions) if len(calls) == 1 else [1.0] * len(completions)

    trainer = trainer_of(tmp_path, reward=learned, iterations=5, save_strategy="steps", save_steps=4)
    trainer.train()
    assert caplog.text.count("gave 1.0 to all 8 completions of an iteration") == 4
    # Nor does a resumed run take what was learned before for a function that never differs.
    resumed = trainer_of(tmp_path, reward=lambda completions, **_: [1.0] * len(completions), iterations=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == trainer.state.global_step
    assert all(math.isfinite(value) for line in logs(trainer) for value in line.values() if isinstance(value, float))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompts": []}, "train_dataset has no prompts"),
        ({"prompts": None}, "train_dataset is missing"),
        ({"prompts": ["the cat", ""]}, "train_dataset:1 must hold a `prompt`"),
        ({"prompts": [{"text": "the cat"}]}, "train_dataset:0 must hold a `prompt`"),
        (
            {"prompts": ["the cat " * 200]},
            r"prompt 0 \(train_dataset:0\) has \d+ tokens: with a response it does not fit",
        ),
        ({"eval_dataset": ["the cat " * 200]}, r"prompt 0 \(eval_dataset:0\) has"),
        ({"max_new_tokens": 255}, r"with max_new_tokens=255 it does not fit into the model's context of 256 tokens"),
        ({"reward": None}, "reward_funcs is missing"),
        ({"merge_adapter": False}, "merge_adapter=False has no effect: the model has no adapter"),
        ({"reward": []}, "reward_funcs is missing"),
        ({"reward": 3}, "a reward is a function or the name of a model, got int"),
        ({"reward_weights": [1.0, 2.0]}, "2 numbers for 1 reward functions"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_training(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        trainer_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"completions": 10, "samples_per_prompt": 2, "per_device_train_batch_size": 4},
            "does not divide completions=10",
        ),
        ({"completions": 9, "per_device_train_batch_size": 3}, "no whole number of prompts"),
        ({"iterations": 0}, "iterations must be a whole number ≥ 1, got 0"),
        ({"gamma": 0.0}, "gamma must be a number > 0 and ≤ 1, got 0.0"),
        ({"gae_lambda": 1.5}, "gae_lambda must be a number ≥ 0 and ≤ 1, got 1.5"),
        ({"clip_range": 0.0}, "clip_range must be a number > 0, got 0.0"),
        ({"target_kl": -1.0}, "target_kl must be a number > 0 or None, got -1.0"),
        ({"value_coefficient": -0.1}, "value_coefficient must be a number ≥ 0"),
        ({"max_steps": 7}, "max_steps has no effect"),
        ({"num_train_epochs": 2}, "num_train_epochs has no effect"),
        ({"logging_steps": 5}, "logging_steps has no effect"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect"),
        ({"kl": {"form": "exact"}}, "direction reverse, form exact, place reward is refused"),
        ({"kl": {"horizon": 2}}, "kl.horizon=2 is so short"),
        ({"advantage": "grpo"}, "advantage must be one of gae, rloo, group, got 'grpo'"),
        ({"advantage": "rloo", "samples_per_prompt": 1}, "rloo compares the responses to one prompt"),
        ({"advantage": "rloo", "scale_by_group_std": False}, 'only advantage="group" has such a division'),
        ({"advantage": "group", "gae_lambda": 0.5}, "gae_lambda has no effect with advantage=group"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        ppo_settings(tmp_path, **changes)


def test_reward_models_are_read_with_their_own_words_or_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    def saved(name: str, vocabulary: int, labels: int, tokenizer: Any = None) -> Path:
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_labels=labels, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(1)
        LlamaForSequenceClassification(config).save_pretrained(tmp_path / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    good = saved("good", 384, 1, build_tokenizer())
    trainer = trainer_of(tmp_path / "run", reward=str(good), iterations=1)
    trainer.train()
    assert math.isfinite(logs(trainer)[0]["reward_mean"]) and logs(trainer)[0]["reward_std"] > 0
    with pytest.raises(ValueError, match="has 2 outputs; a reward is one number"):
        trainer_of(tmp_path / "a", reward=str(saved("two", 384, 2, build_tokenizer())))
    with pytest.raises(ValueError, match=r"knows 50 tokens, but the policy's .* vocabularies do not match"):
        trainer_of(tmp_path / "b", reward=str(saved("foreign", 50, 1)))
    with pytest.raises(ValueError, match="knows 50 tokens, but its own tokenizer has token"):
        trainer_of(tmp_path / "c", reward=str(saved("cut", 50, 1, build_tokenizer())))


def test_a_critic_that_would_stay_as_it_is_is_refused(tmp_path: Path) -> None:
    """The folder of an adapter is loaded frozen: the value head alone would learn, at the rate for whole models."""
    from peft import get_peft_model

    get_peft_model(build_model("llama"), lora()).save_pretrained(tmp_path / "adapter")
    frozen = build_model("llama").requires_grad_(False)
    with pytest.raises(ValueError, match=r"critic's model would not be trained.*`tdpo merge`"):
        trainer_of(tmp_path / "run", value_model=frozen)
    recipe = load_recipe(
        {
            "run_dir": str(tmp_path / "run"),
            "environment": {"name": "sentiment"},
            "ppo": {"value_model": str(tmp_path / "adapter")},
        }
    )
    with pytest.raises(ValueError, match=r"ppo\.value_model .*adapter: the critic's model would not be trained"):
        check_critic(recipe, build_model("llama"))


def test_a_critic_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the policy has 384 vocabulary entries and the critic 100"):
        trainer_of(tmp_path, value_model=build_model("llama", vocab_size=100))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = move_away(build_model("llama"), 0.0)
    trainer = trainer_of(tmp_path, model=model, learning_rate=1e30, max_grad_norm=1e30, optim="sgd")
    with pytest.raises(
        (FloatingPointError, ValueError), match=r"the loss became|gradient's norm became|NaN or infinite"
    ):
        trainer.train()
