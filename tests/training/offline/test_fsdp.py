"""FSDP2 on two processes gives the losses, norms and weights of one process, whatever its units hold."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from helpers.kernel_cases import HAS_TRITON, use_tiles_of
from helpers.several_processes import TWO_ON_CPUS, launch_environment
from helpers.sharding_on_cpus import fresh_accelerator, put_together, run_two_sharded, shard_on_cpus  # noqa: F401
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import (
    METRICS,
    different_model,
    lora,
    make_trainer,
    plain_rows,
    train_logs,
)
from tdpo.models import find_head, load_causal_lm, response_hidden
from tdpo.token_statistics import Head, implementations, linear_token_stats
from tdpo.token_statistics.cuda import choice
from tdpo.training import TDPOConfig
from tdpo.training.resumption import check_form
from tdpo.training.sharding import check_sharding

# 12 pairs at 8 an update: the second update is a ragged 4, the third goes into a second, reshuffled epoch.
ROWS, UPDATES = 12, 3
HEAD = "lm_head"
# What is trained → (family, adapter or None). The head's unit, as accelerate makes them, is in brackets.
TRAINED: dict[str, tuple[str, Any]] = {
    "all weights": ("llama", None),  # [final norm, head]
    "all weights, tied": ("qwen2", None),  # [final norm, embedding, head]
    "adapter": ("llama", lora("q_proj", "v_proj", "down_proj")),  # [head], frozen
    "adapter, tied": ("qwen2", lora("q_proj", "down_proj")),  # [embedding, head], frozen
    "adapter on the head": ("llama", lora("q_proj", HEAD)),  # [head with its adapter]
    "adapter and head": ("llama", lora("q_proj", modules_to_save=[HEAD])),  # [head and its trained copy]
    "head alone": ("llama", lora(HEAD)),  # nothing that requires a gradient leaves the model's forward
}
CASES = [
    *((trained, impl) for trained in list(TRAINED)[:3] for impl in ("tiled", "dense")),
    *((trained, "tiled") for trained in list(TRAINED)[3:]),
]


def run(trained: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    family, adapter = TRAINED[trained]
    fresh_accelerator()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = make_trainer(
        build_model(family, dtype=dtype),
        folder,
        build_tokenizer(),
        plain_rows(ROWS),
        peft_config=adapter,
        **{
            "per_device_train_batch_size": 4 // processes,
            "gradient_accumulation_steps": 2,
            "max_steps": UPDATES,
            "learning_rate": 1e-2 if adapter is None else 6e-2,
            "optim": "sgd",
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,  # below every norm of these runs: all are clipped
            **changes,
        },
    )
    trainer.train(resume_from_checkpoint=changes.get("resume_from_checkpoint"))
    return trainer


# ---- what every process does, launched or alone ----


def distributed_run(folder: Path) -> None:
    found: dict[str, Any] = {}
    for trained, impl in CASES:
        trainer = run(trained, folder / trained / impl, head_impl=impl)
        evaluated = trainer.evaluate(plain_rows(7, seed=5))  # 7 pairs do not divide by 2 processes × 4
        trainer.save_model(folder / trained / impl / "model")
        weights = put_together(trainer.model)
        found[f"{trained}, {impl}"] = {
            "logs": train_logs(trainer),
            "eval": {name: evaluated[f"eval_{name}"] for name in METRICS},
            "model": type(trainer.model).__name__,
            "reference": type(trainer.reference.model).__name__,
        }
        if trainer.is_world_process_zero():
            torch.save(weights, folder / trained / impl / "weights.pt")
            (folder / "found.json").write_text(json.dumps(found))


def only_when_sharded(folder: Path) -> None:
    """Checkpoints of both kinds, a half-precision start, other units, and what is sent: asserted where it runs."""
    resumed_run_ends_like_uninterrupted("all weights", "SHARDED_STATE_DICT", folder)
    resumed_run_ends_like_uninterrupted("adapter on the head", "FULL_STATE_DICT", folder)
    policy_starts_at_the_reference_in_bf16(folder)
    for impl in ("tiled", "dense"):
        one_unit_gathers_once_and_averages(impl)
    if HAS_TRITON:
        kernels_take_gathered_heads("all weights", "tiled", "linear_statistics", folder)
        kernels_take_gathered_heads("adapter", "frozen", "statistics", folder)


def kernels_take_gathered_heads(trained: str, impl: str, operation: str, folder: Path) -> None:
    """Two updates by the head's kernels, in Triton's interpreter, are those by the plain walk; the second has a KL."""
    from tdpo.token_statistics.cuda import frozen, tiled  # which need Triton

    small = {"head_impl": impl, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 2}
    place, calls = folder / f"kernels {trained}", []
    plain = run(trained, place, **small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "in_interpreter", True)
        patch.setattr(implementations, "kernels_agree", lambda *_: True)
        use_tiles_of(512, 512, patch)
        module: Any = tiled if impl == "tiled" else frozen
        compute = getattr(module, operation)
        patch.setattr(module, operation, lambda *a: (calls.append(operation), compute(*a))[1])
        ours = run(trained, place, **small)
    assert calls == 2 * [operation] and type(ours.model).__name__.startswith("FSDP")
    for mine, theirs in zip(train_logs(ours), train_logs(plain), strict=True):
        for name in (*METRICS, "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), (trained, name)
    assert train_logs(ours)[-1]["chosen_forward_kl"] > 1e-5
    found, expected = put_together(ours.model), put_together(plain.model)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def resumed_run_ends_like_uninterrupted(trained: str, kind: str, folder: Path) -> None:
    sharded = {
        "fsdp": True,
        "fsdp_config": {"version": 2, "state_dict_type": kind, "reshard_after_forward": kind != "FULL_STATE_DICT"},
    }
    adam = {"optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2}
    place = folder / f"resumed {trained}"
    whole = run(trained, place, **sharded, **adam)
    resumed = run(trained, place, **sharded, **adam, resume_from_checkpoint=str(place / "checkpoint-2"))
    assert len(train_logs(resumed)) == UPDATES
    expected, found = put_together(whole.model), put_together(resumed.model)
    start = put_together(build_policy(trained))
    assert expected.keys() == found.keys() == start.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0, msg=lambda m, n=name: f"{trained} {n}: {m}")
    assert any(not torch.equal(expected[name], start[name]) for name in start)


def build_policy(trained: str) -> Any:
    from peft import get_peft_model

    family, adapter = TRAINED[trained]
    torch.manual_seed(0)
    return build_model(family) if adapter is None else get_peft_model(build_model(family), adapter)


def policy_starts_at_the_reference_in_bf16(folder: Path) -> None:
    for trained, dtype in (("all weights", torch.float32), ("adapter", torch.bfloat16)):
        trainer = run(trained, folder / f"bf16 {trained}", dtype=dtype, bf16=True, max_steps=1)
        (line,) = train_logs(trainer)
        assert line["chosen_forward_kl"] == line["rejected_reverse_kl"] == 0.0, "both models compute in one precision"
    trained_dtypes = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert trained_dtypes == {torch.float32}, "an adapter keeps its masters beside a base in 16 bits"


class Sent(TorchDispatchMode):
    """Counts what is sent between processes, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


def one_unit_gathers_once_and_averages(impl: Any) -> None:
    """A root that lets go of its weights after the forward: the head is in shards, as without units of its own."""
    from torch.distributed import get_rank
    from torch.distributed.fsdp import fully_shard

    model, alone = build_model("llama"), build_model("llama")
    reference = different_model(alone)
    head, alone_head, reference_head = find_head(model), find_head(alone), find_head(reference)
    fully_shard(model, reshard_after_forward=True)

    def loss(policy: Any, head: Head, rank: int) -> torch.Tensor:
        ids = torch.arange(12).reshape(2, 6) * 31 % 384 + rank
        inputs, index = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(3, 12)
        hidden = response_hidden(policy, inputs, index)
        with torch.no_grad():
            other = response_hidden(reference, inputs, index)
        stats = linear_token_stats(hidden, head(), other, reference_head(), ids.flatten()[index], impl=impl)
        return (stats.policy_logp - stats.forward_kl).sum()

    for synchronised in (True, False):
        model.set_requires_gradient_sync(synchronised)
        with Sent() as sent:
            own = loss(model, head, get_rank())
        assert sent.counts == {"_allgather_base_": 2}, f"one for the forward, one for the head: {sent.counts}"
        with Sent() as sent:
            own.backward()
        assert sent.counts == ({"_reduce_scatter_base_": 1} if synchronised else {}), sent.counts
    model.set_requires_gradient_sync(True)
    loss(model, head, get_rank()).backward()
    sum(3 * loss(alone, alone_head, rank) / 2 for rank in (0, 1)).backward()
    for (name, found), expected in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(
            found.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


# ---- the comparison ----


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Folders of the same trainings under FSDP2 on two processes (CPU, gloo), and on one process."""
    place = tmp_path_factory.mktemp("fsdp")
    two, one = place / "two", place / "one"
    one.mkdir()
    run_two_sharded(__name__, two, ("distributed_run", "only_when_sharded"))
    torch.manual_seed(0)
    distributed_run(one)
    yield two, one


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "impl"), CASES)
def test_sharded_training_is_that_of_one_process(both: tuple[Path, Path], trained: str, impl: str) -> None:
    two, one = (json.loads((folder / "found.json").read_text())[f"{trained}, {impl}"] for folder in both)
    assert two["model"].startswith("FSDP") and not one["model"].startswith("FSDP")
    assert two["reference"].startswith("FSDP") == (one["reference"] != "NoneType"), "the reference is sharded too"
    assert len(two["logs"]) == len(one["logs"]) == UPDATES
    for mine, theirs in zip(two["logs"], one["logs"], strict=True):
        for name in (*METRICS, "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert one["logs"][-1]["chosen_forward_kl"] > 1e-5, "the policy has moved"
    for name in METRICS:
        assert two["eval"][name] == pytest.approx(one["eval"][name], rel=1e-4, abs=1e-5), name
    found, expected = (torch.load(folder / trained / impl / "weights.pt") for folder in both)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "impl"), CASES)
def test_the_model_is_saved_whole(both: tuple[Path, Path], trained: str, impl: str) -> None:
    two, one = (folder / trained / impl for folder in both)
    weights = torch.load(two / "weights.pt")
    if TRAINED[trained][1] is None:
        saved = put_together(load_causal_lm(two / "model"))
        assert saved.keys() == weights.keys()
    else:
        saved, alone = (load_file(folder / "model" / "adapter_model.safetensors") for folder in (two, one))
        assert saved.keys() == alone.keys()  # peft saves more than what is trained where it has changed the head
        weights = {n.replace(".modules_to_save.default", "").replace(".default", ""): w for n, w in weights.items()}
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())


# ---- what cannot be trained ----


def test_fsdp1_is_refused_with_what_to_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"FSDP1 shards the head.*--fsdp_version 2"):
        make_trainer(build_model("llama"), tmp_path, build_tokenizer())
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_sharding(SimpleNamespace(fsdp_plugin_args=None))
    with pytest.raises(ValueError, match="FSDP1"):
        check_sharding(SimpleNamespace(fsdp_plugin_args={"fsdp_version": 1}))


def test_models_that_one_process_alone_loads_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `accelerate launch --use_fsdp --fsdp_version 2` asks for by default; other processes have empty weights."""
    launched = launch_environment(["--use_fsdp", "--fsdp_version", "2", *TWO_ON_CPUS, "script.py"])
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.setenv(name, launched[name])
    with pytest.raises(ValueError, match=r"first process alone loads.*`accelerate launch .*_loading false`"):
        make_trainer(build_model("llama"), tmp_path, build_tokenizer())
    asked = {"fsdp_version": 2, "cpu_ram_efficient_loading": True}
    with pytest.raises(ValueError, match="first process alone loads"):
        check_sharding(SimpleNamespace(fsdp_plugin_args=asked))
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    check_sharding(SimpleNamespace(fsdp_plugin_args=None))


def test_whole_and_sharded_checkpoints_are_not_taken_for_one_another(tmp_path: Path) -> None:
    trainer = make_trainer(
        build_model("llama"), tmp_path, build_tokenizer(), max_steps=1, save_strategy="steps", save_steps=1
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-1"
    with pytest.raises(
        ValueError, match=r"weights are whole .*this is one whose weights are sharded .*as it was launch"
    ):
        check_form(checkpoint, is_sharded=True)
    (checkpoint / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(ValueError, match=r"a run whose weights are sharded .*this is one whose weights are whole"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_zero3_is_refused_with_what_to_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tdpo.training.sharding.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"ZeRO-3 shards the head.*FSDP2.*ZeRO-2"):
        make_trainer(build_model("llama"), tmp_path, build_tokenizer())


def test_deepspeed_in_16_bits_is_refused_and_zero2_in_float32_is_not() -> None:
    """Its policy would be rounded and its reference not: KL above 0 at the start."""

    def launched(mixed: str = "no", precision: str = "auto", **enabled: bool) -> Any:
        config = {kind: {"enabled": value} for kind, value in enabled.items()}
        plugin = SimpleNamespace(deepspeed_config=config)
        return SimpleNamespace(deepspeed_plugin=plugin, mixed_precision=mixed, precision=precision)

    check_sharding(launched())
    check_sharding(launched(precision="float32", bf16=False))
    for args in (launched(bf16=True), launched("fp16"), launched(precision="bfloat16-mixed")):
        with pytest.raises(ValueError, match=r"DeepSpeed in 16 bits .* KL would not start at 0.*ZeRO-2 in float32"):
            check_sharding(args)


def test_deepspeed_on_a_cpu_talks_by_gloo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """accelerate names no backend there, and takes each process for the only one."""

    class Read(Exception):
        """transformers would begin to talk to other processes now."""

    def read(args: Any) -> None:
        raise Read(args.ddp_backend)

    def backend(**arguments: Any) -> Any:
        with pytest.raises(Read) as stopped:
            TDPOConfig(str(tmp_path), **arguments)
        return stopped.value.args[0]

    monkeypatch.setattr("transformers.TrainingArguments.__post_init__", read)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert backend() is None, "nobody launched it"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert backend() == "gloo" and backend(ddp_backend="mpi") == "mpi"
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert backend() is None
    monkeypatch.undo()
    assert TDPOConfig(str(tmp_path)).ddp_backend is None


def test_a_tied_head_is_saved_once_under_deepspeed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """accelerate copies DeepSpeed's weights one by one, and what was one tensor with two names becomes two."""
    config = build_model("llama").config
    config.tie_word_embeddings = True
    trainer = make_trainer(LlamaForCausalLM(config), tmp_path, build_tokenizer())
    copies = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    assert "lm_head.weight" in copies
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    trainer._save(str(tmp_path / "model"), state_dict=copies)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == copies.keys() - {"lm_head.weight"}
