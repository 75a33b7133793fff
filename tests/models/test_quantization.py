"""Bases in four and eight bits: exact numbers on the dequantised weights, and what cannot be done is said."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, MixtralConfig

from helpers.naive_loss import naive_loss
from helpers.ppo_cases import PROMPTS, letters, logs, make_ppo
from helpers.tiny_models import build_model
from helpers.training_cases import (
    METRICS,
    StopAt,
    expected_logs,
    lora,
    make_trainer,
    pair_numbers,
    plain_rows,
    settings,
    train_logs,
    trained_weights,
)
from tdpo.config import RecipeError, load_recipe
from tdpo.models import find_head, load_causal_lm, merged_adapter, quantization, quantization_config, reference_for
from tdpo.models.quantization import has_plain_weight, read_note, write_note
from tdpo.models.quantized_sizes import describe_quantization
from tdpo.reference_cache import model_digest
from tdpo.runs.inputs import ChangedInputs
from tdpo.scoring.head_path import choose_head_path
from tdpo.training.policy import prepare_policy
from tdpo.training.saving import save_merged
from tdpo.workflows.prerequisites import check_policy, missing_packages

Folder = Callable[[str], Path]
IDS = torch.arange(20)[None] * 31 % 384


def choice(bits: int, **more: Any) -> Any:
    return SimpleNamespace(**{"bits": bits, "type": None, "nested": None, **more})


def load(folder: Path, bits: int, **more: Any) -> Any:
    return load_causal_lm(folder, quantization=quantization_config(choice(bits, **more)))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(IDS).logits
    return found


def plain_base(folder: Path, bits: int) -> Any:
    """The quantised base as plain weights, by transformers alone."""
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(**(four if bits == 4 else {"load_in_8bit": True}))
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).dequantize(torch.float32).eval()


def trainer_on(model: Any, folder: Path, tokenizer: Any, **more: Any) -> Any:
    changes = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant", **more}
    return make_trainer(model, folder, tokenizer, plain_rows(4), peft_config=lora(), **changes)


def test_four_bits_train_to_the_numbers_of_the_dequantised_base(
    tiny_folder: Folder, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One step by hand on plain weights, from the checkpoint of the first; then the result is loaded and merged."""
    from peft import PeftModel

    caplog.set_level("INFO")
    folder, rate = tiny_folder("llama"), 0.015
    plain = {"optim": "sgd", "learning_rate": rate, "max_grad_norm": 0.0, "loss": "tdpo2", "beta": 0.3, "alpha": 0.7}
    trainer = trainer_on(load(folder, 4), tmp_path / "t", tokenizer, **plain)
    assert trainer.statistics.path.name == "frozen" and "adapter off" in trainer.describe()
    assert "The base is quantised, in 4 bits (nf4, nested scales)" in caplog.text
    trainer.train()
    first, second = train_logs(trainer)
    for name in ("chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl", "rejected_reverse_kl", "margin"):
        assert first[name] == pytest.approx(0.0, abs=1e-12), name

    policy = PeftModel.from_pretrained(plain_base(folder, 4), tmp_path / "t/checkpoint-1", is_trainable=True).eval()
    reference, pairs = plain_base(folder, 4), trainer.train_dataset
    expected = expected_logs(pair_numbers(policy, reference, pairs), "tdpo2", beta=0.3, alpha=0.7)
    assert second["chosen_forward_kl"] > 1e-3
    for name in METRICS:
        assert second[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
    naive_loss(policy, reference, pairs, "tdpo2", beta=0.3, alpha=0.7).backward()
    after = trained_weights(trainer)
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            step = rate * weight.grad
            ours = after[name]
            torch.testing.assert_close(ours, weight - step, rtol=1e-5, atol=1e-6 + 1e-3 * float(step.abs().max()))

    _check_saved_and_merged(trainer.model, tmp_path / "t/checkpoint-2", tmp_path / "merged", tokenizer, 4)


def test_eight_bits_start_at_zero_and_learn(tiny_folder: Folder, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trainer_on(load(tiny_folder("llama"), 8), tmp_path / "t", tokenizer)
    trainer.train()
    first, second = train_logs(trainer)
    assert max(abs(first[name]) for name in ("chosen_forward_kl", "rejected_reverse_kl", "margin")) < 1e-12
    assert second["chosen_forward_kl"] > 1e-2 and second["loss"] < first["loss"]
    _check_saved_and_merged(trainer.model, tmp_path / "t/checkpoint-2", tmp_path / "merged", tokenizer, 8)


def _check_saved_and_merged(trained: Any, saved: Path, merged: Path, tokenizer: Any, bits: int) -> None:
    tokenizer.save_pretrained(saved)
    note = read_note(saved)
    assert note is not None and note.dtype == "float32"
    assert f"base in {bits} bits" in (saved / "README.md").read_text()
    again = load_causal_lm(saved)
    assert logits(again).equal(logits(trained)), "on the base that it was trained on"
    with pytest.raises(ValueError, match=rf"was trained on a base in {bits} bits.*{12 - bits} bits.*was asked for"):
        load(saved, 12 - bits)
    with merged_adapter(again) as is_merged:
        assert not is_merged, "while sampling nothing is rounded to few bits again"
    remark = save_merged(saved, merged)
    assert f"a base in {bits} bits" in remark and remark in (merged / "README.md").read_text()
    plain = load_causal_lm(merged)
    assert not getattr(plain, "is_quantized", False) and read_note(merged) is None
    off = float((logits(plain) - logits(trained)).abs().max() / logits(trained).abs().max())
    # Eight-bit layers round what they are given too: 1 part in 254 of the largest of a token.
    assert off < (1e-5 if bits == 4 else 5e-2)


def test_a_resumed_run_is_the_uninterrupted_one(tiny_folder: Folder, tokenizer: Any, tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    whole = trainer_on(load(folder, 4), tmp_path / "whole", tokenizer, max_steps=3, seed=3)
    whole.train()
    cut = trainer_on(load(folder, 4), tmp_path / "cut", tokenizer, max_steps=3, seed=3)
    cut.add_callback(StopAt(3))
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = trainer_on(load(folder, 4), tmp_path / "cut", tokenizer, max_steps=3, seed=3)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in trained_weights(whole).items():
        assert weight.equal(trained_weights(resumed)[name]), name
    other = trainer_on(load(folder, 4, type="fp4"), tmp_path / "cut", tokenizer, max_steps=3, seed=3)
    with pytest.raises(ChangedInputs, match="base"):
        other.train(resume_from_checkpoint=True)


def test_a_cache_is_of_one_quantisation(tiny_folder: Folder, tokenizer: Any, tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    kinds = [load_causal_lm(folder), load(folder, 4), load(folder, 4, type="fp4"), load(folder, 8)]
    assert len({model_digest(model) for model in kinds}) == len(kinds)
    assert model_digest(load(folder, 4)) == model_digest(kinds[1])
    runs = []
    for reference in ("model", "cache"):
        trainer = trainer_on(load(folder, 4), tmp_path / reference, tokenizer, reference=reference)
        trainer.train()
        runs.append([{name: line[name] for name in METRICS} for line in train_logs(trainer)])
    for live, cached in zip(*runs, strict=True):
        assert cached == pytest.approx(live, rel=1e-5, abs=1e-6)


def test_eight_bits_are_not_cached(tiny_folder: Folder, tokenizer: Any, tmp_path: Path) -> None:
    """A last bit of a hidden state, which depends on the batch, decides how an activation is rounded."""
    model = load(tiny_folder("llama"), 8)
    with pytest.raises(ValueError, match=r"reference='cache' is not possible.*round activations.*'model'"):
        trainer_on(copy.deepcopy(model), tmp_path / "a", tokenizer, reference="cache")
    trainer = trainer_on(model, tmp_path / "b", tokenizer, reference="auto")
    assert "adapter off" in trainer.describe()


def test_outliers_of_a_batch_are_switched_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """LLM.int8 looks for them in the whole batch: as it comes, a row's logits depend on the other rows."""
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.mul_(2.5)
    model.save_pretrained(tmp_path)
    as_is = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    alone, batch = IDS[:, :4], torch.cat([IDS[:, :4], IDS[:, 12:16]])
    with torch.no_grad():
        as_it_comes = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=as_is).eval()
        off = float((as_it_comes(batch).logits[0] - as_it_comes(alone).logits[0]).abs().max())
        ours = load_causal_lm(tmp_path, quantization=as_is)
        torch.testing.assert_close(ours(batch).logits[:1], ours(alone).logits)
    assert off > 1e-2 and "outliers" in caplog.text
    assert logits(ours).equal(logits(load(tmp_path, 8)))


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
def test_a_quantised_head_is_never_read_as_numbers(adapted: bool, tiny_folder: Folder) -> None:
    from peft import get_peft_model

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["nothing"])
    model = load_causal_lm(tiny_folder("llama"), quantization=four)
    assert not has_plain_weight(model.lm_head)
    policy = get_peft_model(model, lora("q_proj", *(["lm_head"] if adapted else [])))
    assert find_head(policy) is None
    path = choose_head_path(policy, reference_for(policy))
    assert path.name == "logits" and "quantised" in path.describe()
    with pytest.raises(ValueError, match="head_impl='frozen' does not apply: it is quantised"):
        choose_head_path(policy, reference_for(policy), impl="frozen")


def test_own_responses_under_ppo_start_at_zero(tiny_folder: Folder, tokenizer: Any, tmp_path: Path) -> None:
    model = load(tiny_folder("llama"), 4)
    trainer = make_ppo(model, tmp_path, tokenizer, letters, PROMPTS, peft_config=lora(), completions=4)
    trainer.train()
    first, last = logs(trainer)[0], logs(trainer)[-1]
    assert first["reverse_kl"] == pytest.approx(0.0, abs=1e-9) and last["reverse_kl"] > 1e-4


def test_layers_that_were_repacked_for_inference_are_refused(
    tiny_folder: Folder, tokenizer: Any, tmp_path: Path
) -> None:
    model = load(tiny_folder("llama"), 4)
    model.model.layers[0].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"repacked for inference on this CPU.*load_causal_lm"):
        trainer_on(model, tmp_path, tokenizer)


def test_numbers_of_the_description(tiny_folder: Folder) -> None:
    model = load(tiny_folder("llama"), 4)
    # 2 layers of 2·32·32 + 2·16·32 + 3·64·32 weights: half a byte each, and scales.
    assert "0.01843 million weights of 14 layers" in describe_quantization(model)


def test_experts_that_stay_as_they_were_are_said(tmp_path: Path, tokenizer: Any, caplog: Any) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4, vocab_size=384, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    trainer_on(load(tmp_path / "base", 4), tmp_path / "t", tokenizer)
    # Attention is 4·32·32 weights; experts are 4·3·32·64, and the router 4·32.
    assert "only 0.004096 million weights are quantised, and 0.0247 million stay as they were" in caplog.text


def test_a_quantised_base_is_not_sharded(
    tiny_folder: Folder, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_folder("llama"), 4)
    args = settings(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="quantised base cannot be sharded"):
        prepare_policy(model, lora(), args)


CONFLICTS = {
    "all weights": ({"lora": None}, {}, "quantised weights cannot be trained themselves"),
    "a precision": ({}, {"precision": "bfloat16"}, "bfloat16 cannot hold weights that model.quantization"),
    "bits": ({"quantization": {"bits": 3}}, {}, "model.quantization.bits"),
    "type": ({"quantization": {"bits": 8, "type": "nf4"}}, {}, "has no effect with model.quantization.bits 8"),
    "nested": ({"quantization": {"bits": 8, "nested": False}}, {}, "has no effect with model.quantization.bits 8"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_recipes_that_cannot_be(name: str) -> None:
    model, training, message = CONFLICTS[name]
    section = {"name": "x", "quantization": {"bits": 4}, **model}
    with pytest.raises(RecipeError, match=message):
        load_recipe({"run_dir": "r", "data": {"train": "x.jsonl"}, "model": section, "training": training})
    if training:
        ppo = {"run_dir": "r", "model": section, "environment": {"name": "sentiment"}, "ppo": training}
        with pytest.raises(RecipeError, match=message):
            load_recipe(ppo)


def test_a_recipe_is_checked_before_work(tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {"name": str(tiny_folder("llama")), "quantization": {}}
    recipe = load_recipe({"run_dir": "r", "data": {"train": "x.jsonl"}, "model": section})
    assert recipe.model.quantization is not None and recipe.model.quantization.model_dump() == {
        "bits": 4, "type": "nf4", "nested": True,
    }  # fmt: skip
    assert not list(missing_packages(recipe)) and check_policy(recipe.model) is not None
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    [sentence] = missing_packages(recipe)
    assert "model.quantization" in sentence and "needs bitsandbytes" in sentence and "[quantization]" in sentence
    with pytest.raises(ModuleNotFoundError, match="needs bitsandbytes"):
        load(tiny_folder("llama"), 4)
    monkeypatch.undo()

    load(tiny_folder("llama"), 4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds quantised weights, which cannot be quantised again"):
        load(tmp_path, 4)
    stored = load_causal_lm(tmp_path)
    write_note(stored, tmp_path / "note")
    assert not (tmp_path / "note").exists(), "such a base says itself how it is quantised"
    named = recipe.model.model_copy(update={"name": str(tmp_path)})
    with pytest.raises(ValueError, match="cannot be quantised again"):
        check_policy(named)
    build_model("llama").save_pretrained(tmp_path / "plain")
    shutil.copy(tmp_path / "config.json", tmp_path / "plain")
    with pytest.raises(ValueError, match=r"not quantised, though its config.json says so"):
        load_causal_lm(tmp_path / "plain")
