"""PPO killed with SIGKILL at any moment and resumed ends with the weights of a run that was not, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.devices import make_deterministic
from helpers.ppo_cases import PROMPTS, letters, logs, make_ppo
from helpers.several_processes import clean_processes
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import lora, trained_weights
from tdpo.batches import PromptResponses, ResponseCollator, RowCosts
from tdpo.runs.checkpoints import find_checkpoints, mark_complete
from tdpo.runs.inputs import INPUTS_FILE
from tdpo.scoring.row_forms import RowForm
from tdpo.training import PPOTrainer
from tdpo.training.online.judging import Judge
from tdpo.training.online.meter import LearningMeter
from tdpo.training.online.rollouts import Rollout

# 4 iterations of 4 updates, a checkpoint every 3: some lie between iterations, most within one.
UPDATES, SAVE_STEPS = 16, 3
KINDS = ["full", "lora with dropout"]
TIMES = ("generation_seconds", "learning_seconds", "judging_seconds")


@pytest.fixture(autouse=True, scope="module")
def _one_order_of_sums() -> Iterator[None]:
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)


def new_trainer(folder: Path, kind: str) -> PPOTrainer:
    return make_ppo(
        build_model("llama"), folder, build_tokenizer(), letters, PROMPTS,
        peft_config=None if kind == "full" else lora(lora_dropout=0.3),
        kl={"coefficient": 0.1, "target": 0.01, "horizon": 50}, iterations=4, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, learning_rate=3e-3, normalize_rewards=True, warmup_steps=3, target_kl=0.05,
        save_strategy="steps", save_steps=SAVE_STEPS, save_total_limit=1,
    )  # fmt: skip


def victim(folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    make_deterministic()
    new_trainer(Path(folder), kind).train()


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    with clean_processes(__name__) as context:
        yield context


def kill(context: Any, folder: Path, kind: str, draw: random.Random) -> None:
    """Kill a training process at a random moment after its first checkpoint."""
    process = context.Process(target=victim, args=(str(folder), kind))
    process.start()
    deadline = time.monotonic() + 120
    while not find_checkpoints(folder).complete:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(draw.uniform(0.0, 0.1))
    process.kill()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PPOTrainer]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainers = {}
    for kind in KINDS:
        trainers[kind] = new_trainer(tmp_path_factory.mktemp("whole"), kind)
        trainers[kind].train()
    torch.set_num_threads(threads)
    return trainers


def same_end(trainer: PPOTrainer, whole: PPOTrainer, folder: Path) -> None:
    expected = trained_weights(whole)
    for name, weight in trained_weights(trainer).items():
        assert torch.equal(weight, expected[name]), name
    for name, value in trainer.critic.state_dict().items():
        assert torch.equal(value, whole.critic.state_dict()[name]), name
    assert trainer.collector.kl_coefficient.value == whole.collector.kl_coefficient.value
    assert trainer.collector.reward_scale.state_dict() == whole.collector.reward_scale.state_dict()
    a, b = logs(trainer)[-1], logs(whole)[-1]
    unsteady = {name for name in b if name.endswith("per_second") or name in (*TIMES, "peak_memory_mib")}
    assert {k: v for k, v in a.items() if k not in unsteady} == {k: v for k, v in b.items() if k not in unsteady}
    lines = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    whole_lines = Path(str(whole.args.output_dir)) / "completions.jsonl"
    assert lines == [json.loads(line) for line in whole_lines.read_text().splitlines()]
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 8, 12, 16, 16]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), [("full", 0), ("lora with dropout", 1), ("full", 2)])
def test_killed_and_resumed(
    kind: str, seed: int, processes: Any, uninterrupted: dict[str, PPOTrainer], tmp_path: Path
) -> None:
    kill(processes, tmp_path, kind, random.Random(seed))
    trainer = new_trainer(tmp_path, kind)
    trainer.train(resume_from_checkpoint=True)
    same_end(trainer, uninterrupted[kind], tmp_path)


def as_of_earlier_versions(state: dict[str, Any], last_logs: dict[str, Any]) -> dict[str, Any]:
    """The content of ppo_state_0.pt as it was when its values lay apart and a unit was a pair."""
    rest, iteration = {k: v for k, v in state.items() if k != "iteration"}, state["iteration"]
    if iteration is None:  # the numbers of the iteration that is over were kept
        fresh = LearningMeter().state_dict()
        return {**rest, "rollout": None, "logs": last_logs, "stopped": False, "skipped": 0, "learning": fresh}
    return {
        **rest,
        "rollout": earlier_layout(iteration["rollout"]),
        "logs": iteration["logs"],
        "stopped": iteration["is_stopped"],
        "skipped": iteration["skipped_updates"], "learning": iteration["learning"],
    }  # fmt: skip


@pytest.mark.parametrize("step", [3, 12])
def test_checkpoints_of_earlier_versions_go_on(step: int, uninterrupted: dict[str, PPOTrainer], tmp_path: Path) -> None:
    from helpers.training_cases import StopAt

    first = new_trainer(tmp_path, "full")
    first.add_callback(StopAt(step + 1))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    path = tmp_path / f"checkpoint-{step}" / "ppo_state_0.pt"
    earlier = as_of_earlier_versions(torch.load(path, weights_only=True), {"kl_coefficient": 0.1})
    assert {"rollout", "logs", "stopped", "skipped", "learning"} <= earlier.keys()
    torch.save(earlier, path)
    mark_complete(path.parent)
    again = new_trainer(tmp_path, "full")
    again.train(resume_from_checkpoint=True)
    same_end(again, uninterrupted["full"], tmp_path)


@pytest.mark.parametrize("step", [3, 12])
def test_resumed_within_an_iteration_and_between_two(
    step: int, uninterrupted: dict[str, PPOTrainer], tmp_path: Path
) -> None:
    """The rollout that is being learned from is part of the checkpoint; one that is used up is not."""
    from helpers.training_cases import StopAt

    first = new_trainer(tmp_path, "full")
    first.add_callback(StopAt(step + 1))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    state = torch.load(tmp_path / f"checkpoint-{step}" / "ppo_state_0.pt", weights_only=True)
    assert (state["iteration"] is None) == (step % 4 == 0)
    again = new_trainer(tmp_path, "full")
    again.train(resume_from_checkpoint=True)
    same_end(again, uninterrupted["full"], tmp_path)


def earlier_layout(rollout: dict[str, Any]) -> dict[str, Any]:
    """A rollout as versions wrote it whose unit was a pair; of single responses the second one was empty."""
    triples = [
        (prompt, *(responses if len(responses) == 2 else (*responses, []))) for prompt, responses in rollout["units"]
    ]
    lengths = torch.tensor([len(triple[k]) for k in (1, 2) for triple in triples])
    return {**rollout, "units": triples, "lengths": lengths}


@pytest.mark.parametrize("together", [1, 2])
def test_units_of_earlier_versions_are_read(together: int) -> None:
    units = [PromptResponses([1, 2], [[3, i], [4] * i][:together]) for i in range(1, 4)]
    rollout = Rollout(0, units, *(torch.arange(12.0) for _ in range(4)), reference={}, kl_scale=0.5)
    for state in (rollout.state_dict(), earlier_layout(rollout.state_dict())):
        again = Rollout.from_state_dict(state)
        assert [(u.prompt_ids, [*u.responses]) for u in again.units] == [(u.prompt_ids, u.responses) for u in units]
        assert again.order.lengths.tolist() == rollout.order.lengths.tolist()
        assert again.kl_scale == 0.5


def test_the_trajectory_depends_on_what_is_restored(
    uninterrupted: dict[str, PPOTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the rollout of its checkpoint a run would end elsewhere: the comparison above can fail."""
    from helpers.training_cases import StopAt

    first = new_trainer(tmp_path, "full")
    first.add_callback(StopAt(4))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    path = tmp_path / "checkpoint-3" / "ppo_state_0.pt"
    torch.save({**torch.load(path, weights_only=True), "iteration": None}, path)
    mark_complete(path.parent)
    again = new_trainer(tmp_path, "full")
    again.train(resume_from_checkpoint=True)
    expected = trained_weights(uninterrupted["full"])
    assert any(not torch.equal(w, expected[n]) for n, w in trained_weights(again).items())


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path: Path) -> None:
    first = new_trainer(tmp_path, "full")
    first.train()
    newest = find_checkpoints(tmp_path).newest
    assert newest is not None
    (newest / "ppo_state_0.pt").unlink()
    mark_complete(newest)
    with pytest.raises(ValueError, match=r"holds no ppo_state_0\.pt: it was not written by PPO"):
        new_trainer(tmp_path, "full").train(resume_from_checkpoint=True)


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    new_trainer(tmp_path, "full").train()
    again = make_ppo(
        build_model("llama"), tmp_path, build_tokenizer(), letters, [*PROMPTS[:-1], "the dog"], iterations=4,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, save_strategy="steps", save_steps=SAVE_STEPS,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"training prompts: was \d+ prompts \(\w+\), is \d+ prompts"):
        again.train(resume_from_checkpoint=True)
    newest = find_checkpoints(tmp_path).newest
    assert newest is not None
    (newest / INPUTS_FILE).unlink()  # as of earlier versions, whose state knows the prompts
    mark_complete(newest)
    with pytest.raises(ValueError, match="written by a run on other prompts than these"):
        again.train(resume_from_checkpoint=True)


def test_a_run_without_a_critic_goes_on_and_none_with_one_becomes_one(
    uninterrupted: dict[str, PPOTrainer], tmp_path: Path
) -> None:
    from helpers.training_cases import StopAt

    def critic_free(name: str) -> PPOTrainer:
        kl = {
            "direction": "reverse",
            "form": "exact",
            "place": "loss",
            "coefficient": 0.1,
            "target": 0.01,
            "horizon": 50,
        }
        return make_ppo(
            build_model("llama"), tmp_path / name, build_tokenizer(), letters, PROMPTS, kl=kl, advantage="rloo",
            iterations=2, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=3e-3,
            save_strategy="steps", save_steps=SAVE_STEPS,
        )  # fmt: skip

    whole, first = critic_free("whole"), critic_free("killed")
    whole.train()
    first.add_callback(StopAt(SAVE_STEPS + 2))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = critic_free("killed")
    again.train(resume_from_checkpoint=True)
    expected = trained_weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in trained_weights(again).items())
    with_critic = find_checkpoints(Path(str(uninterrupted["full"].args.output_dir))).newest
    with pytest.raises(ValueError, match=r"by a run with a critic .*, and this is one without a critic"):
        critic_free("other").train(resume_from_checkpoint=str(with_critic))
    without = find_checkpoints(tmp_path / "whole").newest
    with pytest.raises(ValueError, match=r"by a run without a critic .*, and this is one with a critic"):
        new_trainer(tmp_path / "gae", "full").train(resume_from_checkpoint=str(without))


# ---- what a GPU needs that a CPU does not ----


def test_a_resumed_run_asks_its_machine_how_rows_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint holds the layout; masks as ranges, and which rows cost less, belong to where the models run."""

    def trainer() -> PPOTrainer:
        return make_ppo(
            build_model("llama"), tmp_path, build_tokenizer(), letters, PROMPTS, iterations=1,
            per_device_train_batch_size=2, ppo_epochs=2, save_strategy="steps", save_steps=1,
        )  # fmt: skip

    def collator_of(trainer: PPOTrainer) -> Any:
        return trainer.collector.judge.collator

    trainer().train()
    form = RowForm(costs=RowCosts(per_token=1, per_pair=0, ranged=False))
    monkeypatch.setattr("tdpo.training.online.collecting.row_form", lambda *_: form)
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(find_checkpoints(tmp_path).complete[0]))
    assert collator_of(resumed).share_prefixes and collator_of(resumed).costs == form.costs


def test_what_a_restored_rollout_says_of_the_reference_goes_where_the_policy_is() -> None:
    args: Any = SimpleNamespace(device=torch.device("meta"))
    statistics: Any = SimpleNamespace(source=SimpleNamespace(head=None))
    judge = Judge(statistics, None, ResponseCollator(0), args, nullcontext)
    part = judge.recalled({"hidden": torch.zeros(5, 3)}, torch.tensor([0, 4]))
    assert part.values["hidden"].device == args.device and part.values["hidden"].shape == (2, 3)
