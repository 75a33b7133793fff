"""PPO and online pairs under FSDP2 on two processes: the updates of one process, and checkpoints that go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.ppo_cases import PROMPTS, letters, make_online, make_ppo, online_settings, ppo_settings
from helpers.sharding_on_cpus import fresh_accelerator, put_together, run_two_sharded, shard_on_cpus  # noqa: F401
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import StopAt, lora
from tdpo.models import load_causal_lm
from tdpo.training import OnlineTDPOTrainer
from tdpo.training.online.critic_training import CRITIC_OPTIMIZER_FILE

HELD_OUT = ["a small house", "the dog on"]
ADAPTIVE = {"coefficient": 0.1, "target": 0.01, "horizon": 50}
EXACT = {**ADAPTIVE, "form": "exact", "place": "loss"}
ADAPTER = lora("q_proj", "v_proj", "down_proj")
# What is trained → (family, adapter or None, the rest).
PPO: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "value head": ("llama", None, {"kl": ADAPTIVE, "value_learning_rate": 1e-2}),
    "critic of its own": ("llama", ADAPTER, {"kl": {**EXACT, "direction": "forward"}, "value_learning_rate": 1e-2}),
    "tied, no critic": ("qwen2", None, {"kl": {**EXACT, "direction": "reverse"}, "advantage": "rloo"}),
}
PAIRS = {"reference that moves": {"reference_update": {"weight": 0.5}}, "adapter": {"peft_config": ADAPTER}}
RECIPES: dict[str, dict[str, Any]] = {
    "train": {"training": {"max_steps": 2, "batch_size": 4, "optimizer": "sgd", "learning_rate": 0.1}},
    "ppo": {
        "rollouts": {"completions": 8, "samples_per_prompt": 2, "max_new_tokens": 4},
        "ppo": {
            "iterations": 2,
            "epochs": 1,
            "minibatch_size": None,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "save_every": 1,
        },
    },
}
UNSTEADY = ("seconds", "per_second", "memory", "runtime", "epoch")


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def ppo(trained: str, folder: Path, **changes: Any) -> Any:
    family, adapter, own = PPO[trained]
    fresh_accelerator()
    if trained == "critic of its own":
        torch.manual_seed(5)
        changes["value_model"] = build_model("llama")
    return make_ppo(
        build_model(family), folder, build_tokenizer(), letters, PROMPTS, peft_config=adapter, eval_dataset=HELD_OUT,
        **{
            "iterations": 2, "learning_rate": 1e-2, "optim": "sgd", "per_device_train_batch_size": 4 // processes(),
            "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "normalize_rewards": True, **own, **changes,
        },
    )  # fmt: skip


def pairs(kind: str, folder: Path, **changes: Any) -> OnlineTDPOTrainer:
    """In the second iteration one process has pairs and the other has none."""
    fresh_accelerator()
    calls = []

    def reward(prompts: list[Any], completions: list[str], **_: Any) -> list[float]:
        calls.append(prompts)
        texts = zip(prompts, completions, strict=True)
        return [float(len(text)) if len(calls) != 2 or prompt == PROMPTS[0] else 1.0 for prompt, text in texts]

    return make_online(
        folder, reward=reward, eval_dataset=HELD_OUT,
        **{
            "iterations": 3, "optim": "sgd", "per_device_train_batch_size": 2 // processes(),
            "gradient_accumulation_steps": 2, **PAIRS[kind], **changes,
        },
    )  # fmt: skip


def everything_trained(trainer: Any) -> dict[str, torch.Tensor]:
    weights = put_together(trainer.model)
    if getattr(trainer, "critic", None) is not None:
        weights |= {f"critic.{name}": weight for name, weight in put_together(trainer.critic).items()}
    if getattr(trainer, "_moving", None) is not None:
        reference = put_together(trainer.statistics.reference_model, trained_only=False)
        weights |= {f"reference.{name}": weight for name, weight in reference.items()}
    return weights


# ---- what every process does, launched or alone ----


def distributed_run(folder: Path) -> None:
    for number, (kind, make) in enumerate([*((k, ppo) for k in PPO), *((k, pairs) for k in PAIRS)]):
        trainer = make(kind, folder / str(number))
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        trainer.save_model(folder / kind / "model")
        weights = everything_trained(trainer)
        if trainer.is_world_process_zero():
            lines = [line for line in trainer.state.log_history if "generation_seconds" in line]
            found = {"logs": lines, "evaluations": [before, after], "model": type(trainer.model).__name__}
            critic = getattr(trainer, "critic", None)
            found["critic"] = type(None if critic is None else critic.body).__name__
            found["reference"] = type(trainer.statistics.reference_model).__name__
            (folder / kind / "found.json").write_text(json.dumps(found))
            torch.save(weights, folder / kind / "weights.pt")


def only_when_sharded(folder: Path) -> None:
    """Checkpoints of both kinds, within an iteration and between two: asserted where it runs."""
    adam = {"optim": "adamw_torch", "learning_rate": 3e-3, "save_strategy": "steps"}
    ends_like_uninterrupted(lambda **c: ppo("critic of its own", **adam, **c), folder / "within", "SHARDED", 1)
    ends_like_uninterrupted(lambda **c: ppo("value head", **adam, **c), folder / "between", "FULL", 2)
    ends_like_uninterrupted(lambda **c: pairs("reference that moves", **adam, **c), folder / "pairs", "SHARDED", 2)


def ends_like_uninterrupted(make: Any, folder: Path, kind: str, step: int) -> None:
    config = {"version": 2, "state_dict_type": f"{kind}_STATE_DICT", "reshard_after_forward": kind == "SHARDED"}
    settings = {"fsdp": True, "fsdp_config": config, "save_steps": step}
    whole = make(folder=folder / "whole", **settings)
    whole.train()
    first = make(folder=folder / "stopped", **settings)
    first.add_callback(StopAt(step + 1))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = make(folder=folder / "stopped", **settings)
    again.train(resume_from_checkpoint=str(folder / "stopped" / f"checkpoint-{step}"))
    expected, found = everything_trained(whole), everything_trained(again)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0, msg=lambda m, n=name: f"{folder.name} {n}: {m}")
    assert whole.state.global_step == again.state.global_step > step
    assert (folder / f"whole/checkpoint-{step}" / CRITIC_OPTIMIZER_FILE).exists() == hasattr(whole, "critic")


def recipes(folder: Path) -> None:
    """`tdpo train` and `tdpo ppo` on a model that is loaded by its folder's name."""
    from tdpo.cli.app import app

    for command, settings in RECIPES.items():
        fresh_accelerator()
        inputs = folder.parent
        given = {
            "run_dir": str(folder / command), "model": {"name": str(inputs / "tiny"), "lora": {"rank": 4}}, **settings,
        }  # fmt: skip
        if command == "train":
            given["data"] = {"train": str(inputs / "rows.jsonl")}
        else:
            given["prompts"] = {"train": str(inputs / "prompts.jsonl")}
            given["rewards"] = [{"function": f"{inputs / 'mine.py'}:brevity"}]
        recipe = folder / f"{command}.{os.environ.get('RANK', '0')}.yaml"
        recipe.write_text(json.dumps(given))
        assert not app([command, str(recipe)], standalone_mode=False), "the command says what is wrong"


def write_inputs(place: Path) -> None:
    build_model("llama").save_pretrained(place / "tiny")
    build_tokenizer().save_pretrained(place / "tiny")
    rows = [{"prompt": p, "chosen": "a cat", "rejected": "the dog ran"} for p in PROMPTS]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    (place / "mine.py").write_text("def brevity(completions, **_):\n    return [-len(c) for c in completions]\n")


# ---- the comparison ----


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Folders of the same trainings under FSDP2 on two processes (CPU, gloo), and on one process."""
    place = tmp_path_factory.mktemp("online_fsdp")
    two, one = place / "two", place / "one"
    one.mkdir()
    write_inputs(place)
    run_two_sharded(__name__, two, ("distributed_run", "only_when_sharded", "recipes"))
    distributed_run(one)
    recipes(one)
    yield two, one


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*PPO, *PAIRS])
def test_sharded_training_is_that_of_one_process(both: tuple[Path, Path], kind: str) -> None:
    two, one = (json.loads((folder / kind / "found.json").read_text()) for folder in both)
    assert two["model"].startswith("FSDP") and not one["model"].startswith("FSDP")
    for beside in ("critic", "reference"):
        assert two[beside].startswith("FSDP") == (one[beside] != "NoneType"), f"the {beside} is sharded too"
    assert len(two["logs"]) == len(one["logs"]) == (3 if kind in PAIRS else 2)
    for mine, theirs in zip([*two["logs"], *two["evaluations"]], [*one["logs"], *one["evaluations"]], strict=True):
        assert mine.keys() == theirs.keys()
        for name in {name for name in theirs if not any(part in name for part in UNSTEADY)}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    assert one["evaluations"][0]["eval_forward_kl"] == 0 < 1e-6 < one["evaluations"][1]["eval_forward_kl"]
    found, expected = (torch.load(folder / kind / "weights.pt") for folder in both)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["value head", "reference that moves"])
def test_the_model_is_saved_whole(both: tuple[Path, Path], kind: str) -> None:
    weights = torch.load(both[0] / kind / "weights.pt")
    saved = dict(load_causal_lm(both[0] / kind / "model").named_parameters())
    assert saved and all(torch.equal(weight, weights[name]) for name, weight in saved.items())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "ppo"])
def test_commands_train_sharded_from_a_recipe(both: tuple[Path, Path], command: str) -> None:
    two, one = (load_file(folder / command / "model" / "adapter_model.safetensors") for folder in both)
    assert two.keys() == one.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert any(weight.abs().max() > 0 for name, weight in one.items() if "lora_B" in name), "something was learned"


def test_fsdp1_is_refused_with_what_to_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for make in (lambda: ppo("value head", tmp_path), lambda: pairs("adapter", tmp_path)):
        with pytest.raises(ValueError, match=r"FSDP1 shards the head.*--fsdp_version 2"):
            make()


class Engine:
    """Stands in for accelerate's DeepSpeedPlugin, whose package the tests do not have."""

    def set_mixed_precision(self, _: str) -> None: ...

    def set_deepspeed_weakref(self) -> None: ...


def test_deepspeed_is_refused_also_where_the_launcher_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("accelerate.utils.DeepSpeedPlugin", Engine)
    for settings, method in ((ppo_settings, "PPO"), (online_settings, "online preference learning")):
        with pytest.raises(ValueError, match=rf"DeepSpeed does not train {method}.*--fsdp_version 2"):
            settings(tmp_path)
