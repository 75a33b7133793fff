"""`TDPOTrainer`: a reference that stays put, and numbers that are what they say."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from helpers.tiny_models import build_model
from helpers.training_cases import (
    METRICS,
    TRAIN_ONLY,
    different_model,
    expected_logs,
    lora,
    make_trainer,
    pair_numbers,
    plain_rows,
    train_logs,
    trained_weights,
)
from tdpo.guards.texts import markdown_text
from tdpo.models import causal_lm_of, load_causal_lm
from tdpo.records.best_update import best_in_words
from tdpo.records.json_files import read_json, write_json
from tdpo.report.run_facts import provenance_table
from tdpo.report.run_reading import load_runs

Folders = Callable[[str], Path]
KLS = ("chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl", "rejected_reverse_kl")


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model: Any, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


# ---- the reference ----


@pytest.mark.parametrize("precision", ["float32", "bf16 weights", "bf16 autocast", "mixed of bf16"])
@pytest.mark.parametrize("kind", ["copy", "adapter-off", "second model", "folder", "full logits"])
def test_policy_and_reference_start_equal_to_the_last_bit(
    kind: str, precision: str, tokenizer: Any, tiny_folder: Folders, tmp_path: Path
) -> None:
    """A KL that is not exactly 0 at the start means two models that are computed in two ways."""
    dtype = torch.bfloat16 if precision in ("bf16 weights", "mixed of bf16") else torch.float32
    mixed = {"precision": "bfloat16-mixed"} if precision == "mixed of bf16" else {}
    model, given = build_model("llama", dtype=dtype), None
    if kind == "second model":
        given = build_model("llama", dtype=dtype)
    elif kind == "folder":
        # Saved in float32 and loaded in the policy's dtype, whatever that is.
        model = load_causal_lm(tiny_folder("llama"), dtype=str(dtype).removeprefix("torch."))
        given = str(tiny_folder("llama"))
    adapter = {"adapter-off": lora(), "full logits": lora("lm_head", lora_dropout=0.5)}.get(kind)
    trainer = make_trainer(
        model,
        tmp_path,
        tokenizer,
        ref_model=given,
        peft_config=adapter,
        eval_rows=plain_rows(3, seed=1),
        bf16=precision == "bf16 autocast",
        max_steps=1,
        **mixed,
    )
    expected = {"folder": "second model", "full logits": "adapter-off"}.get(kind, kind)
    assert trainer.reference.kind == expected
    assert (trainer.statistics.path.head is None) == (kind == "full logits")
    trainer.train()
    [logged] = train_logs(trainer)
    assert [logged[name] for name in KLS] == pytest.approx([0.0] * 4, abs=1e-12)
    assert logged["margin"] == pytest.approx(0.0, abs=1e-12)
    assert logged["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert logged["grad_norm"] > 0.01


@pytest.mark.parametrize("kind", ["copy", "adapter-off"])
def test_autocast_reaches_policy_and_reference(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """The body is called past the forward that accelerate wraps, so the trainer has to ask for bf16 itself."""
    trainer = make_trainer(
        build_model("llama"), tmp_path, tokenizer, peft_config=lora() if kind == "adapter-off" else None, bf16=True
    )
    seen: list[torch.dtype] = []
    for model in filter(None, (trainer.model, trainer.reference.model)):
        body = causal_lm_of(model).model.layers[0].mlp.down_proj
        body.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.train()
    assert len(seen) == 4, "two updates, policy and reference each"
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_the_reference_does_not_change_during_training(tokenizer: Any, tmp_path: Path) -> None:
    given = build_model("llama")
    before = state_of(given)
    for trainer in (
        make_trainer(build_model("llama"), tmp_path, tokenizer, ref_model=given),
        make_trainer(build_model("llama"), tmp_path, tokenizer),
    ):
        assert same_state(trainer.reference.model, before)
        trainer.train()
        assert same_state(trainer.reference.model, before)
        assert not same_state(trainer.model, before), "the policy does change"
    adapted = make_trainer(build_model("llama"), tmp_path, tokenizer, peft_config=lora())
    base = {n: p.clone() for n, p in adapted.model.named_parameters() if "lora_" not in n}
    adapted.train()
    assert all(torch.equal(p, base[n]) for n, p in adapted.model.named_parameters() if n in base)


def test_training_an_adapter_on_starts_from_the_adapter(tokenizer: Any, tiny_folder: Folders, tmp_path: Path) -> None:
    """A folder with an adapter is a policy; its reference is the adapter as it was, not the base without it."""
    first = make_trainer(str(tiny_folder("llama")), tmp_path / "first", tokenizer, peft_config=lora())
    first.train()
    first.save_model(str(tmp_path / "adapter"))
    second = make_trainer(str(tmp_path / "adapter"), tmp_path / "second", tokenizer, lr_scheduler_type="constant")
    start = trained_weights(second)
    assert start
    assert all("lora_" in name for name in start)
    second.train()
    assert second.reference.kind == "copy"
    assert [train_logs(second)[0][name] for name in KLS] == pytest.approx([0.0] * 4, abs=1e-12)
    assert not any(torch.equal(p, start[n]) for n, p in trained_weights(second).items())
    assert all(torch.equal(p, start[n]) for n, p in second.reference.model.named_parameters() if n in start)


def test_a_seed_decides_how_an_adapter_starts(tokenizer: Any, tmp_path: Path) -> None:
    def start(seed: int, noise: int) -> torch.Tensor:
        model = build_model("llama")
        torch.manual_seed(noise)
        trainer = make_trainer(model, tmp_path, tokenizer, peft_config=lora(), seed=seed)
        return next(p for n, p in trainer.model.named_parameters() if "lora_A" in n).detach()

    assert torch.equal(start(1, noise=1), start(1, noise=2))
    assert not torch.equal(start(1, noise=1), start(2, noise=1))


# ---- the numbers ----


class Odd(hf.LlamaForCausalLM):
    """A model whose logits are no linear head on its body's hidden states."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 0.1 * output.logits.square()
        return output


@pytest.mark.parametrize("loss", ["tdpo2", "tdpo1", "dpo", "ipo", "f_dpo_forward", "f_dpo_js", "simpo"])
def test_without_an_understood_head_the_numbers_are_the_same(loss: str, tokenizer: Any, tmp_path: Path) -> None:
    model = build_model("llama")
    model.__class__ = Odd
    reference = different_model(model)
    trainer = make_trainer(
        model,
        tmp_path,
        tokenizer,
        ref_model=reference,
        loss=loss,
        per_device_train_batch_size=8,
        max_steps=1,
    )
    assert "full logits from the model's own forward, at more memory" in trainer.describe()
    expected = expected_logs(pair_numbers(build_odd(), reference, trainer.train_dataset), loss)
    trainer.train()
    [logged] = train_logs(trainer)
    for name in METRICS:
        assert logged[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


def test_sft_moves_the_chosen_responses_alone(tokenizer: Any, tmp_path: Path) -> None:
    """One step of plain gradient descent is that of the mean −log π(chosen), whatever the rejected ones are."""
    moved = []
    for rejected in ("no", "something else"):
        rows = [{**row, "rejected": f"{row['rejected']} {rejected}"} for row in plain_rows(4)]
        model = build_model("llama")
        trainer = make_trainer(
            model, tmp_path / rejected, tokenizer, rows, loss="sft", optim="sgd", learning_rate=0.1, max_steps=1,
            max_grad_norm=1e9, lr_scheduler_type="constant",
        )  # fmt: skip
        pairs = list(trainer.train_dataset)
        trainer.train()
        moved.append([p.detach().clone() for p in model.parameters()])
    direct = build_model("llama")
    for pair in pairs:
        ids = torch.tensor([pair.prompt_ids + pair.chosen_ids])
        logp = direct(ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[len(pair.prompt_ids) - 1 :]
        (-logp.sum() / len(pairs)).backward()
    for one, other, start in zip(*moved, direct.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        if start.grad is not None:
            torch.testing.assert_close(one, (start - 0.1 * start.grad).detach(), rtol=1e-4, atol=1e-5)


def test_ipo_trains_to_its_optimum_and_stops_there(tokenizer: Any, tmp_path: Path) -> None:
    """A pair that is only ever labelled one way ends at h = 1/(2β), where DPO would go on."""
    trainer = make_trainer(
        build_model("llama"), tmp_path, tokenizer, plain_rows(2), eval_rows=plain_rows(2), loss="ipo", beta=0.25,
        learning_rate=3e-3, max_steps=60, lr_scheduler_type="linear",
    )  # fmt: skip
    trainer.train()
    first = train_logs(trainer)[0]
    assert (first["loss"], first["margin"], first["accuracy"]) == (pytest.approx(1 / (4 * 0.25**2)), 0.0, 0.5)
    found = trainer.evaluate()
    assert found["eval_loss"] < 0.01, "from 4: within 0.1 of 2 nats, on average"
    assert found["eval_margin"] == pytest.approx(0.5, abs=0.025) and found["eval_accuracy"] == 1.0


def build_odd() -> Any:
    model = build_model("llama")
    model.__class__ = Odd
    return model


def test_an_evaluation_equals_a_direct_computation(tokenizer: Any, tmp_path: Path) -> None:
    """Seven pairs in batches of four: the ragged last batch weighs as many pairs as it has."""
    model = build_model("llama")
    reference = different_model(model)
    trainer = make_trainer(
        model, tmp_path, tokenizer, ref_model=reference, eval_rows=plain_rows(7, seed=2), label_smoothing=0.1
    )
    expected = expected_logs(pair_numbers(model, reference, trainer.eval_dataset), "tdpo2", label_smoothing=0.1)
    found = trainer.evaluate()
    for name in METRICS:
        assert found[f"eval_{name}"] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name
    given_now = trainer.evaluate(plain_rows(7, seed=2), metric_key_prefix="test")
    assert given_now["test_loss"] == found["eval_loss"], "rows given to evaluate are read as the constructor's are"


@pytest.mark.parametrize(
    ("kl", "which"),
    [
        ({"direction": "reverse"}, lambda chosen, rejected: 0.5 * (chosen["reverse_kl"] + rejected["reverse_kl"])),
        ({"direction": "reverse", "on": "chosen"}, lambda chosen, rejected: chosen["reverse_kl"]),
        ('{"on": "rejected"}', lambda chosen, rejected: rejected["forward_kl"]),
    ],
)
def test_a_kl_beside_the_loss_is_added_outside_the_sigmoid(kl: Any, which: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Loss and logs beside explicit sums over full logits; margin and rewards are those of the loss alone."""
    model = build_model("llama")
    reference = different_model(model)
    trainer = make_trainer(
        model, tmp_path, tokenizer, ref_model=reference, eval_rows=plain_rows(5, seed=2), loss="tdpo1", kl=kl
    )
    numbers = pair_numbers(model, reference, trainer.eval_dataset)
    expected = expected_logs(numbers, "tdpo1", kl=(0.1, which))
    found = trainer.evaluate()
    for name in METRICS:
        assert found[f"eval_{name}"] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name
    term = sum(which(chosen, rejected) for chosen, rejected in numbers) / len(numbers)
    assert found["eval_kl_term"] == pytest.approx(term, rel=1e-5) and found["eval_kl_coefficient"] == 0.1


def test_several_evaluation_sets_are_reported_by_name(tokenizer: Any, tmp_path: Path) -> None:
    sets = {"easy": plain_rows(3, seed=1), "hard": plain_rows(5, seed=2)}
    trainer = make_trainer(
        build_model("llama"), tmp_path, tokenizer, eval_rows=sets, eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    by_split = {line["split"]: line for line in lines}
    assert set(by_split) == {"train", "eval_easy", "eval_hard", "summary"}
    assert {*METRICS} <= set(by_split["eval_hard"])
    direct = trainer.evaluate(sets["hard"])
    assert by_split["eval_hard"]["loss"] == pytest.approx(direct["eval_loss"], abs=1e-7)
    assert trainer.tokenization["eval_easy"]["pairs"] == 3


def test_metrics_file_holds_every_number_of_every_step(tokenizer: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        build_model("llama"),
        tmp_path,
        tokenizer,
        eval_rows=plain_rows(5, seed=1),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    evals = [line for line in lines if line["split"] == "eval"]
    assert [line["step"] for line in train] == [1, 2, 3, 4]
    assert [line["step"] for line in evals] == [2, 4]
    for line in train:
        assert {*METRICS, *TRAIN_ONLY, "step", "epoch", "time_s"} <= set(line)
    for line in evals:
        assert {*METRICS, "step", "epoch", "time_s"} <= set(line)
    for line in train + evals:
        assert all(math.isfinite(value) for value in line.values() if not isinstance(value, str))
    assert [line["time_s"] for line in lines] == sorted(line["time_s"] for line in lines)
    for mine, theirs in zip(train, train_logs(trainer), strict=True):
        assert {name: mine[name] for name in METRICS} == {name: theirs[name] for name in METRICS}
    tokens = sum(len(p.prompt_ids) for p in trainer.train_dataset)
    assert tokens
    assert 0 < train[-1]["pairs_per_second"] < train[-1]["tokens_per_second"]
    assert 50 < train[-1]["peak_memory_mib"] < 1e6


def test_evaluating_and_saving_do_not_count_as_training_time(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps by hours before training and in every evaluation, so that no load of the machine can hide it."""
    jumps = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + jumps[0])
    monkeypatch.setattr("tdpo.training.logged_metrics.time", clock)

    class Slow(hf.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            jumps[0] += 10_000

    trainer = make_trainer(
        build_model("llama"),
        tmp_path,
        tokenizer,
        eval_rows={"a": plain_rows(1), "b": plain_rows(2)},
        callbacks=[Slow()],
        eval_strategy="steps",
        eval_steps=1,
    )
    jumps[0] += 10_000
    trainer.train()
    rates = [line["pairs_per_second"] for line in train_logs(trainer)]
    assert min(rates) > 4 / 1000, "four pairs in less than the clock's jumps"
    assert max(rates) < 1e5, "and not in no time"


def test_the_best_checkpoint_can_be_loaded_at_the_end(tokenizer: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        build_model("llama"),
        tmp_path,
        tokenizer,
        eval_rows=plain_rows(8),
        max_steps=3,
        learning_rate=1e-3,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_chosen_forward_kl",
        greater_is_better=False,
    )
    trainer.train()
    assert trainer.state.best_global_step == 1, "the KL only grows"
    evaluated = next(line for line in trainer.state.log_history if "eval_loss" in line)
    assert {f"eval_{name}" for name in trainer.evaluation_names()} == evaluated.keys() - {"step", "epoch"}
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1"}
    best = load_causal_lm(tmp_path / "checkpoint-1").state_dict()
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())

    # What is written of this model is said of the update that it is of, and not of the last one.
    trainer.save_model(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    first = next(line for line in train_logs(trainer) if line["step"] == 1)
    held_out = next(line for line in trainer.state.log_history if line["step"] == 1 and "eval_loss" in line)
    assert "| | training log of update 1 | held-out pairs |" in card
    assert f"| {first['loss']:.4g} | {held_out['eval_loss']:.4g} |" in card
    said = f"update 1 of 3 (best eval_chosen_forward_kl, {held_out['eval_chosen_forward_kl']:.4g})"
    assert f"- the weights are those of {markdown_text(said)}" in card
    for folder in (tmp_path, tmp_path / "model"):
        [run] = load_runs([folder])
        assert best_in_words(run.best) == said
        assert f"The model is that of {said}: the curves go on after it." in run.notes
    rows = {row.title: row.cells[0].text for row in provenance_table([run]).rows}
    assert rows["Weights"] == f"of {said}"
    record = read_json(tmp_path / "trainer.json")
    write_json(tmp_path / "trainer.json", {**record, "best": {**record["best"], "step": 3}})
    [run] = load_runs([tmp_path])
    assert run.best["step"] == 3 and not any("curves go on" in note for note in run.notes)
    trainer.evaluate()
    last = trainer.state.log_history[-1]["eval_margin"]
    assert f"| margin | {first['margin']:.4g} | {last:.4g} |" in trainer.model_card(), "an evaluation of the best model"


def test_a_log_averages_the_steps_since_the_last_one(tokenizer: Any, tmp_path: Path) -> None:
    def run(logging_steps: int, **changes: Any) -> list[dict[str, float]]:
        trainer = make_trainer(
            build_model("llama"),
            tmp_path,
            tokenizer,
            max_steps=4,
            logging_steps=logging_steps,
            learning_rate=1e-3,
            **changes,
        )
        trainer.train()
        return train_logs(trainer)

    # Evaluations between the logs belong to no log of the training.
    each, pairs = run(1), run(2, eval_rows=plain_rows(5, seed=3), eval_strategy="steps", eval_steps=1)
    assert len(pairs) == 2
    for name in METRICS:
        if name != "policy_entropy":  # weighted by tokens
            assert pairs[1][name] == pytest.approx((each[2][name] + each[3][name]) / 2, rel=1e-5, abs=1e-6), name


def test_tensorboard_receives_our_metrics(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="an extra package, which `make test` has")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(
        build_model("llama"), tmp_path, tokenizer, report_to=["tensorboard"], eval_rows=plain_rows(2, seed=1)
    )
    trainer.train()
    trainer.evaluate()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    names = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in (*METRICS, "tokens_per_second")} <= names
    assert {f"eval/{name}" for name in METRICS} <= names
    logged = [line["margin"] for line in train_logs(trainer)]
    assert [e.value for e in events.Scalars("train/margin")] == pytest.approx(logged, rel=1e-5)


def test_label_smoothing_changes_the_loss_and_not_the_margin(tokenizer: Any, tmp_path: Path) -> None:
    model = build_model("llama")
    reference = different_model(model, size=0.2)

    def evaluated(smoothing: float) -> dict[str, float]:
        trainer = make_trainer(
            model, tmp_path, tokenizer, ref_model=reference, eval_rows=plain_rows(1), label_smoothing=smoothing
        )
        return trainer.evaluate()

    plain, smooth = evaluated(0.0), evaluated(0.25)
    margin = plain["eval_margin"]
    assert abs(margin) > 0.1
    assert smooth["eval_margin"] == pytest.approx(margin, rel=1e-6)
    right, wrong = math.log1p(math.exp(-margin)), math.log1p(math.exp(margin))
    assert plain["eval_loss"] == pytest.approx(right, rel=1e-5)
    assert smooth["eval_loss"] == pytest.approx(0.75 * right + 0.25 * wrong, rel=1e-5)


def test_each_update_is_shown_with_its_own_numbers(tmp_path: Path, tokenizer: Any, tiny_folder: Folders) -> None:
    """transformers ends a step before it logs it: shown then, an update would have the numbers of the one before."""
    from tdpo.training.callbacks import RunStatus

    class Run:
        def set_status(self, *_: Any, **__: Any) -> None: ...

    shown: list[tuple[int, str]] = []
    trainer = make_trainer(str(tiny_folder("llama")), tmp_path / "run", tokenizer, logging_steps=1)
    note = lambda logs: f"{logs['loss']}" if "loss" in logs else None  # noqa: E731
    trainer.add_callback(RunStatus(Run(), lambda step, _, note: shown.append((step, note)), note))  # type: ignore[arg-type]
    trainer.train()
    logged = [(line["step"], f"{line['loss']}") for line in trainer.state.log_history if "loss" in line]
    assert len(logged) > 1 and shown == [(0, ""), *logged]
