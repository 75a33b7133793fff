"""PPO and online pairs on two processes: one policy, one critic, and the update of one process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.ppo_cases import PROMPTS, letters, make_online, make_ppo
from helpers.several_processes import run_two_processes
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import trained_weights
from tdpo.rewards.functions import FLAT_ITERATIONS
from tdpo.training import OnlineTDPOTrainer, PPOTrainer

ADAPTIVE = {"coefficient": 0.1, "target": 0.01, "horizon": 50}
EXACT = {**ADAPTIVE, "direction": "reverse", "form": "exact", "place": "loss"}
KINDS: dict[str, dict[str, Any]] = {
    "gae": {"kl": ADAPTIVE, "value_learning_rate": 1e-2},
    "rloo": {"kl": EXACT, "advantage": "rloo"},
}
COMPARED = (
    "loss", "grad_norm", "reward_mean", "reward_std", "penalized_reward_mean", "forward_kl", "reverse_kl", "kl_k1",
    "kl_k3", "kl_coefficient", "policy_entropy", "policy_loss", "value_loss", "ratio_mean", "approx_kl", "length_mean",
    "finished_share", "pairs", "margin", "chosen_forward_kl", "rejected_reverse_kl",
    "reference_updates",
)  # fmt: skip


def distributed_run(folder: Path) -> None:
    """What every process does, launched or alone: all completions of a rollout in one update, so order is no matter."""
    for name, own in KINDS.items():
        one_run(folder / name, ppo(folder / name, own))
    one_run(folder / "pairs", pairs(folder / "pairs"))
    if processes() == 2:
        processes_agree_on_rewards(folder / "rewards")


def processes_agree_on_rewards(folder: Path) -> None:
    """The reward says another thing in each process, and the same of all responses there."""
    number = float(os.environ["RANK"])
    trainer = make_ppo(
        build_model("llama"), folder, build_tokenizer(), lambda completions, **_: [number] * len(completions), PROMPTS,
        eval_dataset=["a small house"], max_new_tokens=2,
    )  # fmt: skip
    judged = torch.tensor([trainer.evaluate()["eval_reward_mean"]])
    assert trainer.accelerator.gather(judged).tolist() == [0.0, 0.0], "or they would choose unlike best models"
    for iteration in range(FLAT_ITERATIONS + 1):
        trainer.collector.sample(trainer.model, iteration)
    assert trainer.collector.constancy.varied and not trainer.collector.constancy.flat, "the rewards of all vary"


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def ppo(folder: Path, own: dict[str, Any]) -> PPOTrainer:
    return make_ppo(
        build_model("llama"), folder / "run", build_tokenizer(), letters, PROMPTS,
        iterations=3, learning_rate=1e-2, optim="sgd", per_device_train_batch_size=4 // processes(),
        gradient_accumulation_steps=2, normalize_rewards=True, save_strategy="steps", save_steps=3, **own,
    )  # fmt: skip


def pairs(folder: Path) -> OnlineTDPOTrainer:
    """In the second of three iterations one process has pairs and the other has none; the reference moves twice."""
    calls = []

    def reward(prompts: list[Any], completions: list[str], **_: Any) -> list[float]:
        calls.append(prompts)
        last = len(calls) == 2
        texts = zip(prompts, completions, strict=True)
        return [float(len(text)) if not last or prompt == PROMPTS[0] else 1.0 for prompt, text in texts]

    return make_online(
        folder / "run", reward=reward, iterations=3, optim="sgd", per_device_train_batch_size=2 // processes(),
        gradient_accumulation_steps=2, save_strategy="steps", save_steps=3, reference_update={"weight": 0.5},
    )  # fmt: skip


def one_run(folder: Path, trainer: Any) -> None:
    assert trainer.args.world_size == processes(), "accelerate launched what it was asked for"
    trainer.train()
    weights: dict[str, Any] = {**trained_weights(trainer)}
    if getattr(trainer, "critic", None) is not None:
        weights["critic"] = trainer.critic.head.weight.detach()
    if isinstance(trainer, OnlineTDPOTrainer):
        reference = dict(trainer.statistics.reference_model.named_parameters())
        weights.update({f"reference.{name}": reference[name].detach() for name in trained_weights(trainer)})
    if processes() == 2:
        mine = torch.cat([w.flatten() for w in weights.values()])
        both = trainer.accelerator.gather(mine[None])
        assert torch.equal(both[0], both[1]), "the processes hold one model"
    if trainer.is_world_process_zero():
        torch.save(weights, folder / "weights.pt")
        logged = [line for line in trainer.state.log_history if "generation_seconds" in line]
        (folder / "logs.json").write_text(json.dumps(logged))


@pytest.mark.slow
def test_two_processes_give_the_update_of_one(tmp_path: Path) -> None:
    run_two_processes(__name__, tmp_path / "two")
    (tmp_path / "one").mkdir()
    distributed_run(tmp_path / "one")
    for kind in (*KINDS, "pairs"):
        agree(tmp_path / "two" / kind, tmp_path / "one" / kind)
    files = {kind: {p.name for p in (tmp_path / "two" / kind / "run/checkpoint-3").iterdir()} for kind in KINDS}
    assert {"COMPLETE", "ppo_state_0.pt", "ppo_state_1.pt", "critic.pt"} <= files["gae"]
    assert "critic.pt" not in files["rloo"]
    alone = ppo(tmp_path / "alone", KINDS["rloo"])
    with pytest.raises(ValueError, match=r"ppo_state_1.pt too.*not written by PPO on as many processes as there are"):
        alone.train(resume_from_checkpoint=str(tmp_path / "two/rloo/run/checkpoint-3"))


def agree(two_folder: Path, one_folder: Path) -> None:
    two, one = (json.loads((folder / "logs.json").read_text()) for folder in (two_folder, one_folder))
    assert len(two) == len(one) == 3
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for name in set(COMPARED) & theirs.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    expected = torch.load(one_folder / "weights.pt")
    for name, weight in torch.load(two_folder / "weights.pt").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)
