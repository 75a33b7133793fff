"""`OnlineTDPOTrainer`: which pairs it makes, that its update is the offline one on them, what changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.ppo_cases import (
    PROMPT,
    PROMPTS,
    WORDS,
    bandit_model,
    bandit_reward,
    distribution,
    letters,
    make_online,
    make_ppo,
    online_settings,
    total_divergence,
    word_tokenizer,
)
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import StopAt, lora, trained_weights
from tdpo import OnlineTDPOTrainer, TDPOConfig, TDPOTrainer
from tdpo.records.json_files import read_jsonl
from tdpo.sampling.sampler import SampledResponse
from tdpo.training.online.pairs_collecting import best_and_worst
from tdpo.training.online.rewarded_responses import RewardedResponses


def lines(trainer: OnlineTDPOTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "prompts_without_pair" in line]


def sampled(rewards: list[float], finished: list[bool] | None = None) -> RewardedResponses:
    ends = finished or [True] * len(rewards)
    responses = [
        SampledResponse(prompt_index=i // 3, sample_index=i % 3, token_ids=[10 + i], text=str(i), finished=ends[i])
        for i in range(len(rewards))
    ]
    prompt_ids = [[1, i // 3] for i in range(len(rewards))]
    return RewardedResponses([], responses, prompt_ids, torch.tensor(rewards, dtype=torch.float64), {}, 0.0)


def test_the_best_is_paired_with_the_worst() -> None:
    drawn = sampled([0.2, 0.9, 0.1, 0.5, 0.5, 0.5, 0.3, 0.1, 0.1])

    def chosen_and_rejected(*options: float) -> list[tuple[list[int], list[int], list[int]]]:
        return [(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in best_and_worst(drawn, 3, *options)]

    assert chosen_and_rejected(0.0) == [([1, 0], [11], [12]), ([1, 2], [16], [17])], "equal rewards give no pair"
    assert chosen_and_rejected(0.2) == [([1, 0], [11], [12])], "a margin that is not exceeded gives none"
    cut_off = sampled([0.2, 0.9, 0.1], [True, False, True])
    [pair] = best_and_worst(cut_off, 3, 0.0, missing_end_penalty=1.0)
    assert (pair.chosen_ids, pair.rejected_ids) == ([10], [11])


@pytest.mark.parametrize("loss", ["tdpo2", "dpo", "simpo"])
def test_an_update_is_the_offline_update_on_the_same_pairs(loss: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"loss": loss, "optim": "sgd", "learning_rate": 1.0}
    online = make_online(tmp_path / "online", iterations=1, **given)
    pairs: list[Any] = []
    collect = online.collector.collect

    def watched(*arguments: Any) -> Any:
        iteration = collect(*arguments)
        pairs.extend(iteration.pairs)
        return iteration

    online.collector.collect = watched  # type: ignore[method-assign]
    online.train()
    assert len(pairs) == 4
    args = TDPOConfig(
        output_dir=str(tmp_path / "offline"), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=4, max_steps=1, reference="model", **given,
    )  # fmt: skip
    offline = TDPOTrainer(build_model("llama"), args=args, train_dataset=pairs, processing_class=build_tokenizer())
    offline.train()
    expected = trained_weights(offline)
    for name, weight in trained_weights(online).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)
    [logged], [other] = lines(online), [line for line in offline.state.log_history if "margin" in line]
    for name in ("loss", "grad_norm", "accuracy", "chosen_logp", "rejected_logp"):
        assert logged[name] == pytest.approx(other[name], rel=1e-4), name


def test_what_a_run_logs_and_that_it_starts_at_the_reference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_online(tmp_path, eval_dataset=PROMPTS[:2], eval_strategy="steps", eval_steps=1)
    assert "2 of 2 held-out prompts are also trained on" in caplog.text
    trainer.train()
    first, second = lines(trainer)
    assert first["chosen_forward_kl"] == first["chosen_reverse_kl"] == first["margin"] == 0.0
    assert second["chosen_forward_kl"] > 0
    assert (first["iteration"], second["iteration"]) == (0, 1)
    for line in (first, second):
        assert line["pairs"] + line["prompts_without_pair"] == 4
        assert {"reward_mean", "length_mean", "policy_entropy", "learning_seconds", "generation_seconds"} <= line.keys()
    held_out = [line for line in trainer.state.log_history if "eval_reward_mean" in line]
    assert len(held_out) == 2 and held_out[-1]["eval_forward_kl"] > 0
    assert (tmp_path / "completions.jsonl").exists() and (tmp_path / "metrics.jsonl").exists()


def test_it_learns_the_reward(tmp_path: Path) -> None:
    model, tokenizer = bandit_model(), word_tokenizer()
    before = distribution(model, tokenizer).exp()
    trainer = make_online(
        tmp_path, model=model, tokenizer=tokenizer, reward=bandit_reward, prompts=[PROMPT], iterations=12,
        completions=64, samples_per_prompt=4, max_new_tokens=1, per_device_train_batch_size=16,
    )  # fmt: skip
    trainer.train()
    after = distribution(model, tokenizer).exp()
    worth = torch.tensor([0.0, 0.0, *WORDS.values()], dtype=torch.float64)
    assert float(after @ worth) > float(before @ worth) + 0.2


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"rollout_batch_size": 3},
        {"gradient_checkpointing": True},
    ],
    ids=["micro-batches", "rollout batches", "gradient checkpointing"],
)
def test_splitting_the_work_changes_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    results = []
    for name, more in (("whole", {}), ("split", changes)):
        trainer = make_online(tmp_path / name, optim="sgd", learning_rate=1.0, **more)
        trainer.train()
        results.append((trained_weights(trainer), lines(trainer)[-1]["margin"]))
    (whole, margin), (split, other_margin) = results
    for name, weight in whole.items():
        assert torch.allclose(split[name], weight, atol=2e-5, rtol=1e-3), name
    assert other_margin == pytest.approx(margin, rel=1e-3) and abs(margin) > 1e-6


def test_a_prompt_without_a_pair_is_left_out_and_counted(tmp_path: Path) -> None:
    """With rewards that differ at one prompt alone, three of four updates have nothing to learn from."""

    def rare(prompts: list[Any], completions: list[str], **_: Any) -> list[float]:
        return [
            float(len(text)) if prompt == PROMPTS[0] else 1.0 for prompt, text in zip(prompts, completions, strict=True)
        ]

    trainer = make_online(tmp_path, reward=rare, per_device_train_batch_size=1, iterations=1)
    trainer.train()
    [line] = lines(trainer)
    assert (line["pairs"], line["prompts_without_pair"]) == (1, 3)
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("kind", ["full", "lora with dropout"])
def test_resumed_within_an_iteration_it_ends_at_the_same_weights(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)

    def new(name: str) -> OnlineTDPOTrainer:
        return make_online(
            tmp_path / name, per_device_train_batch_size=2, iterations=2, passes=2, save_strategy="steps", save_steps=3,
            peft_config=None if kind == "full" else lora(lora_dropout=0.3), kl={"target": 0.02},
        )  # fmt: skip

    whole = new("whole")
    whole.train()
    first = new("killed")
    first.add_callback(StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    state = torch.load(tmp_path / "killed/checkpoint-3/online_state_0.pt", weights_only=True)
    assert state["iteration"]["number"] == 0, "the checkpoint lies within an iteration"
    again = new("killed")
    again.train(resume_from_checkpoint=True)
    expected = trained_weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in trained_weights(again).items())
    assert [line["margin"] for line in lines(again)] == [line["margin"] for line in lines(whole)]
    assert [line["kl_coefficient"] for line in lines(again)] == [line["kl_coefficient"] for line in lines(whole)]
    assert len({line["kl_coefficient"] for line in lines(again)}) == 2 and lines(again)[0]["kl_target"] == 0.02


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples_per_prompt": 1}, "a pair needs two responses to a prompt"),
        ({"per_device_train_batch_size": 3}, "= 3 pairs, which does not divide the 4 prompts of an iteration"),
        ({"completions": 15}, "no whole number of prompts"),
        ({"loss": "dpo", "alpha": 0.3}, "alpha=0.3 has no effect with loss='dpo'"),
        ({"min_margin": -1.0}, "min_margin must be a number ≥ 0"),
        ({"passes": 0}, "passes must be a whole number ≥ 1"),
        ({"max_steps": 3}, "max_steps has no effect"),
        ({"num_train_epochs": 2}, "num_train_epochs has no effect"),
        ({"gamma": 0.5}, "gamma=0.5 has no effect with loss='tdpo2'; leave it out or use loss='simpo'"),
        ({"loss": "kl", "samples_per_prompt": 1}, "a pair needs two responses to a prompt"),
        ({"loss": "kl", "completions": 12, "samples_per_prompt": 3}, "two by two; draw an even number"),
        ({"loss": "kl", "min_margin": 0.5}, "min_margin=0.5 has no effect with loss kl"),
        ({"loss": "kl", "missing_end_penalty": 0.5}, "missing_end_penalty=0.5 has no effect with loss kl"),
        ({"loss": "kl", "kl": {"on": "chosen"}}, "kl with on='chosen' has no effect with loss='kl'"),
        ({"loss": "kl", "per_device_train_batch_size": 3}, "= 3 pairs, which does not divide the 8 pairs of an iter"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        online_settings(tmp_path, **changes)


@pytest.mark.parametrize("kind", ["pairs", "ppo"])
def test_the_metric_for_the_best_model_is_one_that_evaluations_log(kind: str, tmp_path: Path) -> None:
    best = {"eval_dataset": PROMPTS[:2], "eval_strategy": "steps", "eval_steps": 1}

    def trainer(**changes: Any) -> Any:
        if kind == "pairs":
            return make_online(tmp_path, **best, **changes)
        return make_ppo(build_model("llama"), tmp_path, build_tokenizer(), letters, PROMPTS, **best, **changes)

    with pytest.raises(ValueError, match=r"'rewards_mean' is not logged .* Did you mean 'reward_mean'\?"):
        trainer(metric_for_best_model="rewards_mean")
    with pytest.raises(ValueError, match=r"'loss' \(which load_best_model_at_end .* is not logged"):
        trainer(load_best_model_at_end=True, save_strategy="steps", save_steps=1)
    made = trainer(metric_for_best_model="eval_reward_mean")
    assert {f"eval_{name}" for name in made.evaluation_names()} == made.evaluate().keys()


# Distillation


@pytest.mark.parametrize("direction", ["reverse", "forward", "js"])
def test_distillation_moves_the_policy_to_the_teacher_without_a_reward(direction: str, tmp_path: Path) -> None:
    """One token of ten words: nothing but the teacher's distribution has a KL of zero."""
    policy, teacher, tokenizer = bandit_model(), bandit_model(seed=1), word_tokenizer()
    with torch.no_grad():
        teacher.lm_head.weight.mul_(3.0)
    start, goal = distribution(policy, tokenizer), distribution(teacher, tokenizer)
    trainer = make_online(
        tmp_path, model=policy, tokenizer=tokenizer, ref_model=teacher, reward=None, prompts=[PROMPT], iterations=60,
        completions=8, samples_per_prompt=2, max_new_tokens=1, per_device_train_batch_size=4, learning_rate=0.03,
        loss="kl", kl={"direction": direction},
    )  # fmt: skip
    trainer.train()
    end = distribution(policy, tokenizer)
    assert total_divergence(start, goal) > 0.2
    assert total_divergence(end, goal) < 1e-3
    logged = [line for line in trainer.state.log_history if "kl_term" in line]
    assert (len(logged), logged[0]["pairs"]) == (60, 4)
    assert logged[0]["reverse_kl"] > 0.05 > logged[-1]["reverse_kl"]
    compared = {"accuracy", "margin", "chosen_logp", "prompts_without_pair", "reward_mean"}
    assert not compared & logged[0].keys()


def test_distillation_logs_a_reward_and_does_not_learn_from_it(tmp_path: Path) -> None:
    """A constant reward is no mistake here, and another reward gives the same weights."""
    results = []
    for number, reward in enumerate((lambda completions, **_: [1.0] * len(completions), letters, None)):
        trainer = make_online(
            tmp_path / str(number), reward=reward, iterations=4, loss="kl", ref_model=teacher_model(),
            eval_dataset=PROMPTS[:2],
        )  # fmt: skip
        trainer.train()
        logged = [line for line in trainer.state.log_history if "kl_term" in line]
        assert ("reward_mean" in logged[0]) == (reward is not None)
        assert ("eval_reward_mean" in trainer.evaluate()) == (reward is not None)
        results.append(trained_weights(trainer))
    assert all(torch.equal(weight, other[name]) for other in results[1:] for name, weight in results[0].items())
    shown = read_jsonl(tmp_path / "2" / "completions.jsonl")
    assert shown and all(line["reward"] is None for line in shown)


def test_only_distillation_does_without_a_reward(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reward_funcs is missing"):
        make_online(tmp_path, reward=None)
    with pytest.raises(ValueError, match="learns from a teacher: pass it as ref_model"):
        make_online(tmp_path, reward=None, loss="kl")
    with pytest.raises(ValueError, match="reward_weights has no effect without reward_funcs"):
        make_online(tmp_path, reward=None, loss="kl", ref_model=teacher_model(), reward_weights=[1.0])


def teacher_model() -> Any:
    teacher = build_model("llama")
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return teacher
