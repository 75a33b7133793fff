"""Learning from responses that a server drew: the mismatch, its correction, and a run whose server goes away."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from helpers.ppo_cases import PROMPTS, letters, logs, make_online, make_ppo, ppo_settings
from helpers.run_cases import go, ppo_recipe_in, write_inputs, write_rows
from helpers.sharding_on_cpus import fresh_accelerator, run_two_sharded, shard_on_cpus  # noqa: F401
from helpers.tiny_models import build_model, build_tokenizer
from helpers.vllm_stand_in import VLLM, running_vllm
from tdpo.policy_gradient import clipped_policy_loss, truncated_importance_weights
from tdpo.records.files import write_text
from tdpo.records.names import ADAPTERS_FOLDER, MODEL_FOLDER
from tdpo.runs import RunDirectory
from tdpo.sampling.vllm.client import ServerError, WrongServer
from tdpo.token_statistics import TokenStats
from tdpo.training import PPOTrainer
from tdpo.training.callbacks import DrawingCallback
from tdpo.training.online import server_sampling
from tdpo.training.online.objective import RolloutTokens, objective
from tdpo.training.online.server_sampling import mismatch_numbers

pytestmark = pytest.mark.usefixtures("impatient")


def ppo(vllm: VLLM, folder: Path, **changes: Any) -> PPOTrainer:
    torch.manual_seed(0)
    own = {"peft_config": LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")}
    engine = {"sampling_engine": "vllm", "sampling_url": vllm.url}
    changes = {**own, **engine, "ppo_epochs": 1, "per_device_train_batch_size": 8, **changes}
    return make_ppo(build_model("llama"), folder, build_tokenizer(), letters, PROMPTS, **changes)


def test_ppo_learns_from_the_servers_responses(vllm: VLLM, tmp_path: Path) -> None:
    trainer = ppo(vllm, tmp_path)
    trainer.train()
    drawn = [body for body in vllm.asked if body.get("seed")]
    assert len(drawn) == 2 * 8 and len({body["seed"] for body in drawn}) == 16
    # Each iteration asks the adapter of its own weights; the first is what the run began with.
    assert [body["model"] for body in drawn] == [name for name in vllm.loads[1:] for _ in range(8)]
    assert len(set(vllm.loads)) == 3  # one of random weights, and two of the policy
    for line in logs(trainer):  # the stand-in runs the same model, so nothing but rounding is between the two
        assert 0 <= line["sampler_kl"] < 1e-9 and line["sampler_logp_difference_max"] < 1e-4
        assert line["sampler_ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert "truncated_share" not in logs(trainer)[0]
    trainer.sampler.close()
    assert not vllm.adapters


def test_importance_weights_of_a_rollout(vllm: VLLM, tmp_path: Path) -> None:
    vllm.logp_shift = 1e-3  # the policy gives every token a little less than the sampler says
    trainer = ppo(vllm, tmp_path, importance_weight_cap=2.0, iterations=1)
    weights = trainer.collector.collect(trainer.model, 0, 0).rollout.importance_weights
    assert weights is not None
    torch.testing.assert_close(weights, torch.full_like(weights, -1e-3).exp(), atol=2e-5, rtol=0)
    trainer.collector.args.importance_weight_cap = 0.5
    iteration = trainer.collector.collect(trainer.model, 0, 0)
    assert iteration.logs["truncated_share"] == 1.0
    assert iteration.logs["sampler_kl"] == pytest.approx(1e-6 / 2, rel=0.1)
    weights = iteration.rollout.importance_weights
    assert weights is not None and weights.tolist() == [0.5] * len(weights)
    assert type(iteration.rollout).from_state_dict(iteration.rollout.state_dict()).importance_weights is weights


def test_tokens_and_their_probabilities_stay_together(vllm: VLLM, tmp_path: Path) -> None:
    """A rollout has another order than sampling, and responses of different lengths: the server's numbers follow."""
    trainer = ppo(vllm, tmp_path, iterations=1, max_new_tokens=12, per_device_train_batch_size=4)
    difference = trainer.collector.collect(trainer.model, 0, 0).logs["sampler_logp_difference_max"]
    assert difference < 1e-4


def test_the_weight_multiplies_the_policys_loss_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    logp, old, sampler, advantages = (torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(4))
    weights = truncated_importance_weights(old, sampler, 1.5)
    assert weights.tolist() == [min(float(torch.exp(a - b)), 1.5) for a, b in zip(old, sampler, strict=True)]
    assert 0 < int((weights == 1.5).sum()) < 7
    args = ppo_settings("unused", value_coefficient=0.1)
    values = torch.randn(7, generator=generator, dtype=torch.float64)
    stats = TokenStats(logp, logp, torch.zeros_like(logp))
    rest = {"old_values": values + 1, "returns": values - 2}
    plain, weighted = (
        objective(args, stats, values, RolloutTokens(old, advantages, **rest, importance_weights=given), 0.0)
        for given in (None, weights)
    )
    policy = clipped_policy_loss(logp, old, advantages, args.clip_range).per_token
    torch.testing.assert_close(weighted.per_token - plain.per_token, (weights - 1) * policy)


def test_the_mismatch_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    logp, sampler = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.9], dtype=torch.float64)
    numbers = mismatch_numbers(logp, sampler, lambda sums: sums)
    up, down = torch.tensor([0.5, -0.1], dtype=torch.float64).exp().tolist()
    assert numbers["sampler_kl"] == pytest.approx(((up - 1 - 0.5) + (down - 1 + 0.1)) / 2)
    assert numbers["sampler_ratio_mean"] == pytest.approx((up + down) / 2)
    assert numbers["sampler_ratio_max"] == pytest.approx(up)
    assert numbers["sampler_logp_difference_max"] == pytest.approx(0.5)
    assert "draws from another distribution" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        mismatch_numbers(logp, logp.double() + 0.01, lambda sums: sums)
    assert not caplog.text


class FullAfterAnUpdate(TrainerCallback):
    """Others' adapters take all the room of a server before the second iteration."""

    def __init__(self, vllm: VLLM) -> None:
        self.vllm = vllm

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.vllm.slots, self.vllm.is_pinned = 0, True


@pytest.mark.parametrize("why", ["gone", "full"])
def test_a_run_whose_server_went_away_goes_on_as_if_it_had_stayed(vllm: VLLM, tmp_path: Path, why: str) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "iterations": 3}
    whole = ppo(vllm, tmp_path / "whole", **saving)
    whole.train()
    interrupted = ppo(vllm, tmp_path / "interrupted", **saving)
    if why == "full":
        interrupted.add_callback(FullAfterAnUpdate(vllm))
    else:
        vllm.broken = {len(vllm.asked) + 8 + n: "gone" for n in range(200)}  # from the second iteration on
    with pytest.raises(ServerError, match="no room.*--resume" if why == "full" else "did not answer.*--resume"):
        interrupted.train()
    assert len(logs(interrupted)) == 1
    vllm.broken, vllm.slots = {}, 1
    vllm.adapters.clear()  # the server was started anew
    resumed = ppo(vllm, tmp_path / "interrupted", **saving)
    resumed.train(resume_from_checkpoint=True)
    ends = (dict(trainer.model.named_parameters()) for trainer in (whole, resumed))
    for (name, one), other in zip(next(ends).items(), next(ends).values(), strict=True):
        assert torch.equal(one, other), name
    assert [line["reward_mean"] for line in logs(whole)] == [line["reward_mean"] for line in logs(resumed)]


@pytest.fixture
def inputs(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    write_rows(tmp_path / "held_out.jsonl", [{"prompt": "say five"}, {"prompt": "say six"}])
    return write_inputs(tmp_path, tiny_folder("llama"))


def recipe_of(vllm: VLLM, inputs: Path, name: str) -> Any:
    server = ("sampling.engine=vllm", f"sampling.url={vllm.url}")
    return ppo_recipe_in(
        inputs, f"run_dir={inputs / name}", f"environment.held_out={inputs / 'held_out.jsonl'}", *server
    )


def test_a_server_that_goes_away_at_the_last_evaluation_costs_no_training(vllm: VLLM, inputs: Path) -> None:
    whole = go(recipe_of(vllm, inputs, "whole"))
    asked = len(vllm.asked)
    vllm.broken = {2 * asked - 2 + n: "gone" for n in range(20)}  # each of two held-out prompts is answered once
    with pytest.raises(ServerError, match="--resume"):
        go(recipe_of(vllm, inputs, "stopped"))
    assert not vllm.adapters
    stopped = RunDirectory(inputs / "stopped")
    assert stopped.status()["state"] == "failed" and not (stopped.path / MODEL_FOLDER).exists()
    vllm.broken = {}
    before = len(vllm.asked)
    go(recipe_of(vllm, inputs, "stopped"), resume=True)
    assert [body["max_tokens"] for body in vllm.asked[before:]][-2:] == [4, 4] and len(vllm.asked) - before < asked - 4
    one, other = (load_file(run.model_path / "adapter_model.safetensors") for run in (whole, stopped))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_bar_of_a_run_moves_while_responses_are_drawn(vllm: VLLM, inputs: Path) -> None:
    shown: list[tuple[int, int, str]] = []
    go(recipe_of(vllm, inputs, "run"), progress=lambda *line: shown.append(line))
    drawn = [f"{count}/4 responses drawn" for count in (1, 2, 3)]
    begun = shown.index((0, 2, drawn[0]))
    assert shown[begun : begun + 4] == [*((0, 2, note) for note in drawn), (0, 2, "")]
    # In the second iteration what the first one logged stands beside it.
    assert [note.partition(" · ")[0] for done, _, note in shown if done == 1 and "drawn" in note][:3] == drawn
    assert all(" · reward " in note for done, _, note in shown if done == 1 and "/4 responses drawn" in note)
    assert shown[-1][0] == 2 and "drawn" not in shown[-1][2]


def test_callbacks_are_told_how_far_drawing_is(tmp_path: Path) -> None:
    class Told(DrawingCallback):
        told: list[tuple[int, int, int]] = []  # noqa: RUF012

        def on_drawing(self, state: Any, drawn: int, total: int) -> None:
            self.told.append((state.global_step, drawn, total))

    trainer = make_online(tmp_path)
    trainer.add_callback(Told())
    trainer.train()
    for step in (0, 1):
        drawn = [told[1:] for told in Told.told if told[0] == step]
        assert drawn == sorted(drawn) and drawn[0] == (0, 16) and drawn[-1] == (16, 16)


def test_no_adapter_stays_where_a_run_fails_before_its_first_update(
    vllm: VLLM, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: RunDirectory) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(RunDirectory, "begin", full)
        go(recipe_of(vllm, inputs, "run"))
    assert vllm.loads and not vllm.adapters
    with running_vllm(build_model("llama", seed=1)) as other, pytest.raises(WrongServer, match="does not compute"):
        go(recipe_of(other, inputs, "wrong"))
    assert not other.adapters and not any((inputs / "wrong" / ADAPTERS_FOLDER).glob("*"))


def sharded_ppo(folder: Path) -> None:
    """What each of two processes does: the first one is the server, too."""
    fresh_accelerator()
    url = folder / "url"
    with running_vllm() if os.environ["RANK"] == "0" else nullcontext() as server:
        if server is not None:
            write_text(url, server.url)
        while not url.exists():
            time.sleep(0.02)
        vllm: Any = SimpleNamespace(url=url.read_text())
        trainer = ppo(vllm, folder, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.1)
        trainer.train()
        first, second = logs(trainer)
        assert type(trainer.model).__name__.startswith("FSDP")
        assert first["reverse_kl"] < 1e-6 < 1e-3 < second["reverse_kl"]
        assert first["sampler_logp_difference_max"] < 1e-4 and second["sampler_logp_difference_max"] < 1e-4
        trainer.accelerator.wait_for_everyone()  # the server answers until both are done


@pytest.mark.slow
def test_a_sharded_policy_hands_its_whole_adapter_over(tmp_path: Path) -> None:
    run_two_sharded(__name__, tmp_path / "two", ("sharded_ppo",))


def test_online_pairs_come_from_the_server(vllm: VLLM, tmp_path: Path) -> None:
    trainer = make_online(
        tmp_path, iterations=1, sampling_engine="vllm", sampling_url=vllm.url,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), eval_dataset=PROMPTS[:2],
    )  # fmt: skip
    trainer.train()
    line = next(line for line in trainer.state.log_history if "pairs" in line)
    assert 0 <= line["sampler_kl"] < 1e-9 and line["sampler_ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    before = len(vllm.asked)
    assert trainer.evaluate()["eval_reward_mean"] < 1.0 and len(vllm.asked) == before + 2
    assert vllm.asked[-1]["model"] == vllm.loads[-1] != vllm.loads[0]  # the trained adapter answers


def test_what_no_server_can_sample_is_refused(vllm: VLLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sampling_engine=vllm samples with the adapter .* all weights are trained"):
        ppo(vllm, tmp_path, peft_config=None)
    with running_vllm(max_rank=0) as other, pytest.raises(WrongServer, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        ppo(other, tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampling_url": "http://here:1"}, "sampling_url has no effect with engine built-in"),
        ({"sampling_engine": "vllm"}, "sampling_url is missing"),
        ({"importance_weight_cap": 2.0}, "importance_weight_cap has no effect with sampling_engine=built-in"),
        (
            {"sampling_engine": "vllm", "sampling_url": "http://here:1", "merge_adapter": False},
            "merge_adapter=False has no effect with sampling_engine=vllm",
        ),
    ],
)
def test_arguments_without_effect_are_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        ppo_settings(tmp_path, **changes)


@pytest.mark.parametrize("process", [0, 1])
def test_one_process_hands_over_for_all_and_all_fail_together(process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[Any]] = []

    def broadcast(outcome: list[Any]) -> None:
        if process:
            outcome[:] = sent.pop(0)
        else:
            sent.append(list(outcome))

    monkeypatch.setattr(server_sampling, "broadcast_object_list", broadcast)
    args: Any = SimpleNamespace(world_size=2, process_index=process)
    error = ServerError("gone")
    sent += [["name", None], [None, error]] if process else []
    called: list[int] = []

    def make() -> str:
        called.append(1)
        if len(called) > 1:
            raise error
        return "name"

    do = server_sampling._once_for_all(args)
    assert do(make) == "name"
    with pytest.raises(ServerError, match="gone"):
        do(make)
    assert len(called) == (0 if process else 2)
    assert sent == ([] if process else [["name", None], [None, error]])
